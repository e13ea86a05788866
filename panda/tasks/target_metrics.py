"""Scores of classes, numbers and risks of slides, each of which may count several times.

N slides; `times`, (…, N), says how often each counts, so that a bootstrap computes many draws at once. Results are (…),
NaN if a score is undefined.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from panda.tasks.grade_metrics import compute_agreement, compute_auroc

Numbers = NDArray[np.float64]
Statistics = dict[str, Callable[[Numbers], Numbers]]
"""Name of a score to its computation from `times`."""

_ROWS_AT_ONCE = 512
_NOISE = 1e-14
"""Variance over mean square up to which numbers are equal: that of rounding to single precision is 1e-15."""


def compute_errors(given: Numbers, predicted: Numbers, times: Numbers) -> tuple[Numbers, Numbers]:
    """Compute the mean absolute error, and R²: 1 less the squared error over that of the mean of the slides.

    R² is undefined if all given numbers are equal.
    """
    if len(given):
        given, predicted = given - given[0], predicted - given[0]  # squares of large numbers would hide their spread
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = times @ given / times.sum(axis=-1)
        spread = times @ given**2 - times.sum(axis=-1) * mean**2
        spread = np.where(spread > 1e-12 * (times @ given**2), spread, np.nan)
        return times @ np.abs(predicted - given) / times.sum(axis=-1), 1 - times @ (predicted - given) ** 2 / spread


def compute_correlation(one: Numbers, other: Numbers, times: Numbers) -> Numbers:
    """Compute Pearson's correlation; undefined if one side is constant.

    `one` and `other` are (N,), or (…, N) if they depend on which slides count, as ranks do.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        count = times.sum(axis=-1, keepdims=True)
        a, b = (side - (times * side).sum(axis=-1, keepdims=True) / count for side in (one, other))
        squares = [(times * side**2).sum(axis=-1) for side in (a, b)]
        scale = [(times * side**2).sum(axis=-1) for side in (one, other)]
        known = (squares[0] > _NOISE * scale[0]) & (squares[1] > _NOISE * scale[1])
        return np.where(known, (times * a * b).sum(axis=-1) / np.sqrt(squares[0] * squares[1]), np.nan)


def compute_ranks(values: Numbers, times: Numbers) -> Numbers:
    """Compute the ranks of values among the slides that count, (…, N); equal values share their mean rank."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    runs = np.add.reduceat(times[..., order], starts, axis=-1)
    middles = runs.cumsum(axis=-1) - (runs - 1) / 2
    run_of = np.empty(len(values), dtype=np.intp)
    run_of[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(values)]))
    return np.asarray(middles[..., run_of])


def compute_concordance(time: Numbers, event: Numbers, risk: Numbers, times: Numbers) -> Numbers:
    """Compute Harrell's concordance index (Harrell et al. 1996).

    Of two slides, one with an event before the time of the other, the one with the event should have the higher risk.
    An event is before a censoring at the same time, two events at the same time are no pair, and equal risks count
    half. It is undefined without such pairs.
    """
    right, pairs = np.zeros(times.shape[:-1]), np.zeros(times.shape[:-1])
    events = np.flatnonzero(event == 1)
    for start in range(0, len(events), _ROWS_AT_ONCE):
        part = events[start : start + _ROWS_AT_ONCE]
        first = time[part, None] < time[None, :]
        first |= (time[part, None] == time[None, :]) & (event[None, :] == 0)
        ahead = (risk[part, None] > risk[None, :]) + 0.5 * (risk[part, None] == risk[None, :])
        pairs += (times[..., part] * (times @ first.T.astype(np.float64))).sum(axis=-1)
        right += (times[..., part] * (times @ (first * ahead).T)).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(right / pairs)


def list_class_statistics(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Statistics:
    """Return the scores of true and predicted classes, (N,) both, from 0 to `classes` - 1."""
    cells, member = np.unique(truth * classes + predicted, return_inverse=True)  # of many classes few cells occur
    rows = np.eye(len(cells))[member]

    def count(times: Numbers) -> Numbers:
        counts = np.zeros((*times.shape[:-1], classes**2))
        counts[..., cells] = times @ rows
        return counts.reshape(*times.shape[:-1], classes, classes)

    return {
        "balanced_accuracy": lambda times: _average_known(_compute_recalls(count(times))),
        "accuracy": lambda times: compute_agreement(count(times))[..., 1],
        "kappa": lambda times: _compute_kappa(count(times)),
        "qwk": lambda times: compute_agreement(count(times))[..., 0],
    }


def list_number_statistics(given: Numbers, predicted: Numbers) -> Statistics:
    """Return the scores of given and predicted numbers, (N,) both."""

    def correlate_ranks(times: Numbers) -> Numbers:
        return compute_correlation(compute_ranks(given, times), compute_ranks(predicted, times), times)

    return {
        "r2": lambda times: compute_errors(given, predicted, times)[1],
        "mae": lambda times: compute_errors(given, predicted, times)[0],
        "pearson": partial(compute_correlation, given, predicted),
        "spearman": correlate_ranks,
    }


def average_aurocs(truth: NDArray[np.int64], prob: Numbers, times: Numbers) -> Numbers:
    """Average the AUROC of each class against all others, over the classes with slides on both sides.

    Args:
        truth: True classes, (N,).
        prob: Probabilities, (N, C).
        times: See the module.
    """
    areas = [compute_auroc(prob[:, k].round(12), truth == k, times) for k in range(prob.shape[1])]
    return _average_known(np.stack(areas, axis=-1))


def _compute_recalls(counts: Numbers) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.diagonal(counts, axis1=-2, axis2=-1) / counts.sum(axis=-1))


def _compute_kappa(counts: Numbers) -> Numbers:
    """Compute Cohen's kappa of counts (…, C, C); NaN if all true and predicted classes are the same one."""
    total = counts.sum(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        agreed = np.trace(counts, axis1=-2, axis2=-1) / total
        chance = (counts.sum(axis=-1) * counts.sum(axis=-2)).sum(axis=-1) / total**2
        return np.asarray(np.where(chance < 1, (agreed - chance) / (1 - chance), np.nan))


def _average_known(values: Numbers) -> Numbers:
    """Average the last axis over what is not NaN; NaN if nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1))
