"""Intervals of figures over slides, when whole groups are drawn anew with replacement.

They are 95 % percentile intervals (Efron and Tibshirani 1993, chapter 13). Slides of one patient are alike:
drawing slides, not patients, would make an interval too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
"""How many times is drawn, where nothing else is said."""
_ENDS = (0.025, 0.975)
_AT_ONCE = 250


def average_known(values: NDArray[Any]) -> float:
    """Give the mean of what is not nan; nan (without a warning) where nothing is left."""
    left = values[~np.isnan(values)]
    return float(left.mean()) if len(left) else math.nan


def compute_percentile_interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """Give the interval that the values of a statistic over the draws span.

    Args:
        drawn: (n,), nan where the statistic is undefined in a draw: such draws are left out.

    Returns:
        (low, high); (nan, nan) where it is defined in none.
    """
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return math.nan, math.nan
    low, high = np.quantile(drawn, _ENDS)
    return float(low), float(high)


def bootstrap_interval(
    values: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    *,
    seed: int,
    statistic: Callable[[NDArray[Any]], float] = average_known,
    n: int = RESAMPLES,
) -> tuple[float, float]:
    """Give the interval of any statistic of rows; `resample_sums` and `resampled` are far faster.

    Args:
        values: (N, …), one row a slide; nan where a slide has no score.
        groups: (N,), each slide's group.
        seed: Of the drawing.
        statistic: Takes rows of values.
        n: How many times is drawn.

    Returns:
        (low, high); (nan, nan) with fewer than two groups, or where the statistic never is defined.

    Raises:
        ValueError: Not as many groups as values.
    """
    rows = np.asarray(values)
    member, count = _members(groups, len(rows))
    if count < 2:
        return math.nan, math.nan
    of_group = [np.flatnonzero(member == group) for group in range(count)]
    rng = np.random.default_rng(seed)
    drawn = np.empty(n)
    for turn in range(n):
        picked = np.concatenate([of_group[group] for group in rng.integers(count, size=count)])
        drawn[turn] = statistic(rows[picked])
    return compute_percentile_interval(drawn)


def resample_sums(
    rows: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    statistic: Callable[[NDArray[np.float64]], NDArray[Any]],
    *,
    seed: int,
    n: int = RESAMPLES,
) -> NDArray[Any]:
    """Draw groups anew and give a statistic of the sums over the slides drawn.

    The draws are those of `bootstrap_interval` with the same seed.

    Args:
        rows: (N, …) numbers of each slide, which add up.
        groups: (N,), each slide's group.
        statistic: Takes sums (m, …) of m draws, returns (m, …).
        seed: Of the drawing.
        n: How many times is drawn.

    Returns:
        (n, …) what the statistic returned; (0, …) with fewer than two groups.

    Raises:
        ValueError: Not as many groups as rows.
    """
    values = np.asarray(rows, dtype=np.float64)
    member, count = _members(groups, len(values))
    sums = np.zeros((count, *values.shape[1:]))
    np.add.at(sums, member, values)
    flat = sums.reshape(count, math.prod(values.shape[1:]))
    return _over_draws(lambda times: statistic((times @ flat).reshape(len(times), *values.shape[1:])), count, seed, n)


def resample_counts(
    groups: Sequence[Any] | NDArray[Any],
    statistic: Callable[[NDArray[np.float64]], NDArray[Any]],
    *,
    seed: int,
    n: int = RESAMPLES,
) -> NDArray[Any]:
    """Draw groups anew and give a statistic of how often each slide was drawn, for one that no sums give.

    The draws are those of `bootstrap_interval` with the same seed.

    Args:
        groups: (N,), each slide's group.
        statistic: Takes how often each slide was drawn (m, N) in m draws, returns (m, …).
        seed: Of the drawing.
        n: How many times is drawn.

    Returns:
        (n, …) what the statistic returned; (0, …) with fewer than two groups.
    """
    member, count = _members(groups, len(groups))
    return _over_draws(lambda times: statistic(times[:, member]), count, seed, n)


def _over_draws(
    statistic: Callable[[NDArray[np.float64]], NDArray[Any]], count: int, seed: int, n: int
) -> NDArray[Any]:
    """What a statistic of how often each group was drawn, (m, count), gives over n draws; over none of one group."""
    parts = [statistic(times) for times in _times_drawn(count, seed, n if count >= 2 else 0)]
    return np.concatenate(parts) if parts else statistic(np.zeros((0, count)))


def _members(groups: Sequence[Any] | NDArray[Any], slides: int) -> tuple[NDArray[np.intp], int]:
    """Each slide's group as a number, and how many groups there are."""
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(member) != slides:
        raise ValueError(f"{slides} values and {len(member)} groups: must be as many")
    return member, int(member.max(initial=-1)) + 1


def _times_drawn(count: int, seed: int, n: int) -> Iterator[NDArray[np.float64]]:
    """How often each group is drawn: (m, count), for a part of the n draws at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, n, _AT_ONCE):
        turns = min(_AT_ONCE, n - start)
        picked = rng.integers(count, size=(turns, count)) + count * np.arange(turns)[:, None]
        yield np.bincount(picked.ravel(), minlength=turns * count).reshape(turns, count).astype(np.float64)
