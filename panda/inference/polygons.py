"""Turn a mask into polygons along the edges of its pixels, with the same area.

Corners are found from the runs of a mask, so memory grows with the number of corners and not with the area of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from panda.wsi.components import group_numbers
from panda.wsi.runs import ConnectedRuns, Runs, connect_runs

Ring = NDArray[np.int64]
"""(n, 2) x, y corners in px edges, not closed: pixel i spans i to i + 1."""
Polygon = list[Ring]
"""The outer ring, then the holes."""

# A ring has the mask at its left. The four px around a corner are NW 1, NE 2, SW 4, SE 8; their sum is the turn there.
# The two edges of a corner go west or east and north or south, and the ring leaves along one of them.
_EAST, _SOUTH, _LEAVES_ALONG_ROW = (
    np.isin(np.arange(16), turns) for turns in ((2, 7, 8, 13), (4, 7, 8, 11), (2, 4, 7, 14))
)
_OUTER = 8  # turn at the topmost and then leftmost corner of an outer ring
_ABOVE_DIAGONAL, _BELOW_DIAGONAL = np.array([[2, 1], [14, 11]]), np.array([[8, 4], [13, 7]])
"""Turns of the upper and the lower of two px that touch only at a corner. The px are of two objects in the first row,
of one in the second. The edge between the px is the beginning of a run in the first column, its end in the second."""


class _Corners(NamedTuple):
    """Corners: x, y, turn and number of the object, (n,) each; and pairs of objects that touch at a corner, (2, m)."""

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    turn: NDArray[np.int64]
    number: NDArray[np.int64]
    pairs: NDArray[np.int64]


class Outlines(NamedTuple):
    """The outlines of a mask.

    Attributes:
        polygons: One for each 4-connected object, largest first.
        regions: First px (x, y) of each region, as in `Region.start_px`, to its polygons, largest first. The region
            with most px comes first. A region that is 8-connected can have several polygons.
    """

    polygons: list[Polygon]
    regions: dict[tuple[int, int], list[Polygon]]

    @property
    def rings(self) -> list[Ring]:
        """All rings of all polygons."""
        return [ring for polygon in self.polygons for ring in polygon]


def trace(mask: NDArray[np.bool_] | NDArray[np.uint8], connectivity: int = 4, number: int | None = None) -> Outlines:
    """Trace a mask's outline along pixel edges.

    Pixels that touch only at a corner give separate polygons, because a ring that meets itself there is not valid.
    Every pixel edge is on exactly one ring, so the areas of the polygons are exact pixel counts. A ring starts at its
    topmost and then leftmost corner.

    Args:
        mask: (H, W) bool; or (H, W) uint8 with `number`, whose px are the mask.
        connectivity: Connectivity of the regions, 4 or 8.
        number: The value of the px of the mask.
    """
    return trace_runs(Runs.from_mask(mask, number), connectivity)


def trace_runs(runs: Runs, connectivity: int = 4) -> Outlines:
    """Trace the outline of a mask from its runs, as `trace` does."""
    objects = connect_runs(runs, 4)
    corners = _find_corners(objects)
    polygons: list[Polygon] = [[] for _ in range(len(objects))]
    for start, ring in _link(corners):
        own = polygons[corners.number[start] - 1]
        own.insert(0 if corners.turn[start] == _OUTER else 1, ring)  # the holes from the bottom to the top
    pairs = corners.pairs if connectivity == 8 else np.zeros((2, 0), np.int64)
    count, region = group_numbers(len(objects), pairs - 1)
    area, first = np.zeros(count, np.int64), np.full(count, np.iinfo(np.int64).max)
    np.add.at(area, region, objects.area[1:])
    np.minimum.at(first, region, objects.start[1:, 1] * runs.shape[1] + objects.start[1:, 0])
    regions: list[list[Polygon]] = [[] for _ in range(count)]
    for polygon, of in zip(polygons, region.tolist(), strict=True):
        regions[of].append(polygon)
    y, x = np.divmod(first, runs.shape[1])
    order = np.lexsort((first, -area)).tolist()
    return Outlines(polygons, {(int(x[number]), int(y[number])): regions[number] for number in order})


def _find_corners(objects: ConnectedRuns) -> _Corners:
    """Find the corners of 4-connected objects, sorted by y, x and then from west to east.

    Both ends of a run are edges between px, one px high. A corner is at the end of an edge that no other one continues.
    """
    runs, stride = objects.runs, objects.runs.shape[1] + 1
    top = np.stack([runs.number_places(runs.left), runs.number_places(runs.right)], axis=1).ravel()
    bottom = top + stride
    is_end = np.tile([False, True], len(runs))
    number = np.repeat(objects.number, 2)
    # An odd number of edges before a place in a row means that it is in the mask.
    after, above = np.searchsorted(top, bottom), np.searchsorted(top, top - stride)
    goes_on = top.take(after, mode="clip") == bottom
    is_continued = np.zeros(len(top), np.bool_)
    is_continued[after[goes_on]] = True
    begins, ends = np.where(is_end, 4, 8) + 3 * (above % 2), np.where(is_end, 1, 2) + 12 * (after % 2)
    upper = np.flatnonzero(goes_on & (is_end != is_end.take(after, mode="clip")))
    lower = after[upper]
    parts = [
        (top[~is_continued], begins[~is_continued], number[~is_continued]),
        (bottom[~goes_on], ends[~goes_on], number[~goes_on]),
    ]
    pairs = np.stack([number[upper], number[lower]])
    one = pairs[0] == pairs[1]
    for own, turns in ((upper, _ABOVE_DIAGONAL), (lower, _BELOW_DIAGONAL)):
        parts.append((bottom[upper], turns[one.astype(np.intp), is_end[own].astype(np.intp)], number[own]))
    place, turn, number = (np.concatenate(values) for values in zip(*parts, strict=True))
    y, x = np.divmod(place, stride)
    order = np.lexsort((_EAST[turn], x, y))
    return _Corners(x[order], y[order], turn[order], number[order], pairs)


def _link(corners: _Corners) -> Iterator[tuple[int, Ring]]:
    """Yield the rings by their first corner, with its index."""
    count = len(corners.x)
    along_row = np.arange(count) ^ 1  # in each row the first corner is joined with the second, and so on
    by_column = np.lexsort((_SOUTH[corners.turn], corners.y, corners.x))
    along_column = np.empty(count, np.int64)
    along_column[by_column] = by_column[along_row]
    following = np.where(_LEAVES_ALONG_ROW[corners.turn], along_row, along_column).tolist()
    seen = bytearray(count)
    marks = np.frombuffer(seen, np.uint8)
    start = 0
    while (start := seen.find(0, start)) >= 0:
        ring, index = [start], following[start]
        while index != start:
            ring.append(index)
            index = following[index]
        corner = np.array(ring)
        marks[corner] = 1
        yield start, np.stack([corners.x[corner], corners.y[corner]], axis=1)
