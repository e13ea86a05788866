"""Scores of pixels, from histograms of their probabilities, which `panda.tasks.pixel_histogram` counts.

At each threshold k / 1000 they equal those of a comparison of every pixel (`probability >= k / 1000`). Histograms add
up over patches, slides and devices.

A histogram is (2, BINS) int64: row 0 cancer, row 1 other pixels. Another shape or type raises a `ValueError`. Scores
are exact at the thresholds 0, 0.001, … 0.999, and another threshold raises a `ValueError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from panda.tasks.bins import BINS


@dataclass(frozen=True)
class ThresholdCurve:
    """Scores at each threshold. A pixel is positive if its probability is at least the threshold.

    All arrays are (BINS,). Counts are int64 pixels. Scores are float64, NaN for 0 / 0. Without cancer and without a
    positive Dice is NaN; without cancer but with positives it is 0.
    """

    thresholds: NDArray[np.float64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    dice: NDArray[np.float64]
    iou: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def compute_curve(hist: ArrayLike) -> ThresholdCurve:
    """Score a histogram at every threshold."""
    cancer, other = _to_counts(hist)
    tp = cancer[::-1].cumsum()[::-1]
    fp = other[::-1].cumsum()[::-1]
    fn = cancer.sum() - tp
    return ThresholdCurve(
        thresholds=np.arange(BINS) / BINS,
        tp=tp,
        fp=fp,
        fn=fn,
        dice=divide(2 * tp, 2 * tp + fp + fn),
        iou=divide(tp, tp + fp + fn),
        precision=divide(tp, tp + fp),
        recall=divide(tp, tp + fn),
    )


def divide(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """Divide arrays of shapes that broadcast; NaN if the divisor is 0."""
    scores = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    return np.asarray(np.divide(above, below, out=scores, where=below > 0))


def _to_counts(hist: ArrayLike) -> NDArray[np.int64]:
    """Return any histogram as (2, BINS) int64."""
    hist = np.asarray(hist)
    if hist.shape != (2, BINS) or not np.issubdtype(hist.dtype, np.integer):
        raise ValueError(f"a histogram is (2, {BINS}) integers, not {hist.shape} {hist.dtype}")
    return np.asarray(hist, dtype=np.int64)


def compute_areas(hist: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the areas under the precision-recall curve and the receiver operating curve.

    They equal `average_precision_score` and `roc_auc_score` of scikit-learn for probabilities rounded down to a
    multiple of 0.001. Unrounded probabilities give other areas, most if many are in the first or the last bin, where
    their order is lost. scikit-learn takes one histogram at a time, and the bootstrap has thousands.

    Args:
        hist: Any counts that add up, (…, 2, BINS).

    Returns:
        Average precision, (…), NaN without cancer; AUROC, (…), NaN without cancer or without other pixels.
    """
    cancer, other = np.moveaxis(np.asarray(hist, dtype=np.float64), -2, 0)
    tp, fp = (row[..., ::-1].cumsum(axis=-1)[..., ::-1] for row in (cancer, other))
    precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        average = (cancer * precision).sum(axis=-1) / tp[..., 0]
    # Sums of fractions can be above 1 by rounding.
    return np.minimum(average, 1), compute_roc_area(cancer, other)


def compute_roc_area(cancer: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the area under the ROC curve, (…): the share of pairs in which cancer has the higher score.

    A pair with equal scores counts half. The area is NaN without cancer or without others.

    Args:
        cancer: Amount of cancer with each of n scores, from low to high, (…, n).
        other: Amount of the others, (…, n).
    """
    ranked_lower = other.cumsum(axis=-1) - other / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (cancer * ranked_lower).sum(axis=-1) / (cancer.sum(axis=-1) * other.sum(axis=-1))
    return np.asarray(np.minimum(area, 1))  # sums of fractions can be above 1 by rounding


def find_threshold_bin(threshold: float) -> int:
    """Return the k of a threshold k / 1000."""
    k = round(threshold * BINS)
    if not 0 <= k < BINS or abs(threshold - k / BINS) > 1e-9:
        raise ValueError(f"threshold {threshold}: histograms give scores at 0, 0.001, … 0.999 only")
    return k


@dataclass(frozen=True)
class PixelScores:
    """Scores of pixels at one threshold: counts, and ratios that are None for 0 / 0."""

    tp: int
    fp: int
    fn: int
    dice: float | None
    iou: float | None
    precision: float | None
    recall: float | None


def score_threshold(hist: ArrayLike, threshold: float, missed: int = 0) -> PixelScores:
    """Score one histogram at one threshold, with `missed` cancer pixels that are in no bin."""
    k = find_threshold_bin(threshold)
    counts = _to_counts(hist)
    tp, fp = counts[:, k:].sum(axis=1).tolist()
    fn = int(counts[0, :k].sum()) + missed
    below = (2 * tp + fp + fn, tp + fp + fn, tp + fp, tp + fn)
    ratios = (above / total if total else None for above, total in zip((2 * tp, tp, tp, tp), below, strict=True))
    return PixelScores(tp, fp, fn, *ratios)


def compute_dice(hist: ArrayLike, threshold: float) -> float:
    """Compute the Dice of a histogram at a threshold; NaN if there is neither cancer nor a positive."""
    return float(compute_curve(hist).dice[find_threshold_bin(threshold)])


def pool_histograms(histograms: Mapping[str, ArrayLike]) -> NDArray[np.int64]:
    """Add up the histograms of slides; zeros without slides."""
    return sum((_to_counts(hist) for hist in histograms.values()), start=np.zeros((2, BINS), dtype=np.int64))
