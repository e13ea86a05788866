"""Scores of pixels, from histograms of their probabilities.

Every probability is counted in one of 1,000 bins, separately for cancer and for all other pixels. At each threshold
k / 1000 that gives the same true and false positives as a comparison of every pixel (`probability >= k / 1000`), in
memory that does not grow with the slides. Histograms add up over patches, slides and devices.

A histogram is (2, BINS) int64: row 0 cancer, row 1 other pixels. Another shape or type raises a `ValueError`. Scores
are exact at the thresholds 0, 0.001, … 0.999, and another threshold raises a `ValueError`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

from panda.tasks.bins import BINS


def find_bins(prob: Tensor) -> Tensor:
    """Find the highest threshold that each probability reaches.

    Args:
        prob: Probabilities in [0, 1], floating point, any shape.

    Returns:
        The largest k with prob >= k / 1000 (both as float64), at most 999; int64 of the same shape.

    Raises:
        ValueError: If a value is outside [0, 1] or NaN.
    """
    _require_probabilities(prob.is_floating_point() and bool(_are_probabilities(prob).all()))
    return _find_bins(prob)


def _require_probabilities(fine: bool) -> None:
    if not fine:
        raise ValueError("probabilities must be floating point in [0, 1] (apply a sigmoid to logits)")


def _are_probabilities(prob: Tensor) -> Tensor:
    return (prob >= 0) & (prob <= 1)


def _find_bins(prob: Tensor) -> Tensor:
    """Find the bins of probabilities that are known to be in [0, 1], see `find_bins`."""
    prob = prob.detach()
    if prob.dtype not in (torch.float32, torch.float64):
        prob = prob.float()  # exact for shorter types
    edges = _list_edges(prob.dtype, prob.device)
    bins = (prob * BINS).long().clamp_(max=BINS - 1)
    # The product is rounded and can be one bin off near an edge, so comparisons decide.
    bins -= (prob < edges[bins]).long()
    bins += (prob >= edges[bins + 1]).long()
    return bins


@functools.cache  # a copy to a GPU in every batch would wait for it
def _list_edges(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the smallest number of a dtype that is at least k / 1000, for each k, and infinity; (BINS + 1,).

    A comparison with these in float32 equals one with k / 1000 in float64, on devices without float64 too.
    """
    exact = torch.arange(BINS + 1, dtype=torch.float64) / BINS
    edges = exact.to(dtype)
    short = edges.double() < exact
    edges = torch.where(short, torch.nextafter(edges, torch.full_like(edges, math.inf)), edges)
    edges[BINS] = math.inf
    return edges.to(device)


def count_probabilities(prob: Tensor, target: Tensor, where: Tensor | None = None) -> Tensor:
    """Count probabilities for cancer and for other pixels.

    Args:
        prob: Probabilities in [0, 1], floating point, any shape.
        target: Cancer, bool (or 0 and 1), the same shape.
        where: Pixels that count, bool, the same shape; None for all.

    Returns:
        (2, BINS) int64 on the same device.

    Raises:
        ValueError: If shapes differ, or a value is outside [0, 1].
    """
    counts = _count_cells(prob, target, where)
    _require_probabilities(not bool(counts[_FAULTY]))
    return counts[: 2 * BINS].view(2, BINS)


_FAULTY = 2 * BINS
"""Cell of the pixels that count and whose value is no probability. The cell after it has those that do not count."""


def _count_cells(prob: Tensor, target: Tensor, where: Tensor | None) -> Tensor:
    """Count as `count_probabilities` does, without an operation that waits for a GPU.

    Returns:
        (2 * BINS + 1,) int64: cancer, other pixels, and the number of values that are no probabilities.
    """
    for name, tensor in (("target", target), ("where", where)):
        if tensor is not None and tensor.shape != prob.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} and prob {tuple(prob.shape)}: must be the same")
    _require_probabilities(prob.is_floating_point())
    fine = _are_probabilities(prob)
    cells = _find_bins(torch.where(fine, prob, 0)) + BINS * (~target.bool()).long()
    cells = torch.where(fine, cells, _FAULTY)
    if where is not None:
        cells = torch.where(where.bool(), cells, _FAULTY + 1)
    return count_numbers(cells, _FAULTY + 2)[: _FAULTY + 1]


def count_numbers(numbers: Tensor, count: int) -> Tensor:
    """Count how often each number below `count` occurs, (count,) int64, without waiting for a GPU."""
    if numbers.is_cuda:  # there bincount waits for the largest value
        return torch.histc(numbers, count, 0, count)
    return torch.bincount(numbers.flatten(), minlength=count)


class PixelHistogram(Metric):
    """Sum of `count_probabilities` over batches and devices; a value that is no probability raises in `compute`."""

    full_state_update = False
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(_FAULTY + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prob: Tensor, target: Tensor, where: Tensor | None = None) -> None:
        """Add a batch, see `count_probabilities`."""
        self.counts += _count_cells(prob, target, where)

    def compute(self) -> Tensor:
        """Return the histogram, (2, BINS) int64."""
        _require_probabilities(not bool(self.counts[_FAULTY]))
        return self.counts[:_FAULTY].view(2, BINS).clone()


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


def compute_curve(hist: ArrayLike | Tensor) -> ThresholdCurve:
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


def _to_counts(hist: Any) -> NDArray[np.int64]:
    """Return any histogram as (2, BINS) int64 on the CPU."""
    hist = np.asarray(hist.detach().cpu() if isinstance(hist, Tensor) else hist)
    if hist.shape != (2, BINS) or not np.issubdtype(hist.dtype, np.integer):
        raise ValueError(f"a histogram is (2, {BINS}) integers, not {hist.shape} {hist.dtype}")
    return np.asarray(hist, dtype=np.int64)


def compute_areas(hist: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the areas under the precision-recall curve and the receiver operating curve.

    They equal `average_precision_score` and `roc_auc_score` of scikit-learn for probabilities rounded down to a
    multiple of 0.001. scikit-learn takes one histogram at a time, and the bootstrap has thousands.

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


def score_threshold(hist: ArrayLike | Tensor, threshold: float) -> PixelScores:
    """Score one histogram at one threshold."""
    k = find_threshold_bin(threshold)
    curve = compute_curve(hist)
    ratios = (float(score[k]) for score in (curve.dice, curve.iou, curve.precision, curve.recall))
    counts = (int(count[k]) for count in (curve.tp, curve.fp, curve.fn))
    return PixelScores(*counts, *(None if math.isnan(ratio) else ratio for ratio in ratios))


def compute_dice(hist: ArrayLike | Tensor, threshold: float) -> float:
    """Compute the Dice of a histogram at a threshold; NaN if there is neither cancer nor a positive."""
    return float(compute_curve(hist).dice[find_threshold_bin(threshold)])


def pool_histograms(histograms: Mapping[str, ArrayLike | Tensor]) -> NDArray[np.int64]:
    """Add up the histograms of slides; zeros without slides."""
    return sum((_to_counts(hist) for hist in histograms.values()), start=np.zeros((2, BINS), dtype=np.int64))
