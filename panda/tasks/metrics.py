"""Scores for pixels, from histograms of probability.

Pixels are not kept: every probability falls into one of 1,000 bins, counted apart for cancer and for all
other pixels. At each threshold k / 1000 that gives true and false positives exactly as comparing every pixel
would (`probability >= k / 1000`), in memory that does not grow with the slides. Histograms add up over
patches, slides and devices.

A histogram is (2, BINS) int64: row 0 cancer, row 1 other pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

BINS = 1000
"""Thresholds that can be asked for: 0, 0.001, … 0.999."""


@overload
def find_bins(prob: Tensor) -> Tensor: ...
@overload
def find_bins(prob: NDArray[np.floating]) -> NDArray[np.int64]: ...
def find_bins(prob: Tensor | NDArray[np.floating]) -> Tensor | NDArray[np.int64]:
    """Find the highest threshold that each probability reaches.

    Args:
        prob: Any shape, floating point in [0, 1].

    Returns:
        int64 of the same shape: the largest k with prob >= k / 1000 (both as float64), at most 999.

    Raises:
        ValueError: A value outside [0, 1] or not a number.
    """
    if isinstance(prob, np.ndarray):
        return find_bins(torch.tensor(prob)).numpy()
    if not prob.is_floating_point() or not bool(((prob >= 0) & (prob <= 1)).all()):
        raise ValueError("probabilities must be floating point in [0, 1] (apply a sigmoid to logits)")
    prob = prob.detach()
    if prob.dtype not in (torch.float32, torch.float64):
        prob = prob.float()  # exact for the shorter types
    edges = _edges(prob.dtype).to(prob.device)
    bins = (prob * BINS).long().clamp_(max=BINS - 1)
    # The product is rounded and may lie a bin off near an edge: the comparisons decide.
    bins -= (prob < edges[bins]).long()
    bins += (prob >= edges[bins + 1]).long()
    return bins


def _edges(dtype: torch.dtype) -> Tensor:
    """(BINS + 1,): for each k the smallest number of this type that is >= k / 1000 in float64; inf last.

    Comparing in float32 with these is the same as comparing in float64 with k / 1000, on devices without
    float64 too.
    """
    exact = torch.arange(BINS + 1, dtype=torch.float64) / BINS
    edges = exact.to(dtype)
    short = edges.double() < exact
    edges = torch.where(short, torch.nextafter(edges, torch.full_like(edges, math.inf)), edges)
    edges[BINS] = math.inf
    return edges


def count_probabilities(prob: Tensor, target: Tensor, where: Tensor | None = None) -> Tensor:
    """Count probabilities for cancer and for other pixels.

    Args:
        prob: Any shape, floating point in [0, 1].
        target: The same shape, bool (or 0 and 1): cancer.
        where: The same shape, bool: pixels that count; None for all.

    Returns:
        (2, BINS) int64 on the same device.

    Raises:
        ValueError: Shapes that differ, or values outside [0, 1].
    """
    for name, tensor in (("target", target), ("where", where)):
        if tensor is not None and tensor.shape != prob.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} and prob {tuple(prob.shape)}: must be the same")
    if where is not None:
        prob, target = prob[where.bool()], target[where.bool()]
    cells = find_bins(prob) + BINS * (~target.bool()).long()
    return torch.bincount(cells.flatten(), minlength=2 * BINS).view(2, BINS)


class PixelHistogram(Metric):
    """`count_probabilities` summed over batches and devices.

    Args:
        **kwargs: Those of `torchmetrics.Metric`.
    """

    full_state_update = False
    cancer: Tensor
    other: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("cancer", torch.zeros(BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("other", torch.zeros(BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prob: Tensor, target: Tensor, where: Tensor | None = None) -> None:
        """Add a batch; arguments and errors as for `count_probabilities`."""
        counts = count_probabilities(prob, target, where)
        self.cancer += counts[0]
        self.other += counts[1]

    def compute(self) -> Tensor:
        """Give the histogram so far.

        Returns:
            (2, BINS) int64.
        """
        return torch.stack([self.cancer, self.other])


@dataclass(frozen=True)
class ThresholdCurve:
    """Scores at each threshold, where a pixel is positive when its probability is at least the threshold.

    All are (BINS,). Counts are int64 pixels; scores float64 and nan where they are 0 / 0. Without cancer and
    without a positive Dice is nan; without cancer but with positives it is 0.
    """

    thresholds: NDArray[np.float64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    dice: NDArray[np.float64]
    iou: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def compute_curve(cancer_hist: ArrayLike | Tensor, other_hist: ArrayLike | Tensor) -> ThresholdCurve:
    """Score every threshold.

    Args:
        cancer_hist: (BINS,) counts of cancer pixels.
        other_hist: (BINS,) counts of other pixels.

    Returns:
        The scores.

    Raises:
        ValueError: Not (BINS,) counts.
    """
    cancer, other = _counts([cancer_hist, other_hist])
    tp = cancer[::-1].cumsum()[::-1]
    fp = other[::-1].cumsum()[::-1]
    fn = cancer.sum() - tp
    return ThresholdCurve(
        thresholds=np.arange(BINS) / BINS,
        tp=tp,
        fp=fp,
        fn=fn,
        dice=_ratio(2 * tp, 2 * tp + fp + fn),
        iou=_ratio(tp, tp + fp + fn),
        precision=_ratio(tp, tp + fp),
        recall=_ratio(tp, tp + fn),
    )


def _ratio(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.float64]:
    scores = np.full(below.shape, np.nan)
    np.divide(above, below, out=scores, where=below > 0)
    return scores


def _counts(hist: Any) -> NDArray[np.int64]:
    """Any histogram as (2, BINS) int64 on the CPU."""
    if isinstance(hist, Tensor):
        hist = hist.detach().cpu().numpy()
    else:
        hist = np.stack([row.detach().cpu().numpy() if isinstance(row, Tensor) else np.asarray(row) for row in hist])
    if hist.shape != (2, BINS) or not np.issubdtype(hist.dtype, np.integer):
        raise ValueError(f"a histogram is (2, {BINS}) integers, not {hist.shape} {hist.dtype}")
    return np.asarray(hist, dtype=np.int64)


def compute_areas(hist: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the areas under the precision-recall and the receiver operating curve.

    They are those of scikit-learn's `average_precision_score` and `roc_auc_score` for probabilities rounded
    down to a multiple of 0.001: what lies in one bin counts as equal.

    Args:
        hist: (…, 2, BINS), any numbers that add up.

    Returns:
        Average precision (…), nan without cancer; and AUROC (…), nan without cancer or without other pixels.
    """
    cancer, other = np.moveaxis(np.asarray(hist, dtype=np.float64), -2, 0)
    tp, fp = (row[..., ::-1].cumsum(axis=-1)[..., ::-1] for row in (cancer, other))
    precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        average = (cancer * precision).sum(axis=-1) / tp[..., 0]
    # Sums of fractions may pass 1 by rounding.
    return np.minimum(average, 1), compute_roc_area(cancer, other)


def compute_roc_area(cancer: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the area under the receiver operating curve: how often cancer has the higher score, of equal ones half.

    Args:
        cancer: (…, n) how much cancer has each of n scores, the lowest first.
        other: (…, n) the same of the others.

    Returns:
        (…), nan without cancer or without others.
    """
    ranked_lower = other.cumsum(axis=-1) - other / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (cancer * ranked_lower).sum(axis=-1) / (cancer.sum(axis=-1) * other.sum(axis=-1))
    return np.asarray(np.minimum(area, 1))  # sums of fractions may pass 1 by rounding


def find_threshold_bin(threshold: float) -> int:
    """Find the bin of a threshold.

    Args:
        threshold: One of 0, 0.001, … 0.999.

    Returns:
        Its k, with threshold = k / 1000.

    Raises:
        ValueError: Another value, about which a histogram knows nothing exact.
    """
    k = round(threshold * BINS)
    if not 0 <= k < BINS or abs(threshold - k / BINS) > 1e-9:
        raise ValueError(f"threshold {threshold}: histograms answer at 0, 0.001, … 0.999 only")
    return k


def score_threshold(hist: ArrayLike | Tensor, threshold: float) -> dict[str, float | int | None]:
    """Score one histogram at one threshold.

    Args:
        hist: (2, BINS).
        threshold: See `find_threshold_bin`.

    Returns:
        tp, fp and fn in pixels; dice, iou, precision and recall, None where they are 0 / 0.

    Raises:
        ValueError: A threshold between bins.
    """
    k = find_threshold_bin(threshold)
    at = compute_curve(*_counts(hist))
    counts: dict[str, float | int | None] = {name: int(getattr(at, name)[k]) for name in ("tp", "fp", "fn")}
    names = ("dice", "iou", "precision", "recall")
    return counts | {name: _defined(float(getattr(at, name)[k])) for name in names}


def compute_dice(hist: ArrayLike | Tensor, threshold: float) -> float:
    """Give Dice of one histogram at one threshold.

    Args:
        hist: (2, BINS).
        threshold: See `find_threshold_bin`.

    Returns:
        Dice; nan where there is neither cancer nor a positive.
    """
    return float(compute_curve(*_counts(hist)).dice[find_threshold_bin(threshold)])


def pool_histograms(histograms: Mapping[str, ArrayLike | Tensor]) -> NDArray[np.int64]:
    """Add up the histograms of slides.

    Args:
        histograms: Slide to (2, BINS).

    Returns:
        (2, BINS); zeros where there are no slides.
    """
    return sum((_counts(hist) for hist in histograms.values()), start=np.zeros((2, BINS), dtype=np.int64))


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
