"""Tables of a run's figures: its splits beside each other, and the parts of a split by provider or grade."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from panda.report.interpretation import explain_missing, format_interval, list_headlines
from panda.report.run_summary import RunSummary
from panda.report.table import UNITS, Cell, Head, Table, find_format, format_value, make_cell, make_head, name_figure
from panda.report.trivial_answers import find_trivial_answer
from panda.tasks.figures import Figures

_PART_COLUMNS = (
    "slides", "slides_with_cancer", "dice", "dice_mean_slide", "iou", "precision", "recall", "pr_auc",
    "slide_sensitivity", "slide_specificity", "slide_auroc", "fp_mm2_benign_slides", "cancer_outside_tissue_percent",
    "labelled_mm2", "predicted_mm2",
)  # fmt: skip
"""Columns of the tables of providers, grades and classes."""
_WHY_OF_PART = {
    "dice_mean_slide": "no slide with labelled cancer",
    "dice": "no labelled cancer",
    "iou": "no labelled cancer",
    "precision": "no labelled cancer, or nothing was predicted",
    "recall": "no labelled cancer",
    "slide_sensitivity": "no slide with labelled cancer",
    "slide_specificity": "no benign slide",
    "slide_auroc": "needs slides with and without cancer",
    "pr_auc": "no labelled cancer",
    "fp_mm2_benign_slides": "no benign slide, or one of unknown µm/px",
    "cancer_outside_tissue_percent": "no labelled cancer",
    **dict.fromkeys(("labelled_mm2", "predicted_mm2"), "µm/px of a slide is unknown"),
    "qwk": "all given and found grades are the same one",
    "within_band": "no graded slide",
}
_NO_ROW = (
    *("cancer_outside_tissue_px", "cancer_outside_tissue_mm2"),
    *(f"all_tissue_{name}{of}" for name in ("dice", "iou", "precision") for of in ("", "_mean_slide")),
    "all_tissue_fp_mm2_benign_slides",
    *("cancer_of_tiles", "median_mae"),
)
"""Figures of a split that its tables give in per cent, or below the figure of which they are the trivial answer."""


def make_splits_table(summary: RunSummary) -> Table:
    """Lay out the figures of validation and test beside each other."""
    splits = (summary.val, summary.test)
    order = [key for scores in splits if scores is not None for key in scores.numbers]
    rows = []
    for key in _select_keys([*list_headlines(summary), *order], [scores for scores in splits if scores is not None]):
        kind = find_format(key)
        cells = [Cell(name_figure(key))]
        for scores in splits:
            text = format_value(scores.numbers.get(key), kind) if scores else ""
            ends = format_interval(scores.find_interval(key), kind) if scores else ""
            trivial = find_trivial_answer(scores, key) if scores and text else None
            why = "" if text else explain_missing(scores, key)
            shown = text and text + UNITS.get(kind, "") + (f"  ({ends})" if ends else "")
            under = trivial.describe(key) if trivial else ""
            cells.append(Cell(shown, style="num", why=why, under=under))
        rows.append(cells)
    heads = [Head("Figure"), Head("Validation", figures=True), Head("Test (95 % interval)", figures=True)]
    return Table(heads, rows, sortable=False)


def _select_keys(keys: Iterable[str], splits: Collection[Figures]) -> list[str]:
    """Return the keys, each once, that have a value in one of the splits."""
    known = {key for scores in splits for key, value in scores.numbers.items() if value is not None}
    return [key for key in dict.fromkeys(keys) if key in known and key not in _NO_ROW]


def make_part_table(parts: Mapping[str, Figures], title: str, name_part: Callable[[str], str]) -> Table:
    """Lay out the figures of parts of a split's slides, each over its interval.

    `title` heads the first column, and `name_part` turns the key of a part into its name on the page.
    """
    keys = _select_keys((key for part in parts.values() for key in part.numbers), parts.values())
    if any("dice" in part.numbers for part in parts.values()):
        keys = [key for key in _PART_COLUMNS if key in keys]
    keys.sort(key=lambda key: key != "slides")
    rows = []
    for name, part in sorted(parts.items()):
        cells = [Cell(name_part(name), sort=name)]
        for key in keys:
            kind = find_format(key)
            shown = make_cell(part.numbers.get(key), kind, _WHY_OF_PART.get(key, "undefined"))
            if shown.text:
                under = format_interval(part.find_interval(key), kind)
                shown = replace(shown, under=under, why=part.explain_no_interval(key))
            cells.append(shown)
        rows.append(cells)
    intervals = any(cell.under for row in rows for cell in row)
    note = (
        "Below a figure is its 95 % interval. A figure of fewer than five groups of slides has none."
        if intervals
        else ""
    )
    return Table([Head(title), *(make_head(key) for key in keys)], rows, note=note)


def name_grade(grade: str) -> str:
    """Name a part of `by_grade`."""
    return f"ISUP\u00a0{grade}" if grade.isdecimal() else "not graded"
