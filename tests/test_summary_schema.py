"""The page that describes summary.json, and the check of files against it; entry points are checked in integration."""

import json
from pathlib import Path
from typing import Any

import pytest

from panda.errors import ManifestError
from panda.inference.grading_metrics import summarize_grades, summarize_test_grades
from panda.report.run_summary import SCHEMA, parse_summary
from panda.report.summary_schema import main, render_page
from panda.tasks.calibration import fit_temperature, score_calibration
from panda.tasks.metrics import pool_histograms
from tests.drawn_scores import BY_PROVIDER, SLIDES, draw_graded_slide, figures

DOCS = Path(__file__).resolve().parents[1] / "docs"


def summary_faults(content: dict[str, Any]) -> list[str]:
    return parse_summary(content)[1]


def summary() -> dict[str, Any]:
    """Return the summary of a segmentation, with the parts that the framework makes."""
    hist = pool_histograms({slide.score.record.slide_id: slide.score.histogram for slide in SLIDES})
    temperature = fit_temperature(hist, "six slides", "2026-01-01T00:00:00Z")
    errors = score_calibration(hist, temperature.value)
    return {
        "schema": SCHEMA, "task": "segmentation", "name": "a", "created": "2026-01-01T00:00:00Z",
        "seed": 0, "device": "cpu",
        "epochs": 1, "seconds": 1.5, "trained_by": None, "notes": [],
        "bootstrap": {"resamples": 2000, "seed": 0, "level": 0.95, "unit": "groups of slides"},
        "threshold": 0.5, "threshold_choice": BY_PROVIDER.model_dump(mode="json"),
        "calibration": temperature.model_dump() | {"bins": 20, "val": errors.model_dump(), "test": None},
        "data": {
            "root": "data", "slides": {"train": 3}, "left_out": {}, "groups": "by slide", "store": "patches",
            "settings": {}, "split": "holdout", "seed": 0, "patches": {"train": 9}, "tumor_patches": {"train": 4},
            "failed": [],
        },
        "val": figures(SLIDES), "test": figures(SLIDES[2:4]),
    }  # fmt: skip


def test_schema_page_in_docs_is_current() -> None:
    assert (DOCS / "summary.md").read_text() == render_page(), "python -m panda.report.summary_schema > docs/summary.md"


def test_summary_faults_valid_segmentation_has_none() -> None:
    described = json.loads(json.dumps(summary()))
    assert summary_faults(described) == []
    del described["test"]
    described["calibration"] = None
    described["val"] = {"dice": None, "of": "patches"}
    assert summary_faults(described) == []


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        ((), {"extra": 1}, "extra is "),
        (("test",), {"dice": 1.2}, "test.dice is "),
        (("test",), {"dice_interval": [0.1]}, "test.dice_interval.1 is missing"),
        (("test",), {"slides": None}, "test.slides is "),
        (("test",), {"slides": "3"}, "test.slides is "),
        (("test", "by_grade"), {"0": {}}, "test.by_grade.0.dice is missing"),
        (("threshold_choice",), {"score": "high"}, "threshold_choice.score is "),
        (("calibration",), {"value": True}, "calibration.value is "),
        (("data",), {"patches": {"train": -1}}, "data.patches.train is "),
        ((), {"task": "painting"}, "task is 'painting'"),
        ((), {"schema": 1}, "schema is 1, this version reads 4"),
    ],
)
def test_summary_faults_invalid_value_is_named(where: tuple[str, ...], value: dict[str, Any], named: str) -> None:
    changed = json.loads(json.dumps(summary()))
    part = changed
    for key in where:
        part = part[key]
    part.update(value)
    faults = summary_faults(changed)
    assert any(fault.startswith(named) for fault in faults), faults


def test_summary_faults_missing_key_is_named() -> None:
    changed = summary()
    del changed["bootstrap"], changed["test"]["no_interval"]
    faults = summary_faults(changed)
    assert faults == ["bootstrap is missing", "test.no_interval is missing"]


def test_summary_faults_valid_grading_has_none() -> None:
    slides = [draw_graded_slide(number) for number in range(9)]
    scores, tested = (compute(slides, 6, seed=0).model_dump() for compute in (summarize_grades, summarize_test_grades))
    given = summary()
    content = {key: given[key] for key in given if key not in ("threshold_choice", "calibration", "data", "test")}
    content |= {
        "task": "grading", "target": "isup", "tiles": {}, "threshold": None,
        "data": {key: given["data"][key] for key in ("root", "slides", "left_out", "groups")},
        "val": scores, "test": tested,
    }  # fmt: skip
    assert summary_faults(content) == []
    assert any(
        fault.startswith("val.attention_auroc is ") and fault.endswith("no such key")
        for fault in summary_faults(content | {"val": tested})
    )
    del scores["by_provider"]
    assert summary_faults(content)[0] == "val.by_provider is missing"


def test_main_checks_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(summary()))
    bad.write_text(json.dumps(summary() | {"seconds": None}))
    assert main([str(good)]) == 0
    assert main([str(good), str(bad)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"{good}: as described"
    assert lines[2].startswith(f"{bad}: seconds is None, but must be ")
    with pytest.raises(ManifestError, match=r"absent\.json"):
        main([str(tmp_path / "absent.json")])
