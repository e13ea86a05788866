"""Sweeps of train.py: how often they train, failed jobs, and what refusals of Hydra leave."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from panda.inference.predictor import SegmentationPredictor
from panda.tasks.segmentation import SegmentationTask
from tests.integration.entry_points import run_entry_point, table
from tests.integration.test_entry_points import DEEPLAB, TINY
from tests.integration.test_refusals import identify_content

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def call_counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a network is trained, and a slide mapped."""
    counts = {"fit": 0, "map": 0}
    for kind, name, key in ((pl.Trainer, "fit", "fit"), (SegmentationPredictor, "_map", "map")):
        original = getattr(kind, name)

        def count(*args: Any, original: Any = original, key: str = key, **kwargs: Any) -> Any:
            counts[key] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(kind, name, count)
    return counts


def val_slides(sweep: Path, job: dict[str, str]) -> list[dict[str, str]]:
    return table(sweep / job["job"] / "val_slides.csv")


def pool_dice(rows: list[dict[str, str]]) -> float:
    tp, fp, fn = (sum(int(row[key]) for row in rows) for key in ("tp_px", "fp_px", "fn_px"))
    return 2 * tp / (2 * tp + fp + fn)


def test_sweep_of_evaluation_settings_trains_once(home: Path, call_counts: dict[str, int]) -> None:
    choices = ("seed=1,2", "threshold=auto,0.3")
    done = run_entry_point("train", home, "-m", *TINY, *choices, "name=once", "logger=csv")
    assert done.returncode == 0, done.stderr[-3000:]
    sweep = home / "runs" / "segmentation" / "sweep-once"
    rows = table(sweep / "sweep.csv")
    assert [(row["seed"], row["threshold"], row["trained_by"]) for row in rows] == [
        ("1", "auto", ""), ("1", "0.3", "0"), ("2", "auto", ""), ("2", "0.3", "2"),
    ]  # fmt: skip
    # two slides of validation and two of the test for each training
    assert call_counts == {"fit": 2, "map": 8}
    assert "trained by job 0" in (sweep / "1" / "run.log").read_text()
    assert "Trained by job 0" in (sweep / "1" / "report.html").read_text()
    assert (sweep / "1" / "metrics.csv").read_text() == (sweep / "0" / "metrics.csv").read_text()
    assert [row["threshold_used"] for row in rows if row["threshold"] != "auto"] == ["0.3", "0.3"]

    # the same job alone trains, with the same result
    done = run_entry_point("train", home, *TINY, "seed=1", "threshold=0.3", "name=alone", "logger=csv")
    assert done.returncode == 0, done.stderr[-3000:]
    assert call_counts == {"fit": 3, "map": 12}
    alone = home / "runs" / "segmentation" / "alone"
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (sweep / "1", alone))
    assert (ours["trained_by"], theirs["trained_by"]) == ("0", None)
    assert all(ours[key] == theirs[key] for key in ("val", "test", "epochs", "threshold"))
    for name in ("test_slides.csv", "val_slides.csv", "threshold_curve.csv", "metrics.csv"):
        assert (sweep / "1" / name).read_bytes() == (alone / name).read_bytes()
    assert (sweep / "1" / "overrides.txt").read_text() != (alone / "overrides.txt").read_text()

    # thresholds are ranked over both seeds, from the tables that the runs leave
    first, second = table(sweep / "repeats.csv")
    jobs = [[row for row in rows if row["threshold"] == found["threshold"]] for found in (first, second)]
    scores = [pool_dice([slide for row in same for slide in val_slides(sweep, row)]) for same in jobs]
    assert [float(found["val_all_slides"]) for found in (first, second)] == pytest.approx(scores)
    assert scores[0] >= scores[1]
    assert float(second["val_less_best"]) == pytest.approx(scores[1] - scores[0])

    # the finished sweep changes no byte, if it is run again or with a refused configuration
    before = {path: identify_content(path) for path in sweep.rglob("*") if path.is_file()}
    for other, status in (((), 0), (("optim.lr=0.5",), 1), (("model=unett",), 1)):
        done = run_entry_point("train", home, "-m", *TINY, *choices, "name=once", "logger=csv", *other)
        assert done.returncode == status, done.stderr[-3000:]
        assert {path: identify_content(path) for path in sweep.rglob("*") if path.is_file()} == before
    assert call_counts == {"fit": 3, "map": 12}


def test_sweep_unexpected_error_ends_its_job_only(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = SegmentationTask.training_step

    def broken(task: SegmentationTask, batch: Any, batch_idx: int) -> torch.Tensor:
        if str(task.trainer.default_root_dir).endswith("/0/checkpoints"):
            raise RuntimeError("seven")
        return step(task, batch, batch_idx)

    monkeypatch.setattr(SegmentationTask, "training_step", broken)
    done = run_entry_point("train", home, "-m", *TINY, "seed=1,2", "test_slides=false", "name=broken", "logger=csv")
    assert done.returncode == 1
    assert "RuntimeError: seven" in done.stderr
    assert "Traceback" in done.stderr, "a fault of ours says where"
    sweep = home / "runs" / "segmentation" / "sweep-broken"
    rows = table(sweep / "sweep.csv")
    assert [(row["state"], row["error"]) for row in rows] == [("failed", "RuntimeError: seven"), ("done", "")]
    assert "RuntimeError: seven" in (sweep / "sweep.html").read_text()
    assert f"sweep: {sweep}/sweep.html" in capsys.readouterr().out


def test_sweep_parallel_jobs_train_once_and_report_failure(home: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    at_once = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    sizes = [*(o for o in TINY if not o.startswith(("data.patch_size", "model.decoder"))), *DEEPLAB]
    choices = ("data.patch_size=64,100", "threshold=0.3,0.5")
    done = run_entry_point("train", home, "-m", *at_once, *sizes, *choices, "name=joblib", "logger=csv")
    assert done.returncode == 1
    rows = table(home / "runs" / "segmentation" / "sweep-joblib" / "sweep.csv")
    assert [row["state"] for row in rows] == ["done", "done", "failed", "failed"]
    assert sorted(row["trained_by"] for row in rows[:2])[0] == ""
    assert sorted(row["trained_by"] for row in rows[:2])[1] in "01"


@pytest.mark.parametrize("override", ["model=unet,unett", "modle=unet,deeplabv3"])
def test_sweep_refused_by_hydra_leaves_nothing(tmp_path: Path, override: str) -> None:
    done = run_entry_point("train", tmp_path, "-m", override)
    assert done.returncode == 1
    assert "model" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
