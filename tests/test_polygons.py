"""Polygons along pixel edges: valid, and of exactly the mask's area."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.inference.polygons import trace


def shapes(mask: NDArray[np.bool_]) -> list[shapely.Polygon]:
    return [shapely.Polygon(shell, holes) for shell, *holes in trace(mask).polygons]


def fill_polygons(polygons: list[shapely.Polygon], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of the pixels whose centres the polygons hold."""
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
    [[shell, hole]] = trace(mask).polygons
    assert sorted(shell.tolist()) == [[3, 2], [3, 7], [11, 2], [11, 7]]
    assert sorted(hole.tolist()) == [[5, 4], [5, 5], [7, 4], [7, 5]]


def test_trace_pixels_touching_at_corner_are_separate() -> None:
    assert [p.area for p in shapes(np.eye(3, dtype=np.bool_))] == [1, 1, 1]


@pytest.mark.parametrize("shape", [(3, 4), (1, 1)])
def test_trace_empty_mask_has_no_polygons(shape: tuple[int, int]) -> None:
    assert trace(np.zeros(shape, np.bool_)) == ([], {})


def trace_with_opencv(mask: NDArray[np.bool_], connectivity: int) -> list[list[list[list[int]]]]:
    """Return the rings of each object from contours of doubled px: four copies stand for four corners."""
    labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=connectivity)[1]
    found = []
    for number in range(1, labels.max() + 1):
        parts = cv2.connectedComponents((labels == number).view(np.uint8), connectivity=4)[1]
        rings = []
        for part in range(1, parts.max() + 1):
            doubled = (parts == part).view(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
            for contour in cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]:
                corners = (contour[:, 0, :].astype(np.int64) + 1) // 2
                corners = corners[np.any(corners != np.roll(corners, 1, axis=0), axis=1)]
                before, after = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
                rings.append(corners[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]].tolist())
        found.append(sorted(rings))
    return sorted(found)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_trace_regions_equal_opencv(connectivity: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        mask = rng.random(tuple(rng.integers(1, 24, 2))) < rng.random()
        found = trace(mask, connectivity).regions
        regions = list(found.values())
        rings = [sorted(ring.tolist() for polygon in region for ring in polygon) for region in regions]
        assert sorted(rings) == trace_with_opencv(mask, connectivity)
        areas = [sum(shapely.Polygon(shell, holes).area for shell, *holes in region) for region in regions]
        assert areas == sorted(areas, reverse=True)
        for (x, y), polygons in found.items():
            corners = np.concatenate([shell for shell, *_ in polygons])
            assert (y, x) == min((int(row), int(column)) for column, row in corners)


def test_trace_memory_does_not_grow_with_the_box() -> None:
    mask = np.zeros((6144, 6144), np.bool_)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    tracemalloc.start()
    [[shell, hole]] = trace(mask).polygons
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(shell), len(hole)) == (4, 4)
    assert peak < 2 * mask.nbytes, "labels of the box alone would take four times the mask"
