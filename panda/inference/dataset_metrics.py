"""Figures of many slides at a frozen threshold, with intervals: of all, by provider and by grade."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panda.inference.evaluate import SCORES, SlideScore
from panda.tasks.bootstrap import percentile_interval, resampled_sums
from panda.tasks.metrics import BINS, areas, scores_at
from panda.tasks.threshold import ThresholdChoice

_MEANS = (*(f"{name}_mean_slide" for name in SCORES), "fp_mm2_benign_slides")
_AREAS = ("pr_auc", "pixel_auroc")
FIGURES = (*SCORES, *_MEANS, *_AREAS)
"""Figures that have an interval."""


def summarise(scores: Sequence[SlideScore], choice: ThresholdChoice, seed: int) -> dict[str, Any]:
    """Pooled and per-slide figures at a frozen threshold, as plain data.

    Args:
        scores: One a slide.
        choice: The threshold; a slide whose provider has one of its own is scored at that.
        seed: Of the bootstrap.

    Returns:
        The figures that `docs/summary.md` describes, of all slides, and the same `by_provider` and `by_grade`.
        Undefined figures are None.
    """
    figures = _figures(scores, choice, seed)
    of: dict[str, Callable[[SlideScore], str]] = {
        "by_provider": lambda score: score.record.provider,
        "by_grade": lambda score: "none" if score.record.isup_grade is None else str(score.record.isup_grade),
    }
    for key, part in of.items():
        figures[key] = {
            name: _figures([score for score in scores if part(score) == name], choice, seed)
            for name in sorted({part(score) for score in scores})
        }
    return figures


def plain_interval(ends: tuple[float, float]) -> list[float] | None:
    """An interval as plain data; None where it is undefined."""
    return None if np.isnan(ends).any() else [float(end) for end in ends]


def _figures(scores: Sequence[SlideScore], choice: ThresholdChoice, seed: int) -> dict[str, Any]:
    groups = [score.record.group for score in scores]
    sums = np.array([_of_slide(score, choice) for score in scores]).reshape(-1, 3 + 2 * len(_MEANS))
    hists = np.array([score.histogram for score in scores], dtype=np.int64).reshape(-1, 2, BINS)
    everything = hists.sum(axis=0)
    values = dict(zip(FIGURES, (*_from_sums(sums.sum(axis=0)), *_from_histograms(everything)), strict=True))
    drawn = np.column_stack(
        [
            resampled_sums(sums, groups, _from_sums, seed=seed),
            resampled_sums(hists, groups, _from_histograms, seed=seed),
        ]
    )
    found: dict[str, Any] = {
        "slides": len(scores),
        "slides_with_cancer": sum(bool(score.histogram[0].any()) for score in scores),
        "benign_slides": sum(not score.labelled_px for score in scores),
        "groups": len(set(groups)),
    }
    notes = {}
    for column, (name, value) in enumerate(values.items()):
        bears = sums[:, 3 + len(_MEANS) + _MEANS.index(name)] > 0 if name in _MEANS else np.ones(len(scores), bool)
        bearing = len(set(np.asarray(groups)[bears]))
        ends = plain_interval(percentile_interval(drawn[:, column])) if bearing > 1 else None
        found |= {name: None if math.isnan(value) else float(value), f"{name}_interval": ends}
        if not math.isnan(value) and ends is None:
            notes[name] = f"{bearing} group of slides bears on it, an interval needs two"
    outside, labelled = sum(score.outside_px for score in scores), sum(score.labelled_px for score in scores)
    outside_mm2 = [score.mm2(score.outside_px) for score in scores if score.outside_px]
    return found | {
        "no_interval": notes,
        "cancer_percent_of_tissue": 100 * float(everything[0].sum() / everything.sum()) if everything.any() else None,
        "all_tissue_dice": scores_at(everything, 0.0)["dice"] if everything[0].any() else None,
        "cancer_outside_tissue_px": outside,
        "cancer_outside_tissue_mm2": None if None in outside_mm2 else sum((area for area in outside_mm2 if area), 0.0),
        "cancer_outside_tissue_percent": 100 * outside / labelled if labelled else None,
    }


def _of_slide(score: SlideScore, choice: ThresholdChoice) -> list[float]:
    """What of a slide adds up: tp, fp, fn; its part of the sums of `_MEANS`; and whether it has a part in them.

    An area in mm² that is unknown is nan, and so is then the mean over all slides: a part of them is not their mean.
    """
    threshold = choice.of(score.record.provider)
    at, row = score.at(threshold), score.row(threshold)
    parts = [None if row[name] is None else float(row[name]) for name in SCORES]
    area = math.nan if row["fp_mm2"] is None else float(row["fp_mm2"])
    parts.append(None if score.labelled_px else area)
    counts = [float(at[name] or 0) for name in ("tp", "fp", "fn")]
    return [*counts, *(part or 0.0 for part in parts), *(float(part is not None) for part in parts)]


def _from_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """`SCORES` and `_MEANS` (…, 9) from sums (…, 13) of `_of_slide`; nan where there is nothing to score.

    As a slide without cancer has no Dice, neither have slides without: it would be 0 however small the fault.
    """
    tp, fp, fn = np.moveaxis(sums[..., :3], -1, 0)
    above = np.stack([2 * tp, tp, tp, tp], axis=-1)
    below = np.stack([2 * tp + fp + fn, tp + fp + fn, tp + fp, tp + fn], axis=-1) * (tp + fn > 0)[..., None]
    above = np.concatenate([above, sums[..., 3 : 3 + len(_MEANS)]], axis=-1)
    below = np.concatenate([below, sums[..., 3 + len(_MEANS) :]], axis=-1)
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))


def _from_histograms(hists: NDArray[Any]) -> NDArray[np.float64]:
    """`_AREAS` (…, 2) of histograms (…, 2, BINS)."""
    return np.stack(areas(hists), axis=-1)
