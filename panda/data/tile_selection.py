"""Tile selection: choose the tiles that represent a slide."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from panda.wsi.geometry import Resolution, round_px
from panda.wsi.grid import Grid, tissue_grid
from panda.wsi.tissue import TissueMap

_BAND_PX = 2**24


class ProbabilityMap(Protocol):
    """A probability map over a slide that is read window by window, such as an inference canvas."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in px of the map."""

    def read(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.float32]:
        """Read a window in px of the map, (h, w); px without a score are 0."""


def select_tile_coords_for_slide(
    pred_canvas: NDArray[Any] | ProbabilityMap | None,
    canvas_resolution: Resolution | None,
    tissue: TissueMap,
    tile_resolution: Resolution,
    *,
    k: int,
    tile_size: int,
    random_fraction: float = 0.25,
    min_tissue: float = 0.0,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Choose the K tiles of a slide with the highest tumour probability, and some random ones.

    Tiles are side by side over the tissue. A tile's score is the mean probability over its tissue. Equal scores are
    sorted by more tissue, then y, then x. Random tiles show benign tissue to the grading network too, so that it does
    not depend on the segmentation alone.

    Args:
        pred_canvas: Probability map over the slide, (H, W) in [0, 1], read a row of tiles at a time; NaN counts as 0.
            None: all tiles are random.
        canvas_resolution: Resolution of the map; None without a map.
        tissue: The slide's tissue.
        tile_resolution: Resolution of the tiles.
        k: Number of tiles.
        tile_size: Side of a tile in px at `tile_resolution`.
        random_fraction: Share of the K tiles that is drawn from the tissue at random, in [0, 1].
        min_tissue: Least share of tissue in a tile; 0 for any tissue.
        seed: Seed of the draw.

    Returns:
        Top-left corners, (n <= k, 2) int64, level-0 px: first by falling score, then the random ones. Empty if no
        tile has enough tissue.

    Raises:
        ValueError: If the shape of the map does not fit its resolution, the resolution is missing, or `k` or
            `random_fraction` is out of range.
    """
    if k < 1 or not 0 <= random_fraction <= 1:
        raise ValueError(f"k must be at least 1 and random_fraction in [0, 1], not {k} and {random_fraction}")
    grid = tissue_grid(tile_resolution, tissue, tile_size, tile_size, min_tissue=min_tissue)
    count = len(grid.level0)
    if pred_canvas is None:
        best = np.empty(0, dtype=np.int64)
    else:
        if canvas_resolution is None:
            raise ValueError("a probability map needs its resolution")
        score = _score_tiles(pred_canvas, canvas_resolution, tissue, grid)
        order = np.lexsort((grid.level0[:, 0], grid.level0[:, 1], -grid.tissue_fraction, -score))
        best = order[: k - round_px(k * random_fraction)] if count > k else order
    rest = np.setdiff1d(np.arange(count), best)
    # Drawn from the rest in its fixed order, so that the draw depends on the seed alone.
    others = np.random.default_rng(seed).permutation(rest)[: k - len(best)]
    chosen: NDArray[np.int64] = grid.level0[np.concatenate([best, others])]
    return chosen


def sample_tiles(count: int, k: int, seed: int) -> NDArray[np.int64]:
    """Return the numbers of at most k of a slide's tiles in their order, drawn by the seed if there are more."""
    if count <= k:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:k])


def _score_tiles(
    canvas: NDArray[Any] | ProbabilityMap, resolution: Resolution, tissue: TissueMap, grid: Grid
) -> NDArray[np.float64]:
    """Return the mean probability over the tissue of each tile, (N,); 0 without tissue at the map's resolution."""
    height, width = resolution.height, resolution.width
    if tuple(canvas.shape) != (height, width):
        raise ValueError(f"probability map is {tuple(canvas.shape)}, its resolution says {(height, width)}")
    edges = round_px(
        np.concatenate([grid.working, grid.working + grid.patch_size], axis=1)
        * (grid.resolution.downsample / resolution.downsample)
    )
    x0, x1 = np.clip(edges[:, 0], 0, width), np.clip(edges[:, 2], 0, width)
    scores = np.zeros(len(edges))
    for top, bottom in np.unique(edges[:, [1, 3]], axis=0).tolist():
        y0, y1 = max(top, 0), min(bottom, height)
        if y1 <= y0:
            continue
        row = np.flatnonzero(edges[:, 1] == top)
        # The row of tiles is read in bands. Sums of tiles are differences of one running sum over the columns.
        total, area = np.zeros(width), np.zeros(width)
        step = max(1, _BAND_PX // width)
        for y in range(y0, y1, step):
            h = min(step, y1 - y)
            where = tissue.crop(resolution, (0, round_px(y * resolution.downsample)), (width, h))
            band = canvas[y : y + h] if isinstance(canvas, np.ndarray) else canvas.read(0, y, width, h)
            probability = np.nan_to_num(band, nan=0.0)
            total += np.where(where, probability, 0).sum(axis=0, dtype=np.float64)
            area += where.sum(axis=0)
        total, area = _sum_ranges(total, x0[row], x1[row]), _sum_ranges(area, x0[row], x1[row])
        # Rounded, because a running sum gives equal tiles scores that differ in the last digits.
        scores[row] = np.round(total / np.maximum(area, 1), 9)
    return scores


def _sum_ranges(columns: NDArray[np.float64], x0: NDArray[np.int64], x1: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sums of `columns[x0:x1]` for many pairs."""
    running = np.concatenate([[0.0], np.cumsum(columns)])
    return np.asarray(running[x1] - running[x0])
