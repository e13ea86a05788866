"""Jobs of a sweep that differ only in their evaluation train once; the others reuse the training."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from PIL import Image

from panda.app.callbacks import Clock
from panda.app.tracking import read_metrics
from panda.app.training_reuse import (
    RECORD,
    SCORES,
    Training,
    find_training,
    fingerprint_training,
    record_training,
)
from panda.data.manifest import SlideRecord
from panda.errors import CheckpointError, ManifestError
from panda.inference.slide_score import SlideScore, read_scores, write_scores
from panda.tasks.checkpoint import read_checkpoint, update_metadata
from panda.tasks.metadata import SegmentationMetadata
from panda.wsi.classes import BINARY
from tests.checkpoints import segmentation_checkpoint
from tests.test_config_check import compose_settings
from tests.test_train import METADATA, train_run, weights
from tests.wandb_log import OfflineRun

LEARNS = {"train": {"a": "1"}, "val": {"c": "2"}}


def fingerprint(*overrides: str, learns: Any = LEARNS, device: str = "cpu", **metadata: Any) -> str:
    cfg = compose_settings("trainer=cpu", "run_dir=runs/x", *overrides)
    return fingerprint_training(cfg, METADATA.model_copy(update=metadata), learns, device)


@pytest.mark.parametrize(
    "override",
    ["threshold=0.3", "criterion=dice_mean_slide", "quantify.min_region_px=1", "engine.batch_size=2", "task.panels=1",
     "task.views=1", "task.views_every=1", "colour_map=viridis",
     "task.overlap=0.1", "test_slides=false", "logger=csv", "name=x", "debug=true", "data.num_workers=0",
     "run_dir=runs/y"],
)  # fmt: skip
def test_fingerprint_training_evaluation_override_is_same(override: str) -> None:
    assert fingerprint(override) == fingerprint()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "model=deeplabv3", "model.encoder_name=resnet50", "loss=bce", "optim.lr=0.5", "augment=none",
     "trainer.max_epochs=7", "trainer.precision=bf16-mixed", "data.patch_size=64", "data.batch_size=4", "data.seed=9",
     "data.val_fraction=0.3", "task.patience=3"],
)  # fmt: skip
def test_fingerprint_training_other_override_differs(override: str) -> None:
    assert fingerprint(override) != fingerprint()


def test_record_training_resumed_run_keeps_its_record(tmp_path: Path) -> None:
    first = record_training(tmp_path, fingerprint(), 2, METADATA)
    stored = (tmp_path / RECORD).read_bytes()
    # the threshold was searched since
    assert record_training(tmp_path, fingerprint(), 2, METADATA.model_copy(update={"overlap": 0.1})) == first
    assert (tmp_path / RECORD).read_bytes() == stored
    assert record_training(tmp_path, fingerprint("seed=1"), 2, METADATA) != first


def test_fingerprint_training_other_slides_masks_or_devices_differ() -> None:
    assert fingerprint(overlap=0.1, precision="bf16") == fingerprint()
    others = [
        fingerprint(learns={"train": {"a": "other"}, "val": {"c": "2"}}),
        fingerprint(device="cuda:0"),
        fingerprint(val_slides=("d",)),
    ]
    assert len({fingerprint(), *others}) == 4


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a sweep whose job 0 has trained and then stored a given threshold in its checkpoint."""
    folder = tmp_path / "sweep-x"
    train_run(folder / "0", sweep=folder)
    given = {"value": 0.3, "criterion": "given", "score": None, "chosen_on": "nothing", "date": "2026-01-01T00:00:00Z"}
    update_metadata(folder / "0" / "checkpoints" / "best.ckpt", SegmentationMetadata, threshold=given)
    canvas = folder / "0" / "slides" / "a" / "canvas.zarr" / "c" / "0"
    canvas.parent.mkdir(parents=True)
    canvas.write_bytes(b"chunk")
    (folder / "0" / SCORES).write_bytes(b"scores")
    (folder / "0" / "views").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0" / "views" / "epoch_002_fixed.png")
    return folder


def test_sweep_job_reuses_training_of_other_job(sweep: Path) -> None:
    run, _ = train_run(sweep / "1", "threshold=0.5", sweep=sweep, overlap=0.25)
    assert run.training is not None
    assert (run.training.trained_by, run.training.epochs) == ("0", 3)
    assert "Trained by job 0" in run.notes[0]
    assert all(torch.equal(weights(sweep / "0")[name], tensor) for name, tensor in weights(sweep / "1").items())
    assert (sweep / "1" / "metrics.csv").read_text() == (sweep / "0" / "metrics.csv").read_text()
    assert (sweep / "1" / "slides" / "a" / "canvas.zarr" / "c" / "0").read_bytes() == b"chunk"
    assert (sweep / "1" / SCORES).read_bytes() == b"scores"

    def stored(job: str, name: str) -> SegmentationMetadata:
        return read_checkpoint(sweep / job / "checkpoints" / name, SegmentationMetadata).metadata

    best = [stored(job, "best.ckpt") for job in "01"]
    assert [metadata.threshold.criterion for metadata in best] == ["given", "dice_pooled"]
    assert [metadata.overlap for metadata in best] == [0.5, 0.25]
    assert stored("1", "last.ckpt").overlap == 0.25
    # of two that have it, it is the one that trained which is named
    run, _ = train_run(sweep / "2", "threshold=0.7", sweep=sweep)
    assert run.training is not None
    assert run.training.trained_by == "0"
    # and a job that took over can be gone on with
    train_run(sweep / "1", sweep=sweep, resume=sweep / "1" / "checkpoints" / "last.ckpt", overlap=0.25)


def test_sweep_job_with_reused_training_logs_its_metrics_to_wandb(sweep: Path) -> None:
    train_run(sweep / "1", "threshold=0.5", "logger.mode=offline", sweep=sweep)
    wandb.finish()
    shown = OfflineRun(sweep / "1")
    assert shown.about.run_group == sweep.name
    rows = [row for row in read_metrics(sweep / "0") if "val/dice" in row]
    assert [(item["epoch"], item["val/dice"]) for item in shown.find_logged("val/dice")] == [
        (row["epoch"], row["val/dice"]) for row in rows
    ]
    assert len(rows) == 3
    (view,) = shown.find_logged("views/fixed")
    assert (view["epoch"], view["views/fixed"]["caption"]) == (2, "epoch_002_fixed")
    assert (sweep / "1" / "views" / "epoch_002_fixed.png").is_file()


@pytest.mark.parametrize("why", ["another seed", "no sweep", "a checkpoint is gone", "a record of another version"])
def test_sweep_job_without_matching_record_trains(sweep: Path, why: str) -> None:
    if why == "a checkpoint is gone":
        (sweep / "0" / "checkpoints" / "last.ckpt").unlink()
    if why == "a record of another version":
        (sweep / "0" / RECORD).write_text('{"of": "tomorrow"}')
    overrides = ["seed=1"] if why == "another seed" else []
    run, _ = train_run(sweep / "1", *overrides, sweep=None if why == "no sweep" else sweep)
    assert run.training is not None
    assert run.training.trained_by is None
    assert run.notes == []


def test_sweep_job_damaged_checkpoint_is_not_reused(sweep: Path) -> None:
    (sweep / "0" / "checkpoints" / "best.ckpt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"best\.ckpt is not a checkpoint, or is damaged"):
        train_run(sweep / "1", sweep=sweep)


def test_find_training_ignores_jobs_that_reused(tmp_path: Path) -> None:
    for job, by in (("0", "7"), ("1", None)):
        (tmp_path / job / "checkpoints").mkdir(parents=True)
        for name in ("best.ckpt", "last.ckpt"):
            (tmp_path / job / "checkpoints" / name).touch()
        Training(fingerprint="0" * 64, epochs=1, decided={}, trained_by=by).write(tmp_path / job)
    metadata = read_checkpoint(segmentation_checkpoint(tmp_path / "a.ckpt"), SegmentationMetadata).metadata
    found = find_training(tmp_path, "0" * 64, tmp_path / "2", metadata)
    assert found is not None
    assert found[0].name == "1"
    assert find_training(tmp_path, "1" * 64, tmp_path / "2", metadata) is None
    assert find_training(tmp_path, "0" * 64, tmp_path / "1", metadata) is None


def test_read_scores_returns_written_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = SlideRecord("a", "karolinska", 1, "3+3", Path("a"), None, "a")
    counts = np.arange(2000).reshape(2, 1000)
    scores = {"one": SlideScore(record, counts, 0.25, 7), "two": SlideScore(record, counts + 1, None, 0)}
    write_scores(tmp_path / "s.npz", scores)
    back = read_scores(tmp_path / "s.npz", BINARY)
    for key, score in scores.items():
        found = SlideScore(record, *back[key])
        assert np.array_equal(found.histogram, score.histogram)
        assert (found.pixel_area_um2, found.outside_px) == (score.pixel_area_um2, score.outside_px)
    assert read_scores(tmp_path / "absent.npz", BINARY) == {}
    (tmp_path / "s.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:300])
    assert not caplog.text
    assert read_scores(tmp_path / "s.npz", BINARY) == {}
    assert f"{tmp_path / 's.npz'}: damaged or edited" in caplog.text


def test_read_metrics_drops_incomplete_epoch_and_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,x,y\n0,1,0.1,\n0,2,,1e-05\n1,3,0.3,\n1,4,0.2,3")
    assert read_metrics(tmp_path) == [
        {"epoch": 0, "step": 1, "x": 0.1}, {"epoch": 0, "step": 2, "y": 1e-05}, {"epoch": 1, "step": 3, "x": 0.3},
    ]  # fmt: skip
    assert [row["step"] for row in read_metrics(tmp_path, before=3)] == [1, 2]
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.parametrize("row", ["0,x,0.1,", "0,nan,0.1,", "0,1.5,,", "0,1,o.1,"])
def test_read_metrics_no_number_raises_and_names_file(tmp_path: Path, row: str) -> None:
    (tmp_path / "metrics.csv").write_text(f"epoch,step,x,y\n{row}\n")
    with pytest.raises(ManifestError, match=r"metrics\.csv: .*; the file was edited: restore it"):
        read_metrics(tmp_path)


def test_clock_sums_seconds_of_all_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first = Clock(90.0)
    kept = first.state_dict()
    second = Clock(95.0)
    second.load_state_dict(kept)
    assert second.seconds == 15.0
