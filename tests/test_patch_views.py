"""Pictures of validation patches during training: which ones, when, and that training stays the same."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from panda.app import patch_views as views
from panda.app.callbacks import Clock
from panda.app.patch_views import PatchViews, count_pixels, merge_devices, select_fixed_patches, select_telling_patches
from panda.app.run import Run
from panda.app.train import build_trainer
from panda.data.loaders import Draw, make_ordered_loader, make_train_loader
from panda.data.settings import PatchSettings
from panda.inference.panel_patches import PanelRow
from panda.models.losses import BCELoss
from panda.tasks import segmentation
from panda.tasks.optim import Optim
from panda.tasks.segmentation import SegmentationTask
from tests.test_config_check import compose_settings
from tests.test_train import METADATA, Data, Named, Tiny


def test_patch_views_half_of_fixed_patches_have_cancer() -> None:
    rank = np.array([3, 0, 2, 1, 4])
    cancer = np.array([True, False, True, False, True])
    assert select_fixed_patches(cancer, rank, 2) == [2, 1]
    assert select_fixed_patches(cancer, rank, 3) == [2, 0, 1]
    assert select_fixed_patches(cancer, rank, 5) == [2, 0, 4, 1, 3]
    assert select_fixed_patches(cancer, rank, 9) == [2, 0, 4, 1, 3]
    assert select_fixed_patches(np.ones(5, bool), rank, 2) == [1, 3]
    assert select_fixed_patches(cancer, rank, 0) == []


def test_patch_views_ignored_pixels_are_not_counted() -> None:
    prob = torch.tensor([[[[0.9, 0.5, 0.1, 0.9, 0.9]]], [[[0.0, 0.0, 0.0, 0.0, 0.0]]]])
    mask = torch.tensor([[[[1.0, 0.0, 1.0, -1.0, 1.0]]], [[[1.0, 1.0, -1.0, 0.0, 0.0]]]])
    assert count_pixels(prob, mask).tolist() == [[2, 1, 1], [0, 0, 2]]


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_patch_views_counts_of_devices_follow_patch_order(devices: int) -> None:
    counts = np.arange(21).reshape(7, 3)
    shares = [counts[device::devices] for device in range(devices)]
    assert np.array_equal(merge_devices(shares), counts)


def test_patch_views_each_kind_has_its_own_patch() -> None:
    counts = np.array(
        [
            [90, 5, 5],  # most found, and the highest Dice
            [80, 60, 10],
            [20, 0, 75],
            [0, 0, 9],  # nothing found: the lowest Dice
            [0, 50, 0],
            [0, 0, 0],
            [0, 0, 0],
        ]
    )
    rank = np.array([0, 1, 2, 3, 4, 6, 5])
    assert select_telling_patches(counts, rank) == {
        "true positive": 1,
        "false positive": 4,
        "true negative": 6,
        "false negative": 2,
        "best": 0,
        "worst": 3,
    }
    assert select_telling_patches(np.zeros((2, 3), int), rank[:2]) == {"true negative": 0}


class Placed(Named):
    """Patches of a split, some without cancer, that say where they are."""

    def __init__(self) -> None:
        super().__init__()
        place = SimpleNamespace(slide_id="s", provider="radboud", x=1, y=2)
        fractions = np.array([[1.0, number % 2] for number in range(12)])
        self.rows: Any = Rows(place, fractions)

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, Tensor]:
        image, mask = super().__getitem__(index)
        number = index.item if isinstance(index, Draw) else index
        return image, mask * (number % 2)


class Rows(list[Any]):
    """As much of a table of patches as is needed."""

    def __init__(self, place: Any, fractions: Any) -> None:
        super().__init__([place] * len(fractions))
        self.fractions = fractions
        self.settings = PatchSettings()


class OfPatches(Data):
    """Training and validation patches that both have a place."""

    def train_dataloader(self) -> DataLoader[Any]:
        return make_train_loader(Placed(), 12, 4, 0, self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        return make_ordered_loader(Placed(), 4, 0)


def train(folder: Path, every: int, *overrides: str) -> tuple[SegmentationTask, Run]:
    cfg = compose_settings("trainer=cpu", "trainer.max_epochs=4", "logger=csv", f"run_dir={folder}", *overrides)
    (folder / "checkpoints").mkdir(parents=True)
    pl.seed_everything(0, verbose=False)
    task = SegmentationTask(Tiny(), BCELoss(), Optim(lr=0.05), METADATA)  # type: ignore[arg-type]
    experiment: Any = SimpleNamespace(monitor="val/dice", mode="max")
    run = Run(cfg, folder, None, build_trainer(cfg, folder, experiment, Clock(time.monotonic())))
    if every:
        shown = PatchViews(Placed(), {"s": 0.5}, folder / "views", every=every, fixed=1, seed=0)
        run.trainer.callbacks.append(shown)  # type: ignore[attr-defined]
    run.fit(task, OfPatches(), {})
    return task, run


@pytest.fixture
def drawn_rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sequence[PanelRow]]:
    """Return the rows of each picture, by its name, instead of drawing them."""
    found: dict[str, Sequence[PanelRow]] = {}

    def draw(rows: Sequence[PanelRow], threshold: float, path: Path, **_: str) -> Path:
        found[path.name] = rows
        return path

    monkeypatch.setattr(views, "draw_panels", draw)
    return found


def test_patch_views_draws_every_n_epochs_without_changing_training(
    tmp_path: Path, drawn_rows: dict[str, Sequence[PanelRow]]
) -> None:
    with_views, _ = train(tmp_path / "with", 3)
    without, _ = train(tmp_path / "without", 0)
    assert sorted(drawn_rows) == [
        "epoch_002_fixed.png", "epoch_002_telling.png", "epoch_003_fixed.png", "epoch_003_telling.png",
    ]  # fmt: skip
    for name, tensor in without.state_dict().items():
        assert torch.equal(with_views.state_dict()[name], tensor), name
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("with", "without")]
    assert metrics[0] == metrics[1]
    before, after = (drawn_rows[f"epoch_00{epoch}_fixed.png"][0] for epoch in (2, 3))
    assert before.title == after.title == "random   ·   s (radboud) x=1 y=2"
    assert np.array_equal(before.image, after.image)
    assert not np.array_equal(before.probability, after.probability)
    # as the network says it in evaluation, without dropout
    image = torch.from_numpy(after.image).permute(2, 0, 1)[None] / 255
    again = with_views.eval()(image).sigmoid()[0, 0].detach().numpy()
    assert np.abs(after.probability - again).max() < 0.01


def test_patch_views_draws_last_epoch_on_early_stop(
    tmp_path: Path, drawn_rows: dict[str, Sequence[PanelRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "compute_dice", lambda *_: torch.tensor(0.5))  # which is no better each time
    _, run = train(tmp_path, 50, "task.patience=1")
    assert run.trainer.current_epoch == 2
    assert set(drawn_rows) == {"epoch_001_fixed.png", "epoch_001_telling.png"}
