"""Compare two runs slide by slide: differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from panda.choices import name_command
from panda.errors import ManifestError
from panda.inference.slide_score import CALLED_PERCENT, CLASS_PIXELS
from panda.report.run_folder import parse_number
from panda.tables import read_output_table
from panda.tasks.bootstrap import average_known, bootstrap_interval
from panda.tasks.grade_calibration import compute_aurc, measure_grade_reliability
from panda.tasks.grade_metrics import compare_grades
from panda.tasks.target_metrics import Statistics, compute_concordance, list_class_statistics, list_number_statistics

_LEAST_GROUPS = 3
"""Fewest groups of a signed-rank test."""
Row = Mapping[str, str]
Pair = tuple[Row, Row]


@dataclass(frozen=True)
class Difference:
    """A figure of two runs, `a` and `b`, and the difference between them, `b` less `a`.

    Attributes:
        provider: Provider of the slides, or "all".
        slides: Number of slides with the figure in both runs.
        interval: Bootstrap 95 % interval over groups, or None with too few of them.
        p: Two-sided Wilcoxon signed-rank test of the groups' mean differences; None if not computed.
    """

    figure: str
    provider: str
    slides: int
    groups: int
    a: float | None
    b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None


def compute_signed_rank_p(differences: NDArray[np.float64], groups: NDArray[Any]) -> float | None:
    """Test the mean difference of each group, because slides of one patient are not independent.

    Args:
        differences: One for each slide, (N,), without NaN.
        groups: Group of each slide, (N,).

    Returns:
        Two-sided p of Wilcoxon's signed-rank test; 1 if all differences are zero, None with fewer than 3 groups.
    """
    means = np.array([differences[groups == group].mean() for group in np.unique(groups)])
    if len(means) < _LEAST_GROUPS:
        return None
    return 1.0 if not means.any() else float(wilcoxon(means).pvalue)


def _pool_dice(counts: NDArray[np.float64]) -> float:
    """Compute the Dice over the pixels of all slides; NaN if no label names the class, or cancer."""
    tp, fp, fn = counts.sum(axis=0)
    return float(2 * tp / (2 * tp + fp + fn)) if tp + fn else float("nan")


def _measure_ece(rows: NDArray[np.float64]) -> float:
    """Compute the calibration error of (N, 3) true and predicted classes and confidences."""
    return measure_grade_reliability(rows[:, 2], rows[:, 0] == rows[:, 1]).ece


def _measure_aurc(rows: NDArray[np.float64]) -> float:
    """Compute the area under the risk-coverage curve, from rows as in `_measure_ece`."""
    return float(compute_aurc(rows[:, 2], rows[:, 0] == rows[:, 1], np.ones(len(rows))))


_AREAS = {"fp_mm2", "cancer_outside_tissue_px"}
Statistic = Callable[[NDArray[Any]], float]

Figures = Mapping[str, tuple[tuple[str, ...], Statistic]]
_LABEL = ("label", "predicted")
_AGREEMENT: dict[str, tuple[tuple[str, ...], Statistic]] = {
    "qwk": (_LABEL, lambda pairs: compare_grades(pairs)[0]),
    "accuracy": (_LABEL, lambda pairs: compare_grades(pairs)[1]),
}
_CONFIDENCE: dict[str, tuple[tuple[str, ...], Statistic]] = {
    "ece": ((*_LABEL, "confidence"), _measure_ece),
    "aurc": ((*_LABEL, "confidence"), _measure_aurc),
}


def _score_classes(rows: NDArray[np.float64]) -> Statistics:
    true, predicted = rows.astype(np.int64).T
    return list_class_statistics(true, predicted, int(rows.max(initial=0)) + 1)


def _score_numbers(rows: NDArray[np.float64]) -> Statistics:
    return list_number_statistics(*rows.T)


def _score_risks(rows: NDArray[np.float64]) -> Statistics:
    return {"concordance": partial(compute_concordance, *rows.T)}


def _make_figures(
    columns: tuple[str, ...], names: Sequence[str], score: Callable[[NDArray[Any]], Statistics]
) -> dict[str, tuple[tuple[str, ...], Statistic]]:
    """Return the figures of these names, each over rows of the columns."""

    def compute(name: str, rows: NDArray[Any]) -> float:
        return float(score(rows)[name](np.ones(len(rows))))

    return {name: (columns, partial(compute, name)) for name in names}


FIGURES: Mapping[str, Figures] = {
    "segmentation": {
        "dice": (("tp_px", "fp_px", "fn_px"), _pool_dice),
        "dice_mean_slide": (("dice",), average_known),
        "fp_mm2_benign_slides": (("benign_fp_mm2",), average_known),
        "slide_specificity": (("benign_spared",), average_known),
        "rule_qwk": (("isup_grade", "rule_isup"), lambda pairs: compare_grades(pairs)[0]),
        "rule_accuracy": (("isup_grade", "rule_isup"), lambda pairs: compare_grades(pairs)[1]),
    },
    **dict.fromkeys(("isup", "cancer"), _AGREEMENT | _CONFIDENCE),
    "classes": _make_figures(_LABEL, ("balanced_accuracy", "accuracy", "kappa"), _score_classes) | _CONFIDENCE,
    "ordinal": _AGREEMENT | _make_figures(_LABEL, ("balanced_accuracy", "kappa"), _score_classes) | _CONFIDENCE,
    "regression": _make_figures(_LABEL, ("r2", "mae", "pearson", "spearman"), _score_numbers),
    "survival": _make_figures(("time", "event", "predicted"), ("concordance",), _score_risks),
}
"""Figures of each scoring: the columns of the table of slides, and the statistic over their rows."""


def list_figures(rows: Sequence[Row], scoring: str) -> Figures:
    """Return the figures of a scoring, and the Dice of each class whose pixels a table of slides has."""
    first = CLASS_PIXELS[0]
    names = [column.removeprefix(first) for column in (rows[0] if rows else ()) if column.startswith(first)]
    by_class = {f"dice_{name}": (tuple(f"{kind}{name}" for kind in CLASS_PIXELS), _pool_dice) for name in names}
    return {**FIGURES[scoring], **by_class}


def compute_differences(rows: Sequence[Pair], groups: Sequence[str], scoring: str) -> list[Difference]:
    """Compare two runs by each figure that a slide has, over all slides and by provider.

    `rows` are the rows of each slide in both tables, `groups` the group of each slide.
    """
    providers = sorted({a.get("provider", "") for a, _ in rows} - {""})
    figures = list_figures([a for a, _ in rows], scoring)
    each = [(figure, provider) for provider in ("all", *providers) for figure in figures]
    found = (compute_difference(rows, groups, scoring, *one) for one in each)
    return [difference for difference in found if difference is not None]


def compute_difference(
    rows: Sequence[Pair], groups: Sequence[str], scoring: str, figure: str, provider: str = "all"
) -> Difference | None:
    """Compare two runs by one figure, over all slides or those of a provider.

    The result is None if no slide has the figure in both runs, or it is not in `list_figures`.
    """
    figures = list_figures([a for a, _ in rows], scoring)
    if figure not in figures:
        return None
    columns, statistic = figures[figure]
    chosen = np.array([provider in ("all", a.get("provider", "")) for a, _ in rows])
    sides = [np.array([[read_value(row[side], column) for column in columns] for row in rows]) for side in (0, 1)]
    both = chosen & np.isfinite(sides[0]).all(axis=1) & np.isfinite(sides[1]).all(axis=1)
    if not both.any():
        return None
    a, b, drawn = sides[0][both], sides[1][both], np.array(groups)[both]

    def subtract(pairs: NDArray[Any]) -> float:
        return statistic(pairs[:, len(columns) :]) - statistic(pairs[:, : len(columns)])

    pairs = np.hstack([a, b])
    ends = bootstrap_interval(pairs, drawn, seed=0, statistic=subtract)
    was, is_, gap = (None if np.isnan(value) else value for value in (statistic(a), statistic(b), subtract(pairs)))
    interval = None if np.isnan(ends).any() else ends
    p = compute_signed_rank_p((b - a)[:, 0], drawn) if figure == "dice_mean_slide" else None
    return Difference(figure, provider, len(a), len(np.unique(drawn)), was, is_, gap, interval, p)


def read_slide_rows(path: Path, scoring: str) -> list[dict[str, str]]:
    """Read a table of scored slides, `test_slides.csv` or `val_slides.csv`.

    Raises:
        ManifestError: If a row has no slide id or that of another row, or a figure is not empty and no number, from 0
            unless a grading predicts numbers.
    """
    rows, known = read_output_table(path), set[str]()
    columns = {name for names, _ in list_figures(rows, scoring).values() for name in names} | _AREAS
    least = -math.inf if scoring in ("regression", "survival") else 0
    for number, row in enumerate(rows, start=2):
        slide_id = row.get("slide_id")
        figures = {name: row[name] for name in sorted(columns & row.keys())}
        faults = [f"{name} is {cell!r}" for name, cell in figures.items() if not _is_figure(cell, least)]
        if not slide_id or slide_id in known:
            faults.append(f"slide_id is {slide_id!r}" + " again" * bool(slide_id))
        if faults:
            raise ManifestError(
                f"{path}, row {number}: {', '.join(faults)}; restore the file, or evaluate the run again"
            )
        known.add(slide_id or "")
    return rows


def _is_figure(cell: str, least: float) -> bool:
    return not cell or ((value := parse_number(cell)) is not None and value >= least)


def read_value(row: Row, column: str) -> float:
    """Read a figure of a slide; NaN if it has none."""
    if column in ("benign_fp_mm2", "benign_spared"):
        labelled = [parse_number(row.get(key)) for key in ("tp_px", "fn_px", "cancer_outside_tissue_px")]
        if any(labelled) or None in labelled:
            return float("nan")
        if column == "benign_fp_mm2":
            return read_value(row, "fp_mm2")
        called = read_value(row, "called_percent_of_tissue")
        return called if math.isnan(called) else float(called <= CALLED_PERCENT)
    value = parse_number(row.get(column))
    return float("nan") if value is None else value


MUST_AGREE: Mapping[str, Sequence[tuple[str, str]]] = {
    "segmentation": (
        ("provider", "its provider"),
        ("isup_grade", "its grade"),
        ("cancer_outside_tissue_px", "the labelled cancer outside its tissue"),
        ("labelled_px", "its labelled cancer"),
    ),
    **dict.fromkeys(("isup", "cancer", "classes", "ordinal"), (("provider", "its provider"), ("label", "its class"))),
    "regression": (("provider", "its provider"), ("label", "its number")),
    "survival": (("provider", "its provider"), ("time", "its time"), ("event", "its event")),
}
"""Columns that must be equal in both runs, and their names in messages."""


def pair_rows(names: tuple[str, str], tables: tuple[Sequence[Row], Sequence[Row]], scoring: str) -> list[Pair]:
    """Pair the rows of the same slides in two tables, `test_slides.csv` or `val_slides.csv`, by slide id.

    Raises:
        ManifestError: If the slides or their labels differ, or a table lacks a column.
    """
    labels = [key for key, _ in MUST_AGREE[scoring] if key != "provider"]
    columns = ("tp_px", "fp_px", "fn_px") if scoring == "segmentation" else (*labels, "predicted")
    for name, table in zip(names, tables, strict=True):
        for column in ("slide_id", *columns):
            if any(column not in row for row in table):
                raise ManifestError(
                    f"{name}: its table of slides has no {column}: it was edited or is of an older version, train again"
                )
    a, b = ({row["slide_id"]: row for row in table} for table in tables)
    if missing := sorted(set(a) ^ set(b)):
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise ManifestError(
            f"the slides differ: {len(set(a) - set(b))} only in {names[0]}, {len(set(b) - set(a))} only in "
            f"{names[1]} ({shown}). Trainings: give data.splits=…/splits.csv of one run. "
            f"Evaluations: map the same slides with {name_command('infer')} slides=… labels=…. "
            "Slides that a run skipped are in its failures.csv"
        )
    pairs = [(a[slide_id], b[slide_id]) for slide_id in sorted(a)]
    for one, other in pairs:
        for key, what in MUST_AGREE[scoring]:
            was, is_ = (read_truth(row, key) for row in (one, other))
            if was != is_:
                raise ManifestError(
                    f"the truth differs: for {one['slide_id']}, {what} is {was} in {names[0]} and {is_} in {names[1]}: "
                    "score both on the same masks, at the same resolution, with the same version"
                )
    return pairs


def read_truth(row: Row, key: str) -> str | float | None:
    """Read a column of `MUST_AGREE`: a number if it is one."""
    if key == "labelled_px":
        return (parse_number(row.get("tp_px")) or 0) + (parse_number(row.get("fn_px")) or 0)
    value = parse_number(row.get(key))
    return row.get(key) if value is None else value


def choose_groups(pairs: Sequence[Pair]) -> tuple[list[str], bool]:
    """Choose the group of each slide, its own id if none is known, and say whether the runs agree.

    If the groupings differ, the one with fewer groups is chosen, because it is more cautious.
    """
    sides = [[pair[side].get("group") or pair[side]["slide_id"] for pair in pairs] for side in (0, 1)]
    return min(sides, key=lambda side: len(set(side))), sides[0] == sides[1]
