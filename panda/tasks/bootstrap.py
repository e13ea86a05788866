"""Bootstrap intervals of figures over slides: whole groups of slides are drawn with replacement.

They are 95 % percentile intervals (Efron and Tibshirani 1993, chapter 13). Slides of one patient are alike, so drawing
slides instead of patients would make an interval too narrow. `groups` has the group of each slide, (N,). With the same
seed all functions make the same draws. A `ValueError` is raised if the numbers of groups and slides differ.

With fewer than `FEWEST_GROUPS` groups there are no draws. Draws never leave the range of the groups, and even the whole
range of n independent values covers the median of their population with a probability of 1 - 2^(1 - n) only: 0.75 for 3
values and 0.875 for 4 (David and Nagaraja 2003, "Order statistics", section 7.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
"""Default number of draws."""
FEWEST_GROUPS = 5
"""Number of groups from which there are intervals."""
_ENDS = (0.025, 0.975)
_DRAWS_AT_ONCE = 250


def average_known(values: NDArray[Any]) -> float:
    """Return the mean of the values that are not NaN; NaN, without a warning, if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def compute_percentile_interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """Return low and high of the values of draws, (n,), without NaN; both NaN if no value is left."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return math.nan, math.nan
    low, high = np.quantile(drawn, _ENDS)
    return float(low), float(high)


def count_groups(groups: Sequence[Any] | NDArray[Any], *parts: NDArray[np.bool_]) -> int:
    """Return the number of groups of the slides of a part, (N,) bool; of the part with the fewest if several are given.

    A figure that only some slides decide, or that compares two kinds of slides, has an interval by these groups.
    """
    return min(len(np.unique(np.asarray(groups)[part])) for part in parts)


def explain_no_interval(groups: int) -> str:
    """Return the reason why a figure of this number of groups has no interval, if that is too few."""
    if groups >= FEWEST_GROUPS:
        return ""
    return (
        f"an interval needs at least {FEWEST_GROUPS} groups of slides, there {'is' if groups == 1 else 'are'} {groups}"
    )


def drop_undefined(ends: tuple[float, float]) -> tuple[float, float] | None:
    """Return an interval, or None if an end is NaN."""
    return None if np.isnan(ends).any() else (float(ends[0]), float(ends[1]))


def bootstrap_interval(
    values: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    *,
    seed: int,
    statistic: Callable[[NDArray[Any]], float] = average_known,
    n: int = RESAMPLES,
) -> tuple[float, float]:
    """Compute the interval of any statistic of rows. `resample_sums` and `resample_counts` are far faster.

    Args:
        values: One row for each slide, (N, …); NaN if a slide has no score.
        groups: Group of each slide, (N,).
        seed: Seed of the draws.
        statistic: Takes rows of values.
        n: Number of draws.

    Returns:
        Low and high; both NaN with fewer than `FEWEST_GROUPS` groups, or if the statistic is never defined.
    """
    rows = np.asarray(values)
    member, count = _number_groups(groups, len(rows))
    if count < FEWEST_GROUPS:
        return math.nan, math.nan
    sizes, rows = np.bincount(member, minlength=count), rows[np.argsort(member, kind="stable")]
    starts = sizes.cumsum() - sizes
    rng = np.random.default_rng(seed)
    drawn = np.empty(n)
    for turn in range(n):
        groups_drawn = rng.integers(count, size=count)
        lengths = sizes[groups_drawn]
        shifts = starts[groups_drawn] - (lengths.cumsum() - lengths)  # from a place in the draw to a row
        drawn[turn] = statistic(rows[np.repeat(shifts, lengths) + np.arange(lengths.sum())])
    return compute_percentile_interval(drawn)


def resample_sums(
    rows: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    statistic: Callable[[NDArray[np.float64]], NDArray[Any]],
    *,
    seed: int,
    n: int = RESAMPLES,
) -> NDArray[Any]:
    """Compute a statistic of the sums over the slides of each draw.

    Args:
        rows: Numbers of each slide that add up, (N, …).
        groups: Group of each slide, (N,).
        statistic: Takes the sums of m draws, (m, …), and returns (m, …).
        seed: Seed of the draws.
        n: Number of draws.

    Returns:
        The results of `statistic`, (n, …); (0, …) with fewer than `FEWEST_GROUPS` groups.
    """
    values = np.asarray(rows, dtype=np.float64)
    member, count = _number_groups(groups, len(values))
    sums = np.zeros((count, *values.shape[1:]))
    np.add.at(sums, member, values)
    flat = sums.reshape(count, math.prod(values.shape[1:]))
    return _apply_to_draws(
        lambda times: statistic((times @ flat).reshape(len(times), *values.shape[1:])), count, seed, n
    )


def resample_counts(
    groups: Sequence[Any] | NDArray[Any],
    statistic: Callable[[NDArray[np.float64]], NDArray[Any]],
    *,
    seed: int,
    n: int = RESAMPLES,
) -> NDArray[Any]:
    """Compute a statistic of how often each slide was drawn, for a statistic that does not follow from sums.

    Args:
        groups: Group of each slide, (N,).
        statistic: Takes the number of times that each slide was drawn, (m, N) for m draws, and returns (m, …).
        seed: Seed of the draws.
        n: Number of draws.

    Returns:
        The results of `statistic`, (n, …); (0, …) with fewer than `FEWEST_GROUPS` groups.
    """
    member, count = _number_groups(groups, len(groups))
    return _apply_to_draws(lambda times: statistic(times[:, member]), count, seed, n)


def _apply_to_draws(
    statistic: Callable[[NDArray[np.float64]], NDArray[Any]], count: int, seed: int, n: int
) -> NDArray[Any]:
    """Apply a statistic of how often each group was drawn, (m, count), to n draws; to none with too few groups."""
    parts = [statistic(times) for times in _draw_groups(count, seed, n if count >= FEWEST_GROUPS else 0)]
    return np.concatenate(parts) if parts else statistic(np.zeros((0, count)))


def _number_groups(groups: Sequence[Any] | NDArray[Any], slides: int) -> tuple[NDArray[np.intp], int]:
    """Return the number of each slide's group, and how many groups there are."""
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(member) != slides:
        raise ValueError(f"{slides} values and {len(member)} groups: give as many groups as values")
    return member, int(member.max(initial=-1)) + 1


def _draw_groups(count: int, seed: int, n: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each group is drawn, (m, count), for some of the n draws at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, n, _DRAWS_AT_ONCE):
        turns = min(_DRAWS_AT_ONCE, n - start)
        picked = rng.integers(count, size=(turns, count)) + count * np.arange(turns)[:, None]
        yield np.bincount(picked.ravel(), minlength=turns * count).reshape(turns, count).astype(np.float64)
