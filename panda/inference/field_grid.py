"""Place rectangular fields of one size on a slide, where a sum over their px is largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from panda.errors import ManifestError
from panda.wsi.geometry import Resolution, ceil_px, round_px

CELLS = 8
"""Cells along the side of a field: fields begin at multiples of an eighth of their side."""
LEAST_TISSUE = 0.25
"""Least share of a field that is tissue."""


class FieldBox(NamedTuple):
    """A field in working px of its slide."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class FieldGrid:
    """The cells of a slide, over which px are summed window by window.

    Attributes:
        size: Width and height of a field in working px, at most those of the slide.
        edges: First px of each cell and the end of the last one, along x and along y.
    """

    size: tuple[int, int]
    edges: tuple[NDArray[np.int64], NDArray[np.int64]]

    @classmethod
    def lay(cls, resolution: Resolution, side_um: float) -> Self:
        """Lay the cells for fields of a side in µm; µm/px of the slide is known.

        Raises:
            ManifestError: If a side has fewer px than cells.
        """
        assert resolution.mpp is not None
        if (finest := CELLS * max(resolution.mpp)) > side_um:
            raise ManifestError(
                f"--side={side_um:g}: a field has fewer than {CELLS} px of the map; give at least {finest:g} µm"
            )
        size, edges = [], []
        for side, mpp in zip(resolution.size, resolution.mpp, strict=True):
            own = min(max(1, round_px(side_um / mpp)), side)
            count = max(CELLS, ceil_px(side * CELLS / own))
            size.append(own)
            edges.append(np.minimum(round_px(np.arange(count + 1) * (own / CELLS)), side))
        return cls((size[0], size[1]), (edges[0], edges[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells along y and along x."""
        return len(self.edges[1]) - 1, len(self.edges[0]) - 1

    def add(self, sums: NDArray[np.int64], values: NDArray[Any], window: tuple[int, int, int, int]) -> None:
        """Add the values of a window to the sums of its cells.

        Args:
            sums: The sums so far, int64 of `shape`.
            values: Whole numbers or bool, (height, width).
            window: x, y, width and height in working px, within the slide.
        """
        into = []
        for axis in (0, 1):
            first, count = window[1 - axis], window[3 - axis]
            cell = np.searchsorted(self.edges[1 - axis], np.arange(first, first + count), side="right") - 1
            starts = np.flatnonzero(np.diff(cell, prepend=-1))
            values = np.add.reduceat(values, starts, axis=axis, dtype=np.int64)
            into.append(cell[starts])
        sums[np.ix_(*into)] += values

    def choose(self, scores: NDArray[np.int64], tissue: NDArray[np.int64], count: int) -> list[FieldBox]:
        """Choose the fields with the highest sums, which share no px.

        Of fields with the same sum, one that has more of it near its centre comes first, then the upper and the left.

        Args:
            scores: Score of each cell, int64 of `shape`.
            tissue: Tissue px of each cell.
            count: Largest number of fields.

        Returns:
            The fields, the one with the highest score first. Scores are above 0, tissue is at least `LEAST_TISSUE`.
        """
        total, inner, core = (_sum_windows(scores, cut) for cut in (0, CELLS // 4, 3 * CELLS // 8))
        x, y = (np.minimum(edges[:-CELLS], edges[-1] - own) for edges, own in zip(self.edges, self.size, strict=True))
        least = LEAST_TISSUE * self.size[0] * self.size[1]
        left = np.where(_sum_windows(tissue, 0) >= least, total, 0)
        found: list[FieldBox] = []
        while len(found) < count and (best := int(left.max(initial=0))) > 0:
            rows, columns = np.nonzero(left == best)
            first = np.lexsort((columns, rows, -core[rows, columns], -inner[rows, columns]))[0]
            at_x, at_y = int(x[columns[first]]), int(y[rows[first]])
            found.append(FieldBox(at_x, at_y, *self.size))
            left[np.ix_(np.abs(y - at_y) < self.size[1], np.abs(x - at_x) < self.size[0])] = 0
        return found


def _sum_windows(values: NDArray[np.int64], cut: int) -> NDArray[np.int64]:
    """Return the sum over each window of cells of a field, without its outer `cut` cells on each side."""
    side = CELLS - 2 * cut
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    rows, columns = (cells - CELLS + 1 for cells in values.shape)
    return np.asarray(windows[cut : cut + rows, cut : cut + columns])
