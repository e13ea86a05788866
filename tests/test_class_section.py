"""The parts of a run's page about classes of cancer, and figures of classes in tables and comparisons."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from panda.inference.class_figures import summarize_rule_grades
from panda.inference.dataset_metrics import summarize
from panda.inference.segmentation_figures import SegmentationSplitFigures
from panda.report.class_section import lay_out_classes
from panda.report.folds import compute_figures
from panda.report.grade_notes import explain_rule
from panda.report.paired import compute_differences
from panda.report.run_page import write_run_page
from panda.report.sweep_page import write_sweep
from panda.tables import read_output_table, write_table
from panda.tasks.gleason_search import GleasonRuleChoice, GleasonRuleSettings
from tests.drawn_scores import AT
from tests.drawn_scores import SLIDES as BINARY_SLIDES
from tests.summaries import make_summary
from tests.test_class_figures import CLASSES, SLIDES, draw, grade_slide
from tests.test_rule_grade_pages import read_page

RULE = GleasonRuleChoice(
    min_area_mm2=0.05,
    min_percent=3.0,
    score=0.81,
    tied=4,
    chosen_on="40 validation slides",
    date="2026-01-01T00:00:00Z",
)
GRADED = [grade_slide(k, k % 6, (k + (k % 7 == 0)) % 6, (0, 5)) for k in range(30)]


def make_figures() -> SegmentationSplitFigures:
    return summarize([slide.score for slide in SLIDES], AT, 3, CLASSES, GRADED)


def write_run(folder: Path) -> Path:
    """Write a run folder whose test slides have classes and grades by areas."""
    figures = json.loads(make_figures().model_dump_json())
    summary = make_summary({"val": figures, "test": figures, "gleason_rule": RULE.model_dump(mode="json")})
    (folder / "summary.json").write_text(json.dumps(summary.to_dict()))
    rule = {"rule_score": "3+4", "rule_isup": 2, "rule_isup_low": 1, "rule_isup_high": 2}
    rows = [
        {"slide_id": s.score.record.slide_id, "provider": s.score.record.provider, "isup_grade": 2, "dice": 0.5}
        | rule
        | s.score.list_class_columns(0.5, CLASSES)
        for s in SLIDES
    ]
    write_table(folder / "test_slides.csv", rows)
    return folder


def test_run_page_shows_classes_and_grades_by_areas(tmp_path: Path) -> None:
    page = read_page(write_run_page(write_run(tmp_path)))
    figures = make_figures()
    assert figures.classes is not None
    for name, part in figures.classes.by_class.items():
        assert f"{name} {part.slides} {part.dice:.3f}" in page
    assert "6 slides of 5 groups" in page
    assert "The labels of karolinska say cancer or not" in page
    assert "cancer, class not labelled" in page
    assert "it counts as found in every column but the first" in page
    assert figures.rule_grade is not None
    assert f"quadratic κ is {figures.rule_grade.qwk:.2f}" in page
    assert "4 pairs of limits were equally good" in page
    assert "0.05 mm² and 3 % of the tumour, and a lower one from 5 %" in page
    assert "1 to 2" in page
    assert "Dice of G4" in page  # in the table of both splits


def test_sweep_page_pairs_jobs_with_and_without_grades_by_areas(tmp_path: Path) -> None:
    binary = summarize([slide.score for slide in SLIDES], AT, 3)
    for job, figures in (("0", binary), ("1", make_figures())):
        parts = json.loads(figures.model_dump_json())
        folder = tmp_path / job
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(make_summary({"val": parts, "test": parts}).to_dict()))
        (folder / "overrides.txt").write_text(f"task.classes={'gleason' if job == '1' else 'binary'}\n")
        write_table(folder / "val_slides.csv", [asdict(slide.score.compute_metrics(0.5)) for slide in SLIDES])
    page = read_page(write_sweep(tmp_path))
    assert "the job has no κ of the grade by areas" in page
    assert page.count("Less the best") == 1


def test_classes_of_several_naming_providers_have_a_row_each() -> None:
    second = draw(9, "radboud", "z")
    score = replace(second.score, record=replace(second.score.record, provider="elsewhere"))
    figures = summarize([*(slide.score for slide in SLIDES), score], AT, 3, CLASSES)
    section = lay_out_classes(make_summary({"test": {}}).model_copy(update={"test": figures}))
    assert section is not None
    names = [row[0].text for row in section["table"].rows]
    assert names == [
        "G3",
        "G3, elsewhere",
        "G3, radboud",
        "G4",
        "G4, elsewhere",
        "G4, radboud",
        "G5",
        "G5, elsewhere",
        "G5, radboud",
    ]


def test_run_page_of_one_class_has_no_section() -> None:
    summary = make_summary({"val": {}, "test": {}})
    assert lay_out_classes(summary) is None
    found = summarize([slide.score for slide in BINARY_SLIDES], AT, 3)
    assert {"classes", "rule_grade"}.isdisjoint(found.model_dump())
    assert not [key for key in found.numbers if key.startswith(("classes", "dice_G", "rule_"))]


def test_figures_of_classes_are_numbers_with_intervals() -> None:
    found = make_figures()
    assert found.classes is not None
    assert found.rule_grade is not None
    assert found.numbers["dice_G4"] == found.classes.by_class["G4"].dice
    assert found.find_interval("dice_G4") == found.classes.by_class["G4"].dice_interval
    assert found.numbers["rule_qwk"] == found.rule_grade.qwk
    assert found.find_interval("rule_qwk") == found.rule_grade.qwk_interval
    assert found.find_interval("dice") == found.dice_interval


def test_table_of_slides_gives_dice_of_classes(tmp_path: Path) -> None:
    rows = read_output_table(write_run(tmp_path) / "test_slides.csv")
    found = {figure.name: figure for figure in compute_figures(rows, "segmentation")}
    figures = make_figures()
    assert figures.classes is not None
    for name, part in figures.classes.by_class.items():
        assert found[f"dice_{name}"].value == pytest.approx(part.dice)
        assert found[f"dice_{name}"].slides == 6
    assert found["rule_accuracy"].value == 1.0
    differences = compute_differences([(row, row) for row in rows], [row["slide_id"] for row in rows], "segmentation")
    assert {"dice_G3", "dice_G4", "dice_G5", "rule_accuracy"} <= {one.figure for one in differences}
    assert {one.difference for one in differences if one.figure == "dice_G3"} == {0.0}


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (RULE, "The limits were chosen on 40 validation slides, for the best κ (0.81 there)."),
        (GleasonRuleChoice.from_settings(GleasonRuleSettings(), "few"), "Origin of the limits: not searched: few."),
        (
            GleasonRuleChoice.from_settings(GleasonRuleSettings(min_area_mm2=0, min_percent=0, secondary="largest")),
            "the next largest one is the secondary one",
        ),
    ],
)
def test_explain_rule_says_limits_and_origin(rule: GleasonRuleChoice, text: str) -> None:
    assert text in explain_rule(rule)


def test_section_without_score_says_so() -> None:
    graded = summarize_rule_grades([grade_slide(1, 2, None, None)], 0)
    figures = make_figures().model_copy(update={"rule_grade": graded})
    summary = make_summary({"test": {}}).model_copy(update={"test": figures, "gleason_rule": RULE})
    section = lay_out_classes(summary)
    assert section is not None
    assert section["agreement"] is None
    assert (
        section["rule"][0]
        == "No slide has a given grade and a Gleason score from its areas (1 graded slides have none)."
    )
