"""Intervals over groups, against the normal approximation and against each other."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as oracle

from panda.tasks.bootstrap import (
    average_known,
    bootstrap_interval,
    compute_percentile_interval,
    resample_counts,
    resample_sums,
)


def test_bootstrap_interval_mean_matches_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    low, high = bootstrap_interval(values, np.arange(400), seed=1)
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert (low, high) == bootstrap_interval(values, np.arange(400), seed=1)
    assert (low, high) != bootstrap_interval(values, np.arange(400), seed=2)


def test_bootstrap_interval_copies_in_group_add_nothing() -> None:
    """Ten copies of each value in one group say no more than one."""
    values = np.random.default_rng(0).normal(size=50)
    once = bootstrap_interval(values, [f"p{i}" for i in range(50)], seed=3)
    copied = bootstrap_interval(np.repeat(values, 10), np.repeat(np.arange(50), 10), seed=3)
    assert copied[1] - copied[0] == pytest.approx(once[1] - once[0], rel=0.1)


def test_bootstrap_interval_few_groups_or_no_value_is_nan() -> None:
    assert all(math.isnan(v) for v in bootstrap_interval(np.arange(9), list("abcdabcda"), seed=0))
    assert not any(math.isnan(v) for v in bootstrap_interval(np.arange(5), list("abcde"), seed=0))
    assert all(math.isnan(v) for v in bootstrap_interval([], [], seed=0))
    assert all(math.isnan(v) for v in bootstrap_interval([math.nan] * 5, range(5), seed=0))
    low, high = bootstrap_interval([1.0, math.nan, 1.0, math.nan, 1.0], range(5), seed=0)
    assert (low, high) == (1.0, 1.0)
    with pytest.raises(ValueError, match="groups"):
        bootstrap_interval([1.0], [0, 1], seed=0)
    assert math.isnan(average_known(np.array([math.nan])))


def test_bootstrap_interval_custom_statistic_over_rows() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 80)
    rows = np.column_stack([truth, np.clip(truth + rng.integers(-1, 2, 80), 0, 5)])

    def kappa(drawn: NDArray[Any]) -> float:
        return float(oracle.cohen_kappa_score(drawn[:, 0], drawn[:, 1], weights="quadratic"))

    low, high = bootstrap_interval(rows, np.arange(80), seed=0, statistic=kappa, n=50)
    assert low < kappa(rows) < high


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(sums[..., 0] / sums[..., 1])


def test_resampled_sums_equal_bootstrap_of_rows() -> None:
    """The fast way and the general one are the same bootstrap: uneven groups, more draws than fit at once."""
    rng = np.random.default_rng(5)
    rows = np.column_stack([rng.integers(1, 100, 60), rng.integers(100, 900, 60)])
    groups = [f"patient {k}" for k in rng.integers(0, 17, 60)]
    slow = bootstrap_interval(rows, groups, seed=7, statistic=lambda drawn: float(ratio(drawn.sum(axis=0))), n=600)
    fast = compute_percentile_interval(resample_sums(rows, groups, ratio, seed=7, n=600))
    assert fast == pytest.approx(slow, rel=1e-12)


def test_resampled_equals_bootstrap_of_rows() -> None:
    rng = np.random.default_rng(6)
    values, groups = rng.normal(size=60), rng.integers(0, 17, 60)

    def greatest(times: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.where(times > 0, values, -np.inf).max(axis=-1))

    slow = bootstrap_interval(values, groups, seed=7, statistic=lambda drawn: float(drawn.max()), n=600)
    assert compute_percentile_interval(resample_counts(groups, greatest, seed=7, n=600)) == slow
    assert resample_counts(["a"] * 60, greatest, seed=0).shape == (0,)


def test_resampled_sums_one_group_or_no_rows_is_empty() -> None:
    assert resample_sums(np.ones((3, 2)), ["a"] * 3, ratio, seed=0).shape == (0,)
    assert resample_sums(np.ones((0, 2)), [], ratio, seed=0).shape == (0,)
    assert all(map(math.isnan, compute_percentile_interval(np.empty(0))))
    with pytest.raises(ValueError, match="groups"):
        resample_sums(np.ones((3, 2)), ["a"], ratio, seed=0)
