"""Turn a mask into polygons along the edges of its pixels, with the same area.

Corners are found block by block, so memory grows with the number of corners and not with the area of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from panda.wsi.components import BLOCK, Components, find_components, slice_window
from panda.wsi.geometry import cut_blocks

Ring = NDArray[np.int64]
"""(n, 2) x, y corners in px edges, not closed: pixel i spans i to i + 1."""
Polygon = list[Ring]
"""The outer ring, then the holes."""

# A ring has the mask at its left. The four px around a corner are NW 1, NE 2, SW 4, SE 8; their sum is the turn there.
# The two edges of a corner go west or east and north or south, and the ring leaves along one of them.
_EAST, _SOUTH, _LEAVES_ALONG_ROW = (
    np.isin(np.arange(16), turns) for turns in ((2, 7, 8, 13), (4, 7, 8, 11), (2, 4, 7, 14))
)
_CORNERS = np.isin(np.arange(16), (1, 2, 4, 7, 8, 11, 13, 14))
_OUTER = 8  # turn at the topmost and then leftmost corner of an outer ring
_DIAGONALS = {9: ((1, 8), (11, 13)), 6: ((2, 4), (14, 7))}
"""Two px that touch only at a corner: the turns there if they are of two objects, and if they are of one."""


class _Corners(NamedTuple):
    """Corners: x, y, turn and number of the object, (n,) each; and pairs of objects that touch at a corner, (2, m)."""

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    turn: NDArray[np.int64]
    number: NDArray[np.int64]
    pairs: NDArray[np.int64]


def trace(mask: NDArray[np.bool_], block: int = BLOCK) -> list[Polygon]:
    """Trace a mask's outline along pixel edges.

    Pixels that touch only at a corner give separate polygons, because a ring that meets itself there is not valid.
    Every pixel edge is on exactly one ring, so the areas of the polygons are exact pixel counts.

    Args:
        mask: (H, W) bool.
        block: Side of the blocks in px; it changes no result.

    Returns:
        The polygons, largest first. A ring starts at its topmost and then leftmost corner.
    """
    return [polygon for [polygon] in trace_regions(mask, 4, block).values()]


def trace_regions(
    mask: NDArray[np.bool_], connectivity: int, block: int = BLOCK
) -> dict[tuple[int, int], list[Polygon]]:
    """Trace the connected regions of a mask as `trace` does; with connectivity 8 a region can have several polygons.

    Returns:
        First px (x, y) of each region, as in `Region.start_px`, to its polygons, largest first; the region with most px
        comes first.
    """
    objects = find_components(lambda window: mask[slice_window(window)], (mask.shape[0], mask.shape[1]), 4, block)
    corners = _find_corners(mask, objects, block)
    polygons: list[Polygon] = [[] for _ in range(len(objects))]
    for start, ring in _link(corners):
        own = polygons[corners.number[start] - 1]
        own.insert(0 if corners.turn[start] == _OUTER else 1, ring)  # the holes from the bottom to the top
    pairs = corners.pairs if connectivity == 8 else np.zeros((2, 0), np.int64)
    graph = coo_array((np.ones(pairs.shape[1]), tuple(pairs - 1)), (len(objects), len(objects)))
    count, region = connected_components(graph, directed=False)
    area, first = np.zeros(count, np.int64), np.full(count, np.iinfo(np.int64).max)
    np.add.at(area, region, objects.area[1:])
    np.minimum.at(first, region, objects.start[1:, 1] * mask.shape[1] + objects.start[1:, 0])
    regions: list[list[Polygon]] = [[] for _ in range(count)]
    for polygon, of in zip(polygons, region.tolist(), strict=True):
        regions[of].append(polygon)
    y, x = np.divmod(first, mask.shape[1])
    return {(int(x[number]), int(y[number])): regions[number] for number in np.lexsort((first, -area)).tolist()}


def _find_corners(mask: NDArray[np.bool_], objects: Components, block: int) -> _Corners:
    """Find the corners of 4-connected objects, sorted by y, x and then from west to east."""
    height, width = mask.shape
    above, below = np.zeros((2, width + 2), np.int64)  # object numbers of the row above the blocks, and of their last
    parts: list[NDArray[np.int64]] = [np.zeros((4, 0), np.int64)]
    pairs: list[NDArray[np.int64]] = [np.zeros((2, 0), np.int64)]
    left = np.zeros(0, np.int64)
    for x0, y0, w, h in cut_blocks(width, height, block):
        if x0 == 0:
            above, below = below, np.zeros(width + 2, np.int64)
            left = np.zeros(h, np.int64)
        # With the row above, the column at the left, and past the last row and column.
        numbers = np.zeros((h + 1 + (y0 + h == height), w + 1 + (x0 + w == width)), np.int32)
        part = mask[slice_window((x0, y0, w, h))]
        numbers[0] = above[x0 : x0 + numbers.shape[1]]
        numbers[1 : h + 1, 0] = left
        if part.any():
            numbers[1 : h + 1, 1 : w + 1] = objects.number_px((x0, y0, w, h), part)
        left = numbers[1 : h + 1, w].astype(np.int64)
        below[x0 + 1 : x0 + 1 + w] = numbers[h, 1 : w + 1]
        if numbers.any():
            found, touching = _find_turns(numbers)
            parts.append(found + np.array([[x0], [y0], [0], [0]]))
            pairs.append(touching)
    x, y, turn, number = np.concatenate(parts, axis=1)
    order = np.lexsort((_EAST[turn], x, y))
    return _Corners(x[order], y[order], turn[order], number[order], np.concatenate(pairs, axis=1))


def _find_turns(numbers: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the corners between px, from the object number of each: (4, n) x, y, turn, number; and `_Corners.pairs`."""
    around = numbers[:-1, :-1], numbers[:-1, 1:], numbers[1:, :-1], numbers[1:, 1:]
    code = np.zeros(around[0].shape, np.uint8)
    for bit, part in enumerate(around):
        code |= (part > 0).astype(np.uint8) << bit
    y, x = np.nonzero(_CORNERS[code])
    here = np.stack([part[y, x] for part in around])
    found = [np.stack([x, y, code[y, x].astype(np.int64), here.max(axis=0).astype(np.int64)])]
    pairs = [np.zeros((2, 0), np.int64)]
    for diagonal, (of_two, of_one) in _DIAGONALS.items():
        y, x = np.nonzero(code == diagonal)
        own = np.stack([part[y, x] for bit, part in enumerate(around) if diagonal >> bit & 1]).astype(np.int64)
        pairs.append(own)
        for number, turns in zip(own, zip(of_two, of_one, strict=True), strict=True):
            found.append(np.stack([x, y, np.where(own[0] == own[1], turns[1], turns[0]), number]))
    return np.concatenate(found, axis=1), np.concatenate(pairs, axis=1)


def _link(corners: _Corners) -> Iterator[tuple[int, Ring]]:
    """Yield the rings by their first corner, with its index."""
    count = len(corners.x)
    along_row = np.arange(count) ^ 1  # in each row the first corner is joined with the second, and so on
    by_column = np.lexsort((_SOUTH[corners.turn], corners.y, corners.x))
    along_column = np.empty(count, np.int64)
    along_column[by_column] = by_column[along_row]
    following = np.where(_LEAVES_ALONG_ROW[corners.turn], along_row, along_column).tolist()
    seen = bytearray(count)
    for start in range(count):
        ring, index = [], start
        while not seen[index]:
            seen[index] = 1
            ring.append(index)
            index = following[index]
        if ring:
            yield start, np.stack([corners.x[ring], corners.y[ring]], axis=1)
