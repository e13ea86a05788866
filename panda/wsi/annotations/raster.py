"""Areas with codes, drawn into pixels window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from panda.wsi.annotations.file import Area

_CHUNK = 32
"""Edges that are found together."""
_BATCH_PX = 2**22
"""Px that are drawn at once, which bounds the memory of areas that cover each other."""


class Raster:
    """Areas with codes, later ones above earlier ones.

    A px has the code of the last area that holds its centre. A centre on an edge belongs to the area at its right or
    below it, so that areas with a common edge share no px and leave none out. Only edges in the rows of a window are
    looked at. A raster can be pickled and read by several threads.

    Attributes:
        codes: The code of each area, (n,) uint8.
    """

    def __init__(self, areas: Sequence[Area], codes: Sequence[int]) -> None:
        """Prepare the areas.

        Args:
            areas: The areas, in px of any frame.
            codes: Their codes, 0 to 255.
        """
        parts, part_area = shapely.get_parts(np.asarray(areas, object), return_index=True)
        rings, ring_part = shapely.get_rings(parts, return_index=True)
        corners, ring = shapely.get_coordinates(rings, return_index=True)
        edges = np.concatenate([corners[:-1], corners[1:]], axis=1).reshape(-1, 4)
        is_edge = (ring[:-1] == ring[1:]) & (edges[:, 1] != edges[:, 3])
        edges, area = edges[is_edge], part_area[ring_part[ring[:-1][is_edge]]]
        # From the upper to the lower corner, so that both areas at an edge find the same places on it.
        self._edges = np.where((edges[:, 1] < edges[:, 3])[:, None], edges, edges[:, [2, 3, 0, 1]])
        self._area = area.astype(np.int64)
        self.codes = np.asarray(codes, np.uint8)
        self._boxes = shapely.bounds(np.asarray(areas, object)).reshape(-1, 4)
        self._find_chunks()

    def _find_chunks(self) -> None:
        """Find the edges that belong together, and the rows in which they are."""
        area = self._area
        place = np.arange(len(area)) - np.searchsorted(area, area)
        self._chunks = np.flatnonzero(place % _CHUNK == 0)
        empty = np.zeros(0)
        self._top = np.minimum.reduceat(self._edges[:, 1], self._chunks) if len(area) else empty
        self._bottom = np.maximum.reduceat(self._edges[:, 3], self._chunks) if len(area) else empty

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that a raster holds, for `from_arrays`."""
        return {"edges": self._edges, "area": self._area, "codes": self.codes, "boxes": self._boxes}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Raster:
        """Return a raster from its `arrays`; raise KeyError if one is missing."""
        raster = cls.__new__(cls)
        raster._edges, raster._area, raster.codes, raster._boxes = (
            arrays[name] for name in ("edges", "area", "codes", "boxes")
        )
        raster._find_chunks()
        return raster

    def draw(
        self, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], background: int = 0
    ) -> NDArray[np.uint8]:
        """Return the codes at points of a grid.

        Args:
            x: The columns, ascending, in px of the areas; at least one.
            y: The rows, ascending; at least one.
            background: The code where no area is.

        Returns:
            (rows, columns) uint8.
        """
        out = np.full(len(y) * len(x), background, np.uint8)
        area, row, column = self._find_crossings(x, y)
        # Each row of an area is crossed an even number of times: at the beginnings and the ends of its parts.
        keys = np.sort((area * len(y) + row) * (len(x) + 1) + column)
        begin, end = keys[::2], keys[1::2]
        area_row, column = np.divmod(begin, len(x) + 1)
        area, row = np.divmod(area_row, len(y))
        start, length = row * len(x) + column, end - begin
        codes = self.codes[area]
        drawn = np.cumsum(length)
        first = 0
        while first < len(length):
            before = drawn[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(drawn, before + _BATCH_PX, "right")))
            part = slice(first, last)
            # If a px occurs twice, the last code is kept: that of the upper area.
            steps = np.arange(drawn[last - 1] - before) - np.repeat(drawn[part] - length[part] - before, length[part])
            out[np.repeat(start[part], length[part]) + steps] = np.repeat(codes[part], length[part])
            first = last
        return out.reshape(len(y), len(x))

    def _find_crossings(
        self, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return area, row and first column at or after each place where an edge crosses a row, (n,) each."""
        x0, y0, x1, y1 = self._boxes.T
        is_near = (x0 <= x[-1]) & (x1 >= x[0]) & (y0 <= y[-1]) & (y1 >= y[0])
        chunks = np.flatnonzero((self._top <= y[-1]) & (self._bottom > y[0]) & is_near[self._area[self._chunks]])
        ends = np.append(self._chunks[1:], len(self._area))
        sizes = ends[chunks] - self._chunks[chunks]
        first = np.repeat(self._chunks[chunks] - (np.cumsum(sizes) - sizes), sizes)
        number = first + np.arange(len(first))
        edges = self._edges[number]
        top, bottom = np.searchsorted(y, edges[:, 1]), np.searchsorted(y, edges[:, 3])
        rows = bottom - top
        row = np.repeat(top - (np.cumsum(rows) - rows), rows) + np.arange(rows.sum())
        left, upper, right, lower = np.repeat(edges, rows, axis=0).T
        crossing = left + (y[row] - upper) * ((right - left) / (lower - upper))
        return self._area[np.repeat(number, rows)], row, np.searchsorted(x, crossing)
