"""Train on Gleason patterns from the command line, on drawn slides of which half have labels without patterns."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from panda.choices import CONF
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.metadata import SegmentationMetadata
from panda.wsi.classes import find_classes
from tests.integration.entry_points import run_entry_point
from tests.integration.test_entry_points import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained_run(home: Path) -> Path:
    (home / "mine.yaml").write_text((CONF / "classes" / "gleason.yaml").read_text())
    options = ("task.classes=mine.yaml", "data.sampler=balanced", "data.draw.slides=20", "task.views_every=1")
    done = run_entry_point("train", home, *TINY, *options, "test_slides=false", "logger=csv", "name=patterns")
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "runs" / "segmentation" / "patterns"


def test_train_gleason_writes_classes_and_their_dice(trained_run: Path) -> None:
    metadata = read_checkpoint(trained_run / "checkpoints" / "best.ckpt", SegmentationMetadata).metadata
    assert metadata.classes == find_classes("gleason")
    assert metadata.network["channels"] == 4
    last = read_checkpoint(trained_run / "checkpoints" / "last.ckpt", SegmentationMetadata).metadata
    assert last.gleason_rule is not None
    assert last.gleason_rule.chosen_on == "not searched: no validation yet"
    with (trained_run / "metrics.csv").open(newline="") as file:
        columns = set(next(csv.reader(file)))
    assert {"val/dice", "val/dice_best", "val/threshold", "val/dice_G3", "val/dice_G4", "val/dice_G5"} <= columns
    assert (trained_run / "views" / "epoch_000_fixed.png").is_file()


def test_resume_other_classes_are_refused(home: Path, trained_run: Path) -> None:
    last = trained_run / "checkpoints" / "last.ckpt"
    before = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")}
    done = run_entry_point("train", home, f"resume={last}", "task.classes=binary")
    assert done.returncode == 1
    assert "task.classes=binary: a resumed run keeps its choices" in done.stderr
    merged = "names: [benign, G3, high]\npatterns: {G3: [3], high: [4, 5]}\n"
    (home / "mine.yaml").write_text(merged)
    done = run_entry_point("train", home, f"resume={last}")
    assert done.returncode == 1
    assert "than config.yaml of the run" in done.stderr or "classes was" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")} == before


def test_train_missing_class_is_refused_before_training(home: Path, trained_run: Path) -> None:
    options = ("task.classes=gleason", "data.provider=karolinska", "data.draw.slides=20", "name=coarse")
    done = run_entry_point("train", home, *TINY, *options)
    assert done.returncode == 1
    assert "no training patch has a pixel of G3, G4, G5 (Gleason pattern 3, 4, 5)" in done.stderr
    assert not (home / "runs" / "segmentation" / "coarse" / "checkpoints").exists()
