"""The part of an inference's page about slides with labels: the figures of `summary.json`, as on a training's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from panda.report.confusion import lay_out_confusion
from panda.report.figure_tables import make_part_table, name_grade
from panda.report.interpretation import (
    HEADLINES,
    explain_outside,
    explain_segmentation,
    format_interval,
    make_figure_cards,
)
from panda.report.run_summary import AreaAgreement, EvaluationSummary, TrainingComparison, read_json_summary
from panda.report.table import Cell, Head, Table, find_format, format_value, make_cell, name_figure
from panda.report.trivial_answers import list_alarms, list_summary_alarms


def lay_out_evaluation(output: Path) -> dict[str, Any] | None:
    """Return the section of an output whose slides have labels; None without an evaluation."""
    summary, _ = read_json_summary(output)
    if not isinstance(summary, EvaluationSummary):
        return None
    test = summary.test
    alarms = [alarm.text for alarm in list_summary_alarms(summary)]
    alarms += [f"Grades: {alarm.text}" for alarm in list_alarms(summary.grades)] if summary.grades else []
    text = explain_segmentation(test)
    meaning = [text[:1].upper() + text[1:], *explain_outside(test.numbers)]
    return {
        "alarms": alarms,
        "cards": make_figure_cards(test, (*HEADLINES["segmentation"], "slide_auroc", "pr_auc")),
        "meaning": [*meaning, *_explain_agreement(summary.agreement)],
        "notes": summary.notes,
        "comparison": _tabulate_comparison(summary.against_training) if summary.against_training else None,
        "providers": make_part_table(test.by_provider, "Provider", str),
        "grades": make_part_table(test.by_grade, "Grade", name_grade),
        "graded": _lay_out_grades(summary),
    }


def _explain_agreement(found: AreaAgreement | None) -> list[str]:
    if found is None:
        return []
    ends = (format_value(value, "mm2") for value in (found.lower_limit_mm2, found.upper_limit_mm2))
    return [
        f"The tumour area found is {found.mean_difference_mm2:+.3f} mm² from the labelled one on average over "
        f"{found.slides} slides. The limits of agreement are {' and '.join(ends)} mm² (Bland and Altman)."
    ]


def _tabulate_comparison(found: list[TrainingComparison]) -> Table:
    rows = []
    for one in found:
        kind = find_format(one.figure)
        if one.is_within is None:
            verdict = Cell(why="the test of the training has no interval")
        elif one.is_within:
            verdict = Cell("within the interval")
        else:
            verdict = Cell("below the interval" if one.here < one.test else "above the interval", style="bad")
        there = Cell(
            format_value(one.test, kind), one.test, style="num", under=format_interval(one.test_interval, kind)
        )
        rows.append([Cell(name_figure(one.figure)), make_cell(one.here, kind), there, verdict])
    heads = [Head("Figure"), Head("Here", figures=True), Head("Training", "test, 95 % interval", True), Head("Verdict")]
    return Table(heads, rows, sortable=False)


def _lay_out_grades(summary: EvaluationSummary) -> dict[str, Any] | None:
    """Return the agreement of the predicted with the given grades; None without a grader."""
    found = summary.grades
    if found is None:
        return None
    names = [name_grade(str(number)) for number in range(len(found.confusion))]
    if len(names) == 2:
        names = ["benign", "cancer"]
    return {
        "cards": make_figure_cards(found, HEADLINES["isup"]),
        "confusion": lay_out_confusion(found.confusion, names, names, "given ↓   predicted →"),
    }
