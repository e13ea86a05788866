"""The page of a multirun of `infer.py` over thresholds, from its folders alone."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest

from panda.app.own_sweeps import forget_sweeps, remember_sweep, restore_sweeps
from panda.inference.quantify import QuantifySettings
from panda.inference.segmentation_figures import SegmentationSplitFigures
from panda.report.inference_summary import InferenceSummary, LastRun
from panda.report.map_jobs import read_map_jobs
from panda.report.run_summary import EvaluationSummary
from panda.report.sweep import main
from panda.tables import read_output_table, write_table
from panda.tasks.metadata import TrainedResolution
from panda.tasks.threshold import ThresholdChoice
from tests.summaries import fill
from tests.test_report_pages import EVIL, check_page

DATE = "2026-01-01T00:00:00Z"


def add_job(
    output: Path, threshold: float, rows: list[dict[str, Any]], dice: float | None = None, seen: int = 0
) -> Path:
    """Write the folder of a job: the tables, and an evaluation if it has a Dice."""
    home = output / f"threshold={threshold:g}"
    home.mkdir(parents=True)
    InferenceSummary(
        checkpoint="best.ckpt", grading_checkpoint=None, threshold=threshold, threshold_choice=None, provider=None,
        quantify=QuantifySettings(), resolution=TrainedResolution(level=1, mpp=None, train_mpp=None),
        precision="fp32", compiled=False, engine_choice="", tta="none", reader="auto", mpp_override=None,
        allow_unknown_mpp=False, device="cpu", date=DATE,
        last_run=LastRun(slides=len(rows), failed=0, seconds=4.0), labels=None, notes=[],
    ).write(home)  # fmt: skip
    write_table(home / "quantification.csv", rows)
    (home / "report.html").write_text("page")
    if dice is not None:
        figures = fill(
            SegmentationSplitFigures, {"dice": dice, "slides": len(rows), "slide_specificity": 0.2, "benign_slides": 10}
        )
        evaluation = EvaluationSummary.model_validate(
            {
                "schema": 4, "name": home.name, "created": DATE, "notes": [], "checkpoint": "best.ckpt",
                "bootstrap": {"resamples": 2000, "seed": 0, "level": 0.95, "unit": "groups of slides"},
                "grading_checkpoint": None, "labels": "labels", "threshold": threshold, "seen_in_training": seen,
                "threshold_choice": ThresholdChoice.from_user(threshold).model_dump(mode="json"),
                "test": figures, "grades": None, "agreement": None, "against_training": [],
            }
        )  # fmt: skip
        (home / "summary.json").write_text(json.dumps(evaluation.to_dict()))
    return home


def make_row(name: str, percent: float, grade: int) -> dict[str, Any]:
    return {
        "slide_id": name, "tumor_percent_of_tissue": percent, "tumor_mm2": percent / 10, "num_regions": 2,
        "isup_predicted": grade,
    }  # fmt: skip


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return two finished jobs of three slides, of which one hardly changes, and one that failed."""
    out = tmp_path / "out"
    add_job(out, 0.3, [make_row("still", 10, 1), make_row(EVIL, 60, 4), make_row("third", 30, 2)], dice=0.7)
    add_job(out, 0.5, [make_row("still", 9, 1), make_row(EVIL, 20, 3), make_row("third", 25, 2)], dice=0.8, seen=2)
    write_table(out / "threshold=0.5" / "failures.csv", [{"slide_id": "bad", "stage": "open"}])
    (out / "threshold=0.7").mkdir()
    (out / "threshold=0.7" / "error.json").write_text(json.dumps({"state": "failed", "message": "DISK"}))
    (out / "still" / "canvas.zarr").mkdir(parents=True)  # canvases are shared beside the jobs
    return out


def test_main_writes_page_of_maps_over_thresholds(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(output)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "3 jobs: 2 done, 1 failed",
        "threshold 0.3: median 30.0 % of the tissue, 10.00 mm² in all, Dice 0.700, 3 slides",
        "threshold 0.5: median 20.0 % of the tissue, 5.40 mm² in all, Dice 0.800, 3 slides, "
        "2 of 3 slides used in the training",
        "threshold 0.7: failed",
        f"sweep: {output / 'sweep.html'}",
    ]
    text = html.unescape(check_page(output / "sweep.html"))
    for said in (
        "DISK",
        "20.0 to 45.0",
        "1: 1, 2: 1, 4: 1",
        "6.00 mm², ISUP 4",
        "8 of 10 false alarms",
        "0.3/report.html",
    ):
        assert said in text
    assert text.count(">2 of 3 slides used in the training, 8 of 10 false alarms<") == 1, "of one job of the two"
    assert '<div class="alarm" role="alert"><p>2 of 3 slides with labels were used in the training: these' in text
    assert "Choosing a setting by them makes these slides validation slides" in text
    table = text[text.rindex(">Slides</h2>") :]
    assert table.index(">40.0<") < table.index(">third<") < table.index(">still<"), "the largest spread is first"
    rows = {row["job"]: row for row in read_output_table(output / "sweep.csv")}
    assert [rows[f"threshold={value}"]["dice"] for value in ("0.3", "0.5", "0.7")] == ["0.7", "0.8", ""]
    assert rows["threshold=0.5"]["failed"] == "1"
    assert len(read_output_table(output / "sweep_slides.csv")) == 6


def test_read_map_jobs_names_unfinished_and_damaged_jobs(output: Path) -> None:
    file = output / "threshold=0.3" / "inference.json"
    file.write_text(file.read_text().replace('"notes": []', '"notes": ["Slides without a result yet: 1, x."]'))
    (output / "threshold=0.5" / "inference.json").write_text("{")
    found = {one.job.name: (one.job.state, one.job.error) for one in read_map_jobs(output)}
    assert found["threshold=0.3"] == ("lost", "Slides without a result yet: 1, x.")
    assert found["threshold=0.5"][0] == "failed"
    assert read_map_jobs(output / "still") == []


def test_restore_sweeps_keeps_folder_that_was_given(tmp_path: Path) -> None:
    for name, is_new in (("given", False), ("made", True)):
        (tmp_path / name).mkdir()
        remember_sweep(tmp_path / name, is_new=is_new)
        (tmp_path / name / "multirun.yaml").write_text("")
    restore_sweeps()
    forget_sweeps()
    assert [path.name for path in tmp_path.rglob("*")] == ["given"]
