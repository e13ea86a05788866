"""Runs of a mask, and its components, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from panda.wsi.runs import Runs, connect_runs


@given(seed=st.integers(0, 10**6), density=st.floats(0, 1), height=st.integers(1, 30), width=st.integers(1, 30))
def test_runs_of_mask_and_inverse_paint_it_again(seed: int, density: float, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < density
    runs = Runs.from_mask(mask)
    for some, right in ((runs, mask), (runs.invert(), ~mask)):
        painted = np.zeros_like(mask)
        some.paint(painted, value=True)
        np.testing.assert_array_equal(painted, right)
        assert (some.length > 0).all()
        joins = (some.y[1:] == some.y[:-1]) & (some.left[1:] <= some.right[:-1])
        assert not joins.any(), "a run is as long as possible, and they are in order"
    x0, y0 = (int(rng.integers(side)) for side in (width, height))
    index, part = runs.cut((x0, y0, 7, 5))
    window = np.zeros((5, 7), np.bool_)
    part.paint(window, value=True)
    inside = mask[y0 : y0 + 5, x0 : x0 + 7]
    np.testing.assert_array_equal(window[: inside.shape[0], : inside.shape[1]], inside)
    assert window.sum() == inside.sum()
    assert (runs.y[index] == part.y + y0).all()


def test_runs_paint_long_runs_in_parts() -> None:
    mask = np.ones((300, 700), np.bool_)
    mask[::3, 5] = mask[7:9] = False
    painted = np.zeros_like(mask)
    Runs.from_mask(mask).paint(painted, value=True)
    np.testing.assert_array_equal(painted, mask)


@pytest.mark.parametrize("connectivity", [4, 8])
@given(seed=st.integers(0, 10**6), density=st.floats(0, 1))
def test_connect_runs_equals_scipy(connectivity: int, seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(1, 30, 2))) < density
    found = connect_runs(Runs.from_mask(mask), connectivity)
    labels, count = ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)
    assert len(found) == count
    numbers = np.zeros(mask.shape, np.int64)
    for run, number in enumerate(found.number.tolist()):
        found.runs.select(np.arange(len(found.runs)) == run).paint(numbers, number)
    assert len(np.unique(np.stack([labels.ravel(), numbers.ravel()]), axis=1).T) == count + (not mask.all())
    for number in range(1, count + 1):
        y, x = np.nonzero(numbers == number)
        assert found.area[number] == len(y)
        assert found.box[number].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        np.testing.assert_allclose(found.centroid[number], [x.mean(), y.mean()])
        assert found.start[number].tolist() == [x[0], y[0]]
    areas = found.area[1:].tolist()
    assert areas == sorted(areas, reverse=True)
