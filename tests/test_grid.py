"""Tiles that cover an axis, a slide and its tissue."""

from __future__ import annotations

import tracemalloc
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.wsi.geometry import Resolution, level_scale, round_px
from panda.wsi.grid import Edge, axis_positions, tissue_grid
from panda.wsi.tissue import TissueMap
from tests.pyramids import Rounding, level_size

edges = st.sampled_from(["pad", "shift"])


@given(st.integers(1, 3000), st.integers(1, 700), st.data(), edges)
def test_axis_positions_cover_axis_without_waste(length: int, patch: int, data: st.DataObject, edge: Edge) -> None:
    stride = data.draw(st.integers(max(1, patch // 8), patch))
    starts = axis_positions(length, patch, stride, edge)
    assert starts.dtype == np.int64
    assert starts[0] == 0
    gaps = np.diff(starts)
    assert ((gaps > 0) & (gaps <= stride)).all()
    assert starts[-1] + patch >= length
    if len(starts) > 1:
        assert starts[-2] + patch < length  # without the last patch something would be missing
    if edge == "shift" and length >= patch:
        assert starts[-1] + patch <= length
    if edge == "pad":
        assert (gaps == stride).all()


def test_axis_positions_match_hand_computed() -> None:
    assert axis_positions(10, 4, 4, "pad").tolist() == [0, 4, 8]
    assert axis_positions(10, 4, 4, "shift").tolist() == [0, 4, 6]
    assert axis_positions(8, 4, 2, "pad").tolist() == [0, 2, 4]
    assert axis_positions(3, 4, 4, "shift").tolist() == [0]


@pytest.mark.parametrize(
    ("length", "patch", "stride", "edge", "says"),
    [(0, 4, 4, "pad", "at least 1"), (9, 4, 5, "pad", "gaps"), (9, 4, 4, "wrap", "pad, shift")],
)
def test_axis_positions_uncoverable_axis_raises(length: int, patch: int, stride: int, edge: Edge, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        axis_positions(length, patch, stride, edge)


def view(width: int, height: int, downsample: float) -> Resolution:
    size = int(np.ceil(width / downsample)), int(np.ceil(height / downsample))
    return Resolution(downsample, *size, 0, 1.0, None)


@st.composite
def views(draw: st.DrawFn, width: int, height: int, downsamples: st.SearchStrategy[float]) -> Resolution:
    """Draw a resolution: a request that covers the slide, or a level whose rounded sides may end before its edge."""
    downsample = draw(downsamples)
    if draw(st.booleans()):
        return view(width, height, downsample)
    size = level_size((width, height), downsample, draw(st.sampled_from(get_args(Rounding))))
    downsample, _ = level_scale((width, height), size)
    return Resolution(downsample, *size, 0, downsample, None)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    patch=st.integers(8, 128),
    overlap=st.floats(0, 0.8),
    edge=edges,
    density=st.sampled_from([0.0, 0.01, 0.5]),
    data=st.data(),
)
def test_tissue_grid_covers_all_tissue(  # noqa: PLR0917 - one argument each of what is varied
    size: tuple[int, int], patch: int, overlap: float, edge: Edge, density: float, data: st.DataObject
) -> None:
    resolution = data.draw(views(*size, st.sampled_from([1.0, 2.0, 4.0004, 3.37, 40.0])))
    downsample = resolution.downsample
    seen = data.draw(views(*size, st.sampled_from([16.0084, 5.5])))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((seen.height, seen.width)) < density
    tissue = TissueMap(mask, seen, "strict")
    grid = tissue_grid(resolution, tissue, patch, max(1, round(patch * (1 - overlap))), edge=edge)
    covered = np.zeros((resolution.height, resolution.width), np.bool_)
    for (x, y), fraction in zip(grid.working, grid.tissue_fraction, strict=True):
        covered[y : y + patch, x : x + patch] = True
        assert 0 < fraction <= 1
    at_working: NDArray[np.bool_] = tissue.crop(resolution, (0, 0), resolution.size)
    assert not (at_working & ~covered).any()
    # A px of the map may lie between the centres of working px, or past the last of a level's.
    y, x = (np.floor((place + 0.5) * seen.downsample / downsample).astype(np.int64) for place in np.nonzero(mask))
    within = (x < resolution.width) & (y < resolution.height)
    assert covered[y[within], x[within]].all()
    assert (grid.level0 == round_px(grid.working * downsample)).all()
    assert grid.working.tolist() == sorted(grid.working.tolist(), key=lambda corner: (corner[1], corner[0]))
    assert (round_px(grid.level0 / downsample) == grid.working).all()


def test_tissue_grid_without_map_keeps_every_tile() -> None:
    grid = tissue_grid(view(1000, 700, 2.0), None, 128, 100)
    assert len(grid) == 5 * 4
    assert (grid.tissue_fraction == 1).all()
    assert grid.level0.max(axis=0).tolist() == [800, 600]
    assert (grid.patch_size, grid.stride) == (128, 100)


def test_tissue_grid_min_tissue_is_fraction_of_whole_tile() -> None:
    mask = np.zeros((4, 4), np.bool_)
    mask[0, 0] = mask[2:, 2:] = True
    tissue = TissueMap(mask, Resolution(16.0, 4, 4, 0, 1.0, None), "strict")
    resolution = Resolution(1.0, 64, 64, 0, 1.0, None)
    assert tissue_grid(resolution, tissue, 32, 32).working.tolist() == [[0, 0], [32, 32]]
    kept = tissue_grid(resolution, tissue, 32, 32, min_tissue=0.5)
    assert kept.working.tolist() == [[32, 32]]
    assert kept.tissue_fraction.dtype == np.float32
    assert tissue_grid(resolution, tissue, 32, 32, min_tissue=0.25).tissue_fraction.tolist() == [0.25, 1.0]
    # A tile that reaches past the edge counts the px there as no tissue.
    assert tissue_grid(resolution, tissue, 48, 48).tissue_fraction[-1] == pytest.approx(16 * 16 / 48**2)


def test_tissue_grid_large_slide_needs_little_memory() -> None:
    resolution = Resolution(1.0, 100_000, 100_000, 0, 1.0, None)
    mask = np.zeros((500, 500), np.bool_)
    mask[100:140, 70:130] = mask[499, 499] = True
    tissue = TissueMap(mask, Resolution(200.0, 500, 500, 0, 1.0, None), "strict")
    tracemalloc.start()
    try:
        grid = tissue_grid(resolution, tissue, 256, 128)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * 2**20  # the boxes of all 609,961 tiles alone would take 19 MiB
    every = axis_positions(100_000, 256, 128)
    expected = []
    for y in every[(every + 256 > 20_000) & ((every < 28_000) | (every + 256 > 99_800))]:
        first, last = (14_000, 26_000) if y < 28_000 else (99_800, 100_000)
        expected += [(x, y) for x in every[(every + 256 > first) & (every < last)]]
    assert grid.working.tolist() == [list(corner) for corner in expected]


def test_tissue_grid_no_tissue_gives_no_tiles() -> None:
    tissue = TissueMap(np.zeros((4, 4), np.bool_), Resolution(16.0, 4, 4, 0, 1.0, None), "strict")
    grid = tissue_grid(Resolution(1.0, 64, 64, 0, 1.0, None), tissue, 32, 32)
    assert (grid.working.shape, grid.level0.shape, len(grid)) == ((0, 2), (0, 2), 0)


@pytest.mark.parametrize("min_tissue", [-0.1, 1.1, float("nan")])
def test_tissue_grid_min_tissue_outside_0_to_1_raises(min_tissue: float) -> None:
    with pytest.raises(ValueError, match="fraction from 0 to 1"):
        tissue_grid(view(64, 64, 1.0), None, 32, 32, min_tissue=min_tissue)
