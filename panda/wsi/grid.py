"""Where the tiles of a slide lie: positions that cover every pixel of the tissue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from panda.wsi.geometry import Resolution, round_px
from panda.wsi.tissue import TissueMap

Edge = Literal["pad", "shift"]

COLUMN_PX = 4096
"""Width of the columns in which the tiles of a slide are read, in px of the level that is read. The readers keep a row
of such a column for each of two threads (9 tiles of 512 px and those of the mask), however wide the slide."""

_TILES_AT_ONCE = 2**12


def axis_positions(length: int, patch: int, stride: int, edge: Edge = "pad") -> NDArray[np.int64]:
    """Place patches along one axis so that they cover it.

    Args:
        length: Length of the axis in working px.
        patch: Side of a patch in working px.
        stride: Distance between neighbouring starts, at most `patch`, so that no gap is left.
        edge: What the last patch does: `"pad"` reaches past the end (where slides read white), `"shift"`
            moves back to end with the axis, if the axis is at least a patch long.

    Returns:
        (n,) int64 ascending starts in working px; together the patches cover `[0, length)`.

    Raises:
        ValueError: A length is not positive, `stride` exceeds `patch`, or `edge` is unknown.
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
        working: (N, 2) int64, (x, y) of each tile's top-left corner in working px.
        level0: (N, 2) int64, the same corners in level-0 px.
        tissue_fraction: (N,) float32, tissue in each tile as a fraction of the whole tile (what lies past the
            edge of the slide is no tissue); 1 where no tissue map was given.
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
    """Lay tiles over a slide and keep those with tissue.

    Args:
        resolution: The working resolution.
        tissue: Where the tissue is; None keeps every tile.
        patch_size: Side of a tile in working px.
        stride: Distance between neighbouring tiles in working px, at most `patch_size`.
        edge: As for `axis_positions`.
        min_tissue: Smallest fraction of a tile that is tissue. At 0 a tile with any tissue at all is kept, so
            that the tiles cover all tissue; a tile with none is never kept.

    Returns:
        The tiles, possibly none.

    Raises:
        ValueError: A size is not positive, `stride` exceeds `patch_size`, or `min_tissue` is not
            in 0..1.
    """
    if not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue is a fraction from 0 to 1, not {min_tissue}")
    x = axis_positions(resolution.width, patch_size, stride, edge)
    y = axis_positions(resolution.height, patch_size, stride, edge)
    # Some rows at a time: a large slide at level 0 has a million tiles, most of them on glass.
    rows = max(1, _TILES_AT_ONCE // len(x))
    parts = [
        _with_tissue(_product(x, y[start : start + rows]), patch_size, resolution.downsample, tissue, min_tissue)
        for start in range(0, len(y), rows)
    ]
    working = np.concatenate([corners for corners, _ in parts])
    return Grid(
        working=working,
        level0=round_px(working * resolution.downsample),
        tissue_fraction=np.concatenate([fraction for _, fraction in parts]),
        patch_size=patch_size,
        stride=stride,
        resolution=resolution,
    )


def _product(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """(len(x) * len(y), 2) pairs of x and y, row by row."""
    return np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1)


def _with_tissue(
    working: NDArray[np.int64], patch_size: int, downsample: float, tissue: TissueMap | None, min_tissue: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The tiles with enough tissue and how much of each is tissue; all of them where there is no map."""
    if tissue is None:
        return working, np.ones(len(working), np.float32)
    corner = working * downsample
    fraction = tissue.fraction_of(np.concatenate([corner, corner + patch_size * downsample], axis=1))
    kept = (fraction > 0) & (fraction >= min_tissue)
    return working[kept], fraction[kept].astype(np.float32)
