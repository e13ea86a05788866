"""A resumed training ends with the weights of an uninterrupted one, with any sampler and number of workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from panda.app.callbacks import Clock
from panda.app.resume_point import ResumePoint
from panda.app.train import build_trainer
from panda.data.augment import Augmentation
from panda.data.bag_datamodule import BagDataModule
from panda.data.bagset import BagItem, BagSettings
from panda.data.datamodule import DataSettings, PatchDataModule
from panda.data.manifest import read_manifest
from panda.data.samplers import SamplerName
from panda.data.targets import ISUP
from panda.models.losses import BCELoss
from panda.tasks.grading import GradingTask
from panda.tasks.metadata import GradingMetadata, TileSelection, TrainedResolution
from panda.tasks.optim import Optim
from panda.tasks.segmentation import SegmentationTask
from tests.panda_folder import make_folder
from tests.test_config_check import compose_settings
from tests.test_train import METADATA, PowerCut

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.15
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches"),
]

SHORT = ("trainer=cpu", "trainer.max_epochs=3", "+trainer.limit_train_batches=3", "+trainer.limit_val_batches=1")
OPTIM = Optim(lr=0.05, schedule="none")
GRADING = GradingMetadata(
    network={},
    resolution=TrainedResolution(level=1, mpp=None, train_mpp=None),
    tile_size=32,
    tiles=TileSelection(how="tissue", k=2, random_fraction=1, min_tissue=0.25, seed=0),
    target=ISUP,
    segmentation=(),
    train_slides=("a",),
    val_slides=("b",),
)
WORKERS = [0, pytest.param(1, marks=pytest.mark.slow), 2]
Build = Callable[[int], tuple[pl.LightningModule, pl.LightningDataModule]]


class Bags(nn.Module):
    """A network of bags with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 6))

    def forward(self, bag: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        feats = bag.mean((-2, -1))
        return self.layers(feats.mean(1)), mask.float(), feats

    def add_auxiliary_loss(self, loss: Tensor, feats: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        return loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "small"
    make_folder(root, 6)
    return root


def build_segmentation(folder: Path, sampler: SamplerName, workers: int) -> tuple[SegmentationTask, PatchDataModule]:
    settings = DataSettings(
        root=folder,
        store_root=folder.parent / "patches",
        patch_size=64,
        batch_size=8,
        num_workers=workers,
        sampler=sampler,
        augment=Augmentation(name="light"),
        test_fraction=0.0,
    )
    network: Any = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))
    return SegmentationTask(network, BCELoss(), OPTIM, METADATA), PatchDataModule(settings)


def build_grading(records: list[Any], workers: int) -> tuple[GradingTask, BagDataModule]:
    items = [BagItem(record, np.array([[100, 100], [200, 200]])) for record in records]
    settings = BagSettings(k=2, tile_size=32, batch_size=2, num_workers=workers)
    network: Any = Bags()
    task = GradingTask(network, nn.CrossEntropyLoss(), OPTIM, GRADING)
    return task, BagDataModule({"train": items, "val": items[:1]}, settings, Augmentation(name="light"))


def fit(build: Build, folder: Path, workers: int, *overrides: str, resume: bool = False, stop: Any = None) -> Path:
    """Train by the run's own trainer; `stop` is a callback that raises."""
    last = folder / "checkpoints" / "last.ckpt"
    resumed = (f"resume={last}",) if resume else ()
    cfg = compose_settings(*SHORT, "logger=csv", f"run_dir={folder}", *overrides, *resumed)
    pl.seed_everything(cfg.seed, verbose=False)
    last.parent.mkdir(parents=True, exist_ok=True)
    task, data = build(workers)
    experiment: Any = SimpleNamespace(monitor="val/loss", mode="min")
    point = ResumePoint.read(last) if resume else None
    trainer = build_trainer(cfg, folder, experiment, Clock(time.monotonic()), point)
    if stop is None:
        trainer.fit(task, datamodule=data, ckpt_path=last if resume else None, weights_only=True)
    else:
        trainer.callbacks.append(stop)  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="power cut"):
            trainer.fit(task, datamodule=data, weights_only=True)
    return folder


def assert_same(left: Path, right: Path) -> None:
    """Check that epoch, weights, optimizer and losses of patches are bit-equal."""
    ours, theirs = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (left, right))
    assert (ours["epoch"], ours["global_step"]) == (theirs["epoch"], theirs["global_step"])
    for key in ("state_dict", "optimizer_states", "PatchDataModule"):
        torch.testing.assert_close(ours.get(key), theirs.get(key), rtol=0, atol=0, equal_nan=True)


class CutInMidEpoch(PowerCut):
    """Ends the process at the second batch of an epoch."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            super().on_train_batch_start(trainer)


class CutBetweenEpochs(PowerCut):
    """Ends the process before the first batch of an epoch is asked for."""

    def on_train_batch_start(self, *_: Any) -> None:
        pass

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("power cut")


def check_resumed(build: Build, folder: Path, workers: int, *overrides: str) -> None:
    """Compare runs that were cut in mid-epoch, or between epochs, or went further, with a whole one without workers."""
    whole = fit(build, folder / "whole", 0, *overrides)
    for name, stop in {"mid": CutInMidEpoch(1), "between": CutBetweenEpochs(2)}.items():
        fit(build, folder / name, workers, *overrides, stop=stop)
        assert_same(fit(build, folder / name, workers, *overrides, resume=True), whole)
    fit(build, folder / "short", workers, *overrides, "trainer.max_epochs=2")
    assert_same(fit(build, folder / "short", workers, *overrides, resume=True), whole)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_resumed_segmentation_equals_whole(folder: Path, tmp_path: Path, sampler: SamplerName, workers: int) -> None:
    check_resumed(lambda workers: build_segmentation(folder, sampler, workers), tmp_path, workers)


@pytest.mark.parametrize("workers", WORKERS)
def test_resumed_grading_equals_whole(folder: Path, tmp_path: Path, workers: int) -> None:
    records = read_manifest(folder)
    check_resumed(lambda workers: build_grading(records, workers), tmp_path, workers)


@pytest.mark.parametrize(
    "trainer",
    [
        ("+trainer.check_val_every_n_epoch=2",),
        ("+trainer.val_check_interval=2",),
        ("trainer.accumulate_grad_batches=2", "trainer.ema=0.9"),
    ],
)
def test_resumed_training_unusual_trainer_equals_whole(folder: Path, tmp_path: Path, trainer: tuple[str, ...]) -> None:
    def build(workers: int) -> tuple[SegmentationTask, PatchDataModule]:
        return build_segmentation(folder, "uniform", workers)

    whole = fit(build, tmp_path / "whole", 0, *trainer)
    fit(build, tmp_path / "cut", 2, *trainer, stop=CutInMidEpoch(1))
    assert_same(fit(build, tmp_path / "cut", 2, *trainer, resume=True), whole)
