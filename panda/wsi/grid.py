"""The grid of tiles of a slide, which covers every pixel of its tissue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from panda.wsi.geometry import Resolution, round_px
from panda.wsi.tissue import TissueMap

Edge = Literal["pad", "shift"]

COLUMN_PX = 4096
"""Width of the columns in which the tiles of a slide are read, in px of the level. The readers cache one row of such a
column for each of two threads (9 tiles of 512 px and those of the mask)."""
_TILES_AT_ONCE = 2**12


def axis_positions(length: int, patch: int, stride: int, edge: Edge = "pad") -> NDArray[np.int64]:
    """Place patches along one axis so that they cover it.

    Args:
        length: Length of the axis in working px.
        patch: Side of a patch in working px.
        stride: Distance between neighbouring starts, at most `patch`, so that there is no gap.
        edge: `"pad"`: the last patch reaches past the end, which reads white. `"shift"`: it moves back to end with
            the axis, unless the axis is shorter than a patch.

    Returns:
        Ascending starts, (n,) int64, working px. Together the patches cover `[0, length)`.

    Raises:
        ValueError: If a length is not positive, `stride` exceeds `patch`, or `edge` is unknown.
    """
    if min(length, patch, stride) < 1:
        raise ValueError(f"length {length}, patch size {patch} and stride {stride} must be at least 1")
    if stride > patch:
        raise ValueError(f"stride {stride} exceeds the patch size {patch} and leaves gaps; use {patch} or less")
    if edge not in get_args(Edge):
        raise ValueError(f"edge is {edge!r}; choose one of {', '.join(get_args(Edge))}")
    further = max(0, -(-(length - patch) // stride))
    starts = np.arange(further + 1, dtype=np.int64) * stride
    if edge == "shift":
        starts[-1] = min(int(starts[-1]), max(0, length - patch))
    return starts


@dataclass(frozen=True)
class Grid:
    """The tiles of one slide at one working resolution, sorted by y, then x.

    Attributes:
        working: Top-left corners of the tiles as (x, y), (N, 2) int64, working px.
        level0: The same corners, (N, 2) int64, level-0 px.
        tissue_fraction: Tissue as a fraction of each whole tile, (N,) float32. Px past the edge of the slide are
            not tissue. 1 without a tissue map.
        patch_size: Side of a tile in working px.
        stride: Distance between neighbouring tiles in working px.
        resolution: The working resolution.
    """

    working: NDArray[np.int64]
    level0: NDArray[np.int64]
    tissue_fraction: NDArray[np.float32]
    patch_size: int
    stride: int
    resolution: Resolution

    def __len__(self) -> int:
        """Count the tiles."""
        return len(self.working)

    def reading_order(self) -> NDArray[np.int64]:
        """Return the order in which to read tiles, (N,) int64: column by column of the slide, each row by row."""
        column = self.level0[:, 0] // round_px(COLUMN_PX * self.resolution.level_downsample)
        return np.argsort(column, kind="stable")


def tissue_grid(
    resolution: Resolution,
    tissue: TissueMap | None,
    patch_size: int,
    stride: int,
    *,
    edge: Edge = "pad",
    min_tissue: float = 0.0,
) -> Grid:
    """Place tiles on a slide and keep those with tissue.

    Args:
        resolution: The working resolution.
        tissue: The tissue of the slide; None keeps every tile.
        patch_size: Side of a tile in working px.
        stride: Distance between neighbouring tiles in working px, at most `patch_size`.
        edge: See `axis_positions`.
        min_tissue: Smallest fraction of tissue in a tile. At 0, a tile with any tissue is kept, so that the tiles
            cover all tissue. A tile without tissue is never kept.

    Returns:
        The tiles, possibly none.

    Raises:
        ValueError: If a size is not positive, `stride` exceeds `patch_size`, or `min_tissue` is not in 0..1.
    """
    if not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue is a fraction from 0 to 1, not {min_tissue}")
    x = axis_positions(resolution.width, patch_size, stride, edge)
    y = axis_positions(resolution.height, patch_size, stride, edge)
    # A few rows at a time, because a large slide at level 0 has a million tiles, most of them on glass.
    rows = max(1, _TILES_AT_ONCE // len(x))
    parts = []
    for start in range(0, len(y), rows):
        part = y[start : start + rows]
        corners = np.stack([np.tile(x, len(part)), np.repeat(part, len(x))], axis=1)
        fraction = np.ones(len(corners))
        if tissue is not None:
            level0 = corners * resolution.downsample
            boxes = np.concatenate([level0, level0 + patch_size * resolution.downsample], axis=1)
            fraction = tissue.measure_fraction(boxes, resolution)
        kept = (fraction > 0) & (fraction >= min_tissue)
        parts.append((corners[kept], fraction[kept].astype(np.float32)))
    working, tissue_fraction = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Grid(working, round_px(working * resolution.downsample), tissue_fraction, patch_size, stride, resolution)
