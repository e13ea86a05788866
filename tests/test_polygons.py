"""Polygons along pixel edges: valid, and of exactly the mask's area."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.inference.polygons import trace


def shapes(mask: NDArray[np.bool_]) -> list[shapely.Polygon]:
    return [shapely.Polygon(shell, holes) for shell, *holes in trace(mask)]


def fill_polygons(polygons: list[shapely.Polygon], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of the pixels whose centers the polygons hold."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    whole = shapely.MultiPolygon(polygons)
    return np.asarray(shapely.contains_xy(whole, x.ravel(), y.ravel())).reshape(shape)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0.05, 1), height=st.integers(1, 25), width=st.integers(1, 25))
def test_trace_polygons_are_valid_and_cover_exactly_mask(seed: int, density: float, height: int, width: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    polygons = shapes(mask)
    assert all(polygon.is_valid for polygon in polygons)
    assert shapely.MultiPolygon(polygons).is_valid
    assert sum(polygon.area for polygon in polygons) == mask.sum()
    np.testing.assert_array_equal(fill_polygons(polygons, mask.shape), mask)


def test_trace_box_has_four_corners_and_hole_its_own_ring() -> None:
    mask = np.zeros((9, 12), np.bool_)
    mask[2:7, 3:11] = True
    mask[4, 5:7] = False
    [[shell, hole]] = trace(mask)
    assert sorted(shell.tolist()) == [[3, 2], [3, 7], [11, 2], [11, 7]]
    assert sorted(hole.tolist()) == [[5, 4], [5, 5], [7, 4], [7, 5]]


def test_trace_pixels_touching_at_corner_are_separate() -> None:
    assert [p.area for p in shapes(np.eye(3, dtype=np.bool_))] == [1, 1, 1]


@pytest.mark.parametrize("shape", [(3, 4), (1, 1)])
def test_trace_empty_mask_has_no_polygons(shape: tuple[int, int]) -> None:
    assert trace(np.zeros(shape, np.bool_)) == []
