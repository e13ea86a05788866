"""Connected objects of a mask that is looked at block by block, so that no map is too large.

Each block is labelled by itself; labels that touch across a seam are then joined. An object is the same one, with the
same figures, whatever the size of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BLOCK = 1024
"""Side of a block in px: a multiple of the canvas's chunks. One takes about 30 bytes a px while it is labelled."""

Window = tuple[int, int, int, int]
"""x0, y0, width, height in px."""


def windows(shape: tuple[int, int], block: int = BLOCK) -> Iterator[Window]:
    """Cut a map into blocks, row by row.

    Args:
        shape: (height, width) in px.
        block: Side of a block in px; those at the right and lower edge may be smaller.
    """
    height, width = shape
    for y0 in range(0, height, block):
        for x0 in range(0, width, block):
            yield x0, y0, min(block, width - x0), min(block, height - y0)


@dataclass(frozen=True)
class Objects:
    """The connected objects of a mask, numbered from 1: largest first, then from the top.

    Attributes:
        area: (n + 1,) int64 px; entry 0 is the background, in all of these.
        box: (n + 1, 4) int64 left, top, right, bottom in px edges.
        centroid: (n + 1, 2) float64 x, y of the mean pixel index.
        start: (n + 1, 2) int64 x, y of the first px: the leftmost of the topmost row.
    """

    area: NDArray[np.int64]
    box: NDArray[np.int64]
    centroid: NDArray[np.float64]
    start: NDArray[np.int64]
    _number: NDArray[np.int32]
    _offsets: dict[tuple[int, int], int]
    _connectivity: int

    def __len__(self) -> int:
        return len(self.area) - 1

    def numbered(self, window: Window, mask: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Number the pixels of a block.

        Args:
            window: One of those that the objects were found in.
            mask: (h, w) bool: its part of the mask, as it was then.

        Returns:
            (h, w) int32: the number of the object that a pixel belongs to, 0 outside of all.
        """
        if not mask.any():
            return np.zeros(mask.shape, np.int32)
        labels, stats, _ = _label(mask, self._connectivity)
        first = self._offsets[window[:2]]
        table = self._number[first : first + len(stats)].copy()
        table[0] = 0
        return table[labels]


@dataclass
class ObjectFinder:
    """Finds the objects of a mask whose blocks are added in the order of `windows`.

    Args:
        width: Of the mask, px.
        connectivity: 8 joins pixels that touch at a corner, 4 does not.
    """

    width: int
    connectivity: int
    _stats: list[NDArray[np.int64]] = field(default_factory=list)
    _joins: list[NDArray[np.int64]] = field(default_factory=list)
    _offsets: dict[tuple[int, int], int] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        # Labels of the last row above the present blocks, with a margin for corners, and of the last column.
        self._above = np.zeros(self.width + 2, np.int64)
        self._row = np.zeros(self.width + 2, np.int64)
        self._left = np.zeros(0, np.int64)

    def add(self, window: Window, mask: NDArray[np.bool_]) -> None:
        """Label one block.

        Args:
            window: Where it lies.
            mask: (h, w) bool.
        """
        x0, y0, width, height = window
        self._offsets[x0, y0] = self._count
        if x0 == 0:
            self._above, self._row = self._row, np.zeros(self.width + 2, np.int64)
            self._left = np.zeros(height, np.int64)
        if not mask.any():
            self._left = np.zeros(height, np.int64)
            return
        labels, stats, centroids = _label(mask, self.connectivity)
        self._stats.append(_moved(stats[1:], centroids[1:], _first_columns(labels, stats), x0, y0))
        top, bottom, left, right = (
            _onto(line, self._count) for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1])
        )
        corners = (-1, 0, 1) if self.connectivity == 8 else (0,)
        for shift in corners:
            self._join(self._above[x0 + 1 + shift : x0 + 1 + shift + width], top)
            down, up = max(shift, 0), max(-shift, 0)
            self._join(self._left[down : height - up], left[up : height - down])
        self._row[x0 + 1 : x0 + 1 + width] = bottom
        self._left = right
        self._count += len(stats) - 1

    def _join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        both = (one > 0) & (other > 0)
        if both.any():
            self._joins.append(np.unique(np.stack([one[both], other[both]]), axis=1))

    def objects(self) -> Objects:
        """Join what touches across seams, and put the objects in order."""
        pairs = np.concatenate(self._joins, axis=1) if self._joins else np.zeros((2, 0), np.int64)
        graph = coo_array((np.ones(pairs.shape[1], np.bool_), pairs - 1), shape=(self._count, self._count))
        found, of = connected_components(graph, directed=False) if self._count else (0, np.zeros(0, np.int32))
        stats = np.concatenate(self._stats) if self._stats else np.zeros((0, 8), np.int64)
        area, sums = np.zeros(found, np.int64), np.zeros((found, 2), np.int64)
        np.add.at(area, of, stats[:, 4])
        np.add.at(sums, of, stats[:, 5:7])
        low = np.full((found, 2), np.iinfo(np.int64).max)
        high = np.zeros((found, 2), np.int64)
        np.minimum.at(low, of, stats[:, 0:2])
        np.maximum.at(high, of, stats[:, 2:4])
        start = np.full(found, np.iinfo(np.int64).max)
        np.minimum.at(start, of, stats[:, 1] * self.width + stats[:, 7])
        order = np.lexsort((start, -area))
        number = np.zeros(self._count + 1, np.int32)
        rank = np.empty(found, np.int32)
        rank[order] = np.arange(1, found + 1)
        number[1:] = rank[of]
        box = np.concatenate([low, high], axis=1)[order]
        place = np.stack([start % self.width, start // self.width], axis=1)[order] if self.width else low
        background = np.zeros((1, 2), np.int64)
        return Objects(
            area=np.concatenate([[0], area[order]]),
            box=np.concatenate([np.zeros((1, 4), np.int64), box]),
            centroid=np.concatenate([background, sums[order] / np.maximum(area[order], 1)[:, None]]),
            start=np.concatenate([background, place]),
            _number=number,
            _offsets=self._offsets,
            _connectivity=self.connectivity,
        )


def find_objects(
    read: Callable[[Window], NDArray[np.bool_]], shape: tuple[int, int], connectivity: int, block: int = BLOCK
) -> Objects:
    """Find the objects of a mask.

    Args:
        read: Gives the (h, w) bool part of the mask in a window.
        shape: (height, width) of the mask in px.
        connectivity: 4 or 8.
        block: Side of the blocks in px.
    """
    finder = ObjectFinder(shape[1], connectivity)
    for window in windows(shape, block):
        finder.add(window, read(window))
    return finder.objects()


def cut_out(mask: NDArray[np.bool_], box: Sequence[int], start: Sequence[int], connectivity: int) -> NDArray[np.bool_]:
    """Cut one object out of a mask: (h, w) bool, its box without what else lies in there.

    Args:
        mask: (H, W) bool.
        box: Left, top, right, bottom of the object in px edges.
        start: X, y of one of its px.
        connectivity: 4 or 8, that it was found with.
    """
    left, top, right, bottom = box
    labels, _, _ = _label(mask[top:bottom, left:right], connectivity)
    return np.asarray(labels == labels[start[1] - top, start[0] - left], np.bool_)


def _label(
    mask: NDArray[np.bool_], connectivity: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    """Labels, statistics and centroids of one block; the same mask always gets the same labels."""
    _, labels, stats, centroids = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=connectivity, ltype=cv2.CV_32S
    )
    return np.asarray(labels, np.int32), np.asarray(stats, np.int32), np.asarray(centroids, np.float64)


def _onto(line: NDArray[np.int32], offset: int) -> NDArray[np.int64]:
    """Labels of a block's edge among those of all blocks: background stays 0."""
    return np.where(line > 0, line.astype(np.int64) + offset, 0)


def _first_columns(labels: NDArray[np.int32], stats: NDArray[np.int32]) -> NDArray[np.int64]:
    """The leftmost column of each label's topmost row, in px of the block."""
    tops = stats[1:, cv2.CC_STAT_TOP]
    columns = np.zeros(len(tops), np.int64)
    for top in np.unique(tops):
        row = labels[top]
        found, first = np.unique(row, return_index=True)
        here = np.flatnonzero(tops == top)
        columns[here] = first[np.searchsorted(found, here + 1)]
    return columns


def _moved(
    stats: NDArray[np.int32], centroids: NDArray[np.float64], first: NDArray[np.int64], x0: int, y0: int
) -> NDArray[np.int64]:
    """(n, 8): left, top, right, bottom, area, sum of x, sum of y, first column: of the whole map."""
    left, top, width, height, area = stats.astype(np.int64).T
    # The mean of whole numbers times their number is whole: what the floats lost comes back by rounding.
    sums = np.rint(centroids * area[:, None]).astype(np.int64) + area[:, None] * np.array([x0, y0])
    columns = [left + x0, top + y0, left + x0 + width, top + y0 + height, area, sums[:, 0], sums[:, 1], first + x0]
    return np.stack(columns, axis=1)
