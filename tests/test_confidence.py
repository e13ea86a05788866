"""Confidence of grading runs: what is chosen on validation, frozen, measured and shown."""

import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panda.app.confidence import freeze_confidence, measure_calibration
from panda.files import write_json
from panda.inference.confidence_metrics import compute_confidence_scores
from panda.inference.grading_metrics import GradedSlide, summarize_grades
from panda.report.confidence_section import lay_out_confidence
from panda.report.run_page import write_run_page
from panda.report.run_summary import GradingSummary
from panda.tables import read_output_table
from panda.tasks.bootstrap import bootstrap_interval
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.grade_calibration import compute_nll, scale_probabilities
from panda.tasks.metadata import GradingMetadata
from tests.checkpoints import grading_checkpoint
from tests.drawn_scores import draw_graded_slide
from tests.summaries import fill_summary


def draw_slides(count: int, first: int = 0) -> list[GradedSlide]:
    """Slides whose network is too sure of its classes, and sometimes wrong."""
    found = []
    for number in range(first, first + count):
        slide = draw_graded_slide(number)
        found.append(replace(slide, grade=slide.grade.calibrate(0.12, None)))
    return found


@pytest.fixture
def best(tmp_path: Path) -> Path:
    return grading_checkpoint(tmp_path / "best.ckpt")


def test_freeze_confidence_is_in_checkpoint_and_in_grades(best: Path) -> None:
    before = read_checkpoint(best, GradingMetadata).metadata
    assert (before.calibration, before.abstain_below) == (None, None)
    graded = draw_slides(60)
    frozen = freeze_confidence(best, graded, 0.2)
    stored = read_checkpoint(best, GradingMetadata).metadata
    assert (stored.calibration, stored.abstain_below) == (frozen.temperature, frozen.abstention)
    temperature, least = frozen.temperature.value, frozen.abstention and frozen.abstention.value
    assert temperature is not None
    assert temperature > 1
    assert least
    for slide, after in zip(graded, frozen.validated, strict=True):
        assert after.grade.predicted == slide.grade.predicted
        expected = scale_probabilities(np.array(slide.grade.probabilities), temperature)
        assert after.grade.probabilities == pytest.approx(expected)
        assert bool(after.grade.mark) == (after.grade.confidence < least)
    certain = [slide for slide in frozen.validated if not slide.grade.mark]
    assert 0 < np.mean([slide.grade.predicted != slide.label for slide in certain]) <= 0.2


def test_freeze_confidence_few_slides_grades_all(best: Path) -> None:
    graded = draw_slides(19)
    frozen = freeze_confidence(best, graded, 0.2)
    assert frozen.abstention is not None
    assert (frozen.temperature.value, frozen.abstention.value) == (None, None)
    assert frozen.abstention.note == "needs 20 validation slides, there are 19"
    assert frozen.validated == graded
    assert freeze_confidence(best, graded, None).abstention is None
    assert freeze_confidence(best, [], 0.2).validated == []


def test_measure_calibration_compares_before_and_after(best: Path, tmp_path: Path) -> None:
    graded = draw_slides(60)
    frozen = freeze_confidence(best, graded, 0.2)
    tested = [replace(s, grade=s.grade.calibrate(frozen.temperature.value, 0.5)) for s in draw_slides(40, 60)]
    found = measure_calibration(tmp_path, frozen, {"validation": frozen.validated, "test": tested})
    assert found.test is not None
    for errors, slides in ((found.val, graded), (found.test, draw_slides(40, 60))):
        prob, label = np.array([s.grade.probabilities for s in slides]), np.array([s.label for s in slides])
        assert errors.nll == pytest.approx(compute_nll(prob, label))
        assert errors.nll_scaled is not None
        assert errors.nll_scaled < compute_nll(prob, label)
    assert (found.val.bins, found.test.bins) == (6, 4)
    rows = read_output_table(tmp_path / "risk_coverage.csv")
    last = [row for row in rows if (row["split"], row["scaled"]) == ("test", "1")][-1]
    wrong = np.mean([slide.grade.predicted != slide.label for slide in tested])
    assert [float(last[key]) for key in ("coverage", "risk")] == pytest.approx([1, wrong])
    bins = [row for row in read_output_table(tmp_path / "calibration.csv") if row["split"] == "validation"]
    gaps = [abs(float(row["confidence"]) - float(row["accuracy"])) * int(row["slides"]) for row in bins]
    assert sum(gaps[:6]) / 60 == pytest.approx(found.val.ece)
    assert sum(gaps[6:]) / 60 == pytest.approx(found.val.ece_scaled)


def test_confidence_scores_match_bootstrap_over_groups() -> None:
    slides = [replace(s, grade=s.grade.calibrate(None, 0.6)) for s in draw_slides(60)]
    groups = [slide.record.group for slide in slides]
    found = compute_confidence_scores([s.grade for s in slides], [s.label for s in slides], groups, seed=3)
    certain = np.array([s.grade.confidence >= 0.6 for s in slides])
    wrong = np.array([s.grade.predicted != s.label for s in slides])
    values: Any = np.column_stack([certain, wrong])

    def measure_risk(rows: Any) -> float:
        return float(rows[rows[:, 0], 1].mean())

    assert found["coverage"] == certain.mean()
    assert found["coverage_interval"] == pytest.approx(bootstrap_interval(certain, groups, seed=3))
    assert found["selective_risk"] == pytest.approx(wrong[certain].mean())
    expected = bootstrap_interval(values, groups, seed=3, statistic=measure_risk)
    assert found["selective_risk_interval"] == pytest.approx(expected)
    for key in ("ece", "aurc"):
        low, high = found[f"{key}_interval"]
        assert low < high
    unused = summarize_grades(draw_slides(9), 6, seed=3)
    assert (unused.coverage, unused.selective_risk, unused.coverage_interval) == (None, None, None)


def test_run_page_shows_confidence_and_says_why_all_are_graded(best: Path, tmp_path: Path) -> None:
    for count, said in (
        (
            60,
            (
                "below 0.",
                "at most 20% of the graded slides are wrong",
                "at the temperature",
                "AURC",
                "Of 60 slides of validation",
            ),
        ),
        (19, ("Every slide is graded", "needs 20 validation slides, there are 19", "No temperature")),
    ):
        frozen = freeze_confidence(grading_checkpoint(tmp_path / "best.ckpt"), draw_slides(count), 0.2)
        folder = tmp_path / str(count)
        calibration = measure_calibration(folder, frozen, {"validation": frozen.validated})
        val = summarize_grades(frozen.validated, 6, seed=0).model_dump(mode="json")
        content = fill_summary({"task": "grading", "val": val}) | {"calibration": calibration.model_dump(mode="json")}
        write_json(folder / "summary.json", content)
        section = lay_out_confidence(folder, GradingSummary.model_validate(content))
        assert section is not None
        assert len(section.charts) == 2
        text = html.unescape(write_run_page(folder).read_text())
        for words in ("Confidence of the grades", "Accuracy by confidence", *said):
            assert words in text, words
