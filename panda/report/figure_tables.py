"""Tables of a run's figures: its splits beside each other, and the parts of a split by provider or grade."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from panda.report.interpretation import headline_keys, interval, interval_text, why_none
from panda.report.run_folder import mapping, number
from panda.report.table import UNITS, Cell, Head, Table, cell, figure_kind, figure_name, head, show

_PART_COLUMNS = (
    "slides", "slides_with_cancer", "dice_mean_slide", "dice", "iou", "precision", "recall", "pr_auc",
    "fp_mm2_benign_slides", "cancer_outside_tissue_percent",
)  # fmt: skip
"""Figures that the tables of providers and grades give."""
_WHY_OF_PART = {
    "dice_mean_slide": "no slide with labelled cancer",
    "dice": "no labelled cancer",
    "iou": "no labelled cancer",
    "precision": "no labelled cancer, or nothing was predicted",
    "recall": "no labelled cancer",
    "pr_auc": "no labelled cancer",
    "fp_mm2_benign_slides": "no benign slide, or one of unknown µm/px",
    "cancer_outside_tissue_percent": "no labelled cancer",
}
_ONLY_AS_SHARE = ("cancer_outside_tissue_px", "cancer_outside_tissue_mm2")
"""Figures of a split that its tables give in per cent alone."""


def splits_table(summary: dict[str, Any]) -> Table:
    """Set the figures of validation and test beside each other.

    Args:
        summary: The run's summary; any part of it may be missing.
    """
    val, test = mapping(summary.get("val")), mapping(summary.get("test"))
    order = [*headline_keys(summary), *val, *test]
    keys = _told(dict.fromkeys(order), (val, test))
    rows = []
    for key in keys:
        kind = figure_kind(key)
        unit = UNITS.get(kind, "")
        cells = [Cell(figure_name(key))]
        for scores in (val, test):
            text = show(scores.get(key), kind)
            ends = interval_text(interval(scores, key), kind)
            cells.append(
                Cell(
                    text and text + unit + (f"  ({ends})" if ends else ""),
                    style="num",
                    why="" if text else why_none(scores, key),
                )
            )
        rows.append(cells)
    heads = [Head("Figure"), Head("Validation", figures=True), Head("Test (95 % interval)", figures=True)]
    return Table(heads, rows, sortable=False)


def _told(keys: Iterable[str], splits: Iterable[dict[str, Any]]) -> list[str]:
    """The figures that a table of splits gives: those that one of them has."""
    scores = list(splits)
    return [k for k in keys if k not in _ONLY_AS_SHARE and any(number(s.get(k)) is not None for s in scores)]


def part_table(scores: dict[str, Any], by: str, title: str, names: Callable[[str], str]) -> Table:
    """Lay out the figures of parts of a split's slides, each over its interval.

    Args:
        scores: Of the split.
        by: Key of the parts, such as `by_provider`.
        title: Of the first column.
        names: What a part is called.
    """
    parts = {name: mapping(part) for name, part in mapping(scores.get(by)).items()}
    keys = _told(dict.fromkeys(k for part in parts.values() for k in part), parts.values())
    if any("dice" in part for part in parts.values()):
        keys = [k for k in _PART_COLUMNS if k in keys]
    keys.sort(key=lambda k: k != "slides")
    rows = []
    for name, part in sorted(parts.items()):
        cells = [Cell(names(name), sort=name)]
        for key in keys:
            kind = figure_kind(key)
            shown = cell(part.get(key), kind, _WHY_OF_PART.get(key, "undefined"))
            if shown.text:
                under = interval_text(interval(part, key), kind)
                shown = replace(shown, under=under, why=str(mapping(part.get("no_interval")).get(key, "")))
            cells.append(shown)
        rows.append(cells)
    intervals = any(cell.under for row in rows for cell in row)
    note = "Below a figure is its 95 % interval; one without rests on a single group of slides." if intervals else ""
    return Table([Head(title), *(head(k) for k in keys)], rows, note=note)


def grade_name(grade: str) -> str:
    """Call a part of `by_grade` by its grade."""
    return f"ISUP\u00a0{grade}" if grade.isdecimal() else "not graded"
