"""Training on several devices: their draws, their joint results, and how they end."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from panda.app.callbacks import Clock
from panda.app.resume_point import ResumePoint
from panda.app.run import Run
from panda.app.tracking import read_metrics
from panda.app.train import build_trainer
from panda.app.trainer import TrainerSettings
from panda.data.loaders import (
    Choice,
    DrawSampler,
    find_batch_items,
    find_step_items,
    make_ordered_loader,
    make_train_loader,
)
from panda.data.samplers import BalancedDraws, HardDraws
from panda.errors import ConfigError, PandaError
from panda.models.losses import BCELoss
from panda.tasks.optim import Optim
from panda.tasks.segmentation import SegmentationTask
from tests.test_config_check import compose_settings
from tests.test_train import METADATA, Named

DDP = ("trainer=ddp", "trainer.accelerator=cpu")


class Plain(nn.Sequential):
    """A network whose gradient is the mean over samples, on any number of devices."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))

    def plain(self) -> dict[str, Any]:
        return {}


class Data(pl.LightningDataModule):
    """13 patches to learn from, which two devices cannot share evenly, and 5 to validate on."""

    def __init__(self, batch: int, broken: int | None = None, choose: Choice | None = None, workers: int = 0) -> None:
        super().__init__()
        self.batch, self.choose, self.workers = batch, choose, workers
        self.patches = Named()
        self.patches.broken = broken

    def train_dataloader(self) -> DataLoader[Any]:
        return make_train_loader(self.patches, 12, self.batch, self.workers, self.trainer, choose=self.choose)

    def val_dataloader(self) -> DataLoader[Any]:
        image = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(8))
        return make_ordered_loader(TensorDataset(image, (image[:, :1] > 0.5).float()), 2, 0, self.trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.choose.losses} if isinstance(self.choose, HardDraws) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert isinstance(self.choose, HardDraws)
        self.choose.losses = state_dict["losses"]


class Counting(SegmentationTask):
    """A segmentation that also logs the number of pixels in the epoch's Dice."""

    def on_train_epoch_end(self) -> None:
        self.log("train/px", self.train_pixels.compute().sum().float())
        super().on_train_epoch_end()


def make_run(folder: Path, data: Data, *overrides: str, resume: Path | None = None) -> Run:
    resumed = [f"resume={resume}"] if resume else []
    cfg = compose_settings("trainer.max_epochs=2", "logger=csv", f"run_dir={folder}", *overrides, *resumed)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    pl.seed_everything(cfg.seed, verbose=False)
    task = Counting(Plain(), BCELoss(), Optim(lr=0.05, schedule="none"), METADATA)  # type: ignore[arg-type]
    experiment: Any = SimpleNamespace(monitor="val/dice", mode="max")
    point = ResumePoint.read(resume) if resume else None
    run = Run(cfg, folder, resume, build_trainer(cfg, folder, experiment, Clock(time.monotonic()), point))
    run.fit(task, data, {})
    return run


def last(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run.last, weights_only=True)
    return content


@pytest.mark.slow
def test_ddp_two_processes_equal_one_with_double_batch(tmp_path: Path) -> None:
    two = make_run(tmp_path / "two", Data(2, choose=HardDraws(12)), *DDP)
    one = make_run(tmp_path / "one", Data(4, choose=HardDraws(12)), "trainer=cpu")
    for ours, theirs in zip(read_metrics(two.folder), read_metrics(one.folder), strict=True):
        figures = {key: value for key, value in ours.items() if "step" not in key or key == "step"}
        assert {"val/dice", "val/threshold", "step"} <= set(ours) or "val/dice" not in theirs
        assert ours.get("train/px", 12 * 16 * 16) == 12 * 16 * 16
        assert figures == pytest.approx({key: theirs[key] for key in figures}, abs=1e-5)
    left, right = last(two), last(one)
    assert left["global_step"] == right["global_step"] == 6
    for name, weight in left["state_dict"].items():
        torch.testing.assert_close(weight, right["state_dict"][name], atol=1e-5, rtol=1e-4)
    losses = left["Data"]["losses"]  # of the patches that both of them saw
    assert not losses.isnan().all()
    torch.testing.assert_close(losses, right["Data"]["losses"], atol=1e-5, rtol=1e-4, equal_nan=True)
    assert two.training is not None
    assert two.training.epochs == 2
    assert "MASTER_PORT" not in os.environ


@pytest.mark.slow
def test_ddp_resumed_with_workers_equals_whole(tmp_path: Path) -> None:
    def make_data() -> Data:
        return Data(2, choose=HardDraws(12), workers=2)

    whole = make_run(tmp_path / "whole", make_data(), *DDP)
    short = make_run(tmp_path / "short", make_data(), *DDP, "trainer.max_epochs=1")
    resumed = make_run(tmp_path / "short", make_data(), *DDP, resume=short.last)
    ours, theirs = last(resumed), last(whole)
    assert ours["epoch"] == theirs["epoch"] == 1
    for key in ("state_dict", "optimizer_states", "Data"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_ddp_nan_loss_in_one_process_ends_all_and_names_patch(tmp_path: Path) -> None:
    # the second draw is the second process'
    seed = torch.Generator().manual_seed(0).initial_seed()
    pl.seed_everything(seed, verbose=False)
    sampler = DrawSampler(12, torch.initial_seed())
    broken = [draw.item for draw in sampler][1]
    with pytest.raises(PandaError, match=rf"the loss is nan in epoch 0: .* slide at level-0 px \({broken}, 0\)$"):
        make_run(tmp_path / "run", Data(2, broken=broken), *DDP)


def test_ddp_killed_process_ends_run(tmp_path: Path) -> None:
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.05):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
                    return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(PandaError, match=r"a training process was killed .*SIGKILL"):
            make_run(tmp_path / "run", Data(2), *DDP)
    finally:
        ended.set()
        killer.join()


@pytest.mark.parametrize("choose", [None, HardDraws(50), BalancedDraws(np.arange(50) < 5, np.arange(50) % 7, 0.5)])
@pytest.mark.parametrize("devices", [2, 3])
def test_draws_on_devices_together_equal_draws_on_one(choose: Any, devices: int) -> None:
    alone = list(DrawSampler(50, seed=3, choose=choose))
    shares = [DrawSampler(50, seed=3, choose=choose, share=(device, devices)) for device in range(devices)]
    drawn = [list(share) for share in shares]
    assert {len(draws) for draws in drawn} == {len(share) for share in shares} == {50 // devices}
    together = [draw for turn in zip(*drawn, strict=True) for draw in turn]
    assert together == alone[: 50 // devices * devices]
    assert all(share.order == [draw.item for draw in together] for share in shares)


def test_batch_items_of_devices_make_up_step() -> None:
    loaders: list[DataLoader[Any]] = []
    for device in range(2):
        trainer: Any = SimpleNamespace(global_rank=device, world_size=2, current_epoch=0)
        loaders.append(make_train_loader(TensorDataset(torch.zeros(11)), 11, 2, 0, trainer))
        list(loaders[-1].sampler)
        ordered = make_ordered_loader(TensorDataset(torch.arange(5)), 2, 0, trainer)
        assert [item for batch in range(len(ordered)) for item in find_batch_items(ordered, batch)] == [
            *range(device, 5, 2)
        ]
        assert torch.cat([batch[0] for batch in ordered]).tolist() == [*range(device, 5, 2)]
    for batch in range(2):
        of_all = [find_batch_items(loader, batch) for loader in loaders]
        assert find_step_items(loaders[0], batch) == [item for turn in zip(*of_all, strict=True) for item in turn]
    with pytest.raises(ConfigError, match=r"trainer\.devices=2: a split has only 1 patches"):
        make_ordered_loader(TensorDataset(torch.zeros(1)), 2, 0, trainer)


@pytest.mark.parametrize(
    ("trainer", "fault"),
    [
        ({"devices": 2}, "trainer.devices=2 needs trainer=ddp"),
        ({"devices": "auto"}, "trainer.devices=auto must be a whole number: give a number"),
        ({"devices": 0}, "trainer.devices=0 must be at least 1: give a number"),
        ({"devices": 2, "strategy": "fsdp"}, "trainer.strategy=fsdp must be auto, ddp_spawn"),
        ({"accelerator": "cpu", "devices": 999, "strategy": "ddp_spawn"}, "trainer.devices=999: this machine has"),
        ({"num_nodes": 2}, "trainer.num_nodes=2 needs trainer=ddp_slurm"),
        ({"ema": 1.0}, "trainer.ema=1.0 must be above 0 and below 1 or null: null averages nothing"),
        (
            {"ema": 0.9, "precision": "bf16-true"},
            "trainer.ema=0.9 averages weights in fp32, and trainer.precision=bf16",
        ),
    ],
)
def test_trainer_unsupported_settings_are_named(trainer: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainerSettings(**trainer)
    assert caught.value.faults[0].startswith(fault)


def test_trainer_supported_devices_pass() -> None:
    assert TrainerSettings(devices=2, num_nodes=2, strategy="ddp", accelerator="cpu").is_joint
    assert TrainerSettings().devices == 1
    assert TrainerSettings(devices=2, strategy="ddp_spawn", accelerator="cpu").devices == 2
