"""Histograms of the probabilities of pixels, see `panda.tasks.metrics`.

Every probability is counted in one of 1,000 bins, separately for cancer and for all other pixels, in memory that does
not grow with the slides.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
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
