"""Connected components of masks that are too large to be labelled at once.

A mask is labelled block by block (see `panda.wsi.geometry.cut_blocks`), and components that touch across a seam are
joined. Labels take four bytes a px, so they are not kept but made again when needed. No result depends on the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.wsi.geometry import cut_blocks

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]

BLOCK = 1024
"""Side of a block in px: a multiple of the canvas's chunks. One takes about 30 bytes a px while it is labelled."""
Window = tuple[int, int, int, int]
"""x0, y0, width, height in px."""
Measure = Literal["area", "box", "all"]
"""The measures of components: `box` takes twice as long as `area` alone, `all` longer."""


def slice_window(window: Window) -> tuple[slice, slice]:
    """Return the rows and columns of a window."""
    x0, y0, width, height = window
    return slice(y0, y0 + height), slice(x0, x0 + width)


@dataclass(frozen=True)
class Components:
    """The connected components of a mask, numbered from 1.

    With all measures the largest is the first, and of equal ones the topmost.

    Attributes:
        area: Area, (n + 1,) int64 px; entry 0 is the background in all arrays.
        box: Left, top, right, bottom, (n + 1, 4) int64 px edges; 0 if not measured.
        centroid: x and y of the mean pixel index, (n + 1, 2) float64; 0 if not measured.
        start: x and y of the leftmost px of the topmost row, (n + 1, 2) int64; 0 if not measured.
    """

    area: NDArray[np.int64]
    box: NDArray[np.int64]
    centroid: NDArray[np.float64]
    start: NDArray[np.int64]
    _numbers: dict[tuple[int, int], Labels]  # by corner of the block: the number of each of its labels
    _labels: dict[tuple[int, int], Labels]
    _connectivity: int

    def __len__(self) -> int:
        return len(self.area) - 1

    def find_numbers(self, window: Window) -> Labels:
        """Return the numbers of the components that a block of the mask touches, after a 0 for the background."""
        return self._numbers[window[:2]]

    def number_px(self, window: Window, mask: Mask) -> Labels:
        """Return the number of the component of each px of a block, (h, w) int32; 0 outside of all.

        Args:
            window: A block in which the components were found.
            mask: The unchanged content of the block, (h, w) bool.
        """
        numbers = self.find_numbers(window)
        if len(numbers) == 1:
            return np.zeros(mask.shape, np.int32)
        labels = self._labels.get(window[:2])
        return np.asarray(numbers[label(mask, self._connectivity) if labels is None else labels])


class ComponentFinder:
    """Finds the components of a mask whose blocks are added row by row.

    Args:
        width: Width of the mask, px.
        connectivity: 8 joins pixels that touch at a corner, 4 does not.
        measure: The measures of each component.
        keep_labels: Keep the labels of all blocks.
    """

    def __init__(self, width: int, connectivity: int, measure: Measure = "all", *, keep_labels: bool = False) -> None:
        self.width, self.connectivity, self.measure = width, connectivity, measure
        self._keep_labels = keep_labels
        self._stats: list[NDArray[np.int64]] = []
        self._pairs: list[NDArray[np.int64]] = []
        self._blocks: dict[tuple[int, int], tuple[int, int]] = {}  # labels before the block, labels of the block
        self._labels: dict[tuple[int, int], Labels] = {}
        self._count = 0
        # Labels of the last row above the present blocks, with a margin for corners, and of the last column.
        self._above, self._row = np.zeros((2, width + 2), np.int64)
        self._left = np.zeros(0, np.int64)

    def add(self, window: Window, mask: Mask) -> None:
        """Label the block (h, w) bool at a window."""
        x0, y0, width, height = window
        if x0 == 0:
            self._above, self._row = self._row, np.zeros(self.width + 2, np.int64)
            self._left = np.zeros(height, np.int64)
        self._blocks[x0, y0] = self._count, 0
        if not mask.any():
            self._left = np.zeros(height, np.int64)
            return
        labels, stats = _measure(mask, self.connectivity, self.measure, x0, y0)
        if self._keep_labels:
            self._labels[x0, y0] = labels
        top, bottom, left, right = (
            np.where(line > 0, line.astype(np.int64) + self._count, 0)
            for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1])
        )
        for shift in (-1, 0, 1) if self.connectivity == 8 else (0,):
            self._join(self._above[x0 + 1 + shift : x0 + 1 + shift + width], top)
            down, up = max(shift, 0), max(-shift, 0)
            self._join(self._left[down : height - up], left[up : height - down])
        self._row[x0 + 1 : x0 + 1 + width] = bottom
        self._left = right
        self._stats.append(stats)
        self._blocks[x0, y0] = self._count, len(stats)
        self._count += len(stats)

    def _join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Store the pairs of labels that touch, without repetitions in sequence."""
        both = (one > 0) & (other > 0)
        pairs = np.stack([one[both], other[both]])
        new = np.ones(pairs.shape[1], np.bool_)
        new[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
        self._pairs.append(pairs[:, new] - 1)

    def components(self) -> Components:
        """Join labels that touch across seams, and number the components."""
        columns = {"area": 1, "box": 5, "all": 8}[self.measure]
        stats = np.concatenate([np.zeros((0, columns), np.int64), *self._stats])
        pairs = np.concatenate([np.zeros((2, 0), np.int64), *self._pairs], axis=1)
        roots, of = np.unique(_find_roots(self._count, pairs), return_inverse=True)
        found = len(roots)
        area, sums = np.zeros(found, np.int64), np.zeros((found, 2), np.int64)
        box, start, order = np.zeros((found, 4), np.int64), np.zeros((found, 2), np.int64), np.arange(found)
        np.add.at(area, of, stats[:, 0])
        if self.measure != "area":
            box[:, :2] = np.iinfo(np.int64).max
            np.minimum.at(box[:, :2], of, stats[:, 1:3])
            np.maximum.at(box[:, 2:], of, stats[:, 3:5])
        if self.measure == "all":
            np.add.at(sums, of, stats[:, 5:7])
            first = np.full(found, np.iinfo(np.int64).max)
            np.minimum.at(first, of, stats[:, 2] * self.width + stats[:, 7])
            start = np.stack([first % max(self.width, 1), first // max(self.width, 1)], axis=1)
            order = np.lexsort((first, -area))
        rank = np.empty(found, np.int32)
        rank[order] = np.arange(1, found + 1)
        number = rank[of]
        return Components(
            area=np.concatenate([[0], area[order]]),
            box=np.concatenate([np.zeros((1, 4), np.int64), box[order]]),
            centroid=np.concatenate([np.zeros((1, 2)), sums[order] / area[order, None]]),
            start=np.concatenate([np.zeros((1, 2), np.int64), start[order]]),
            _numbers={
                corner: np.append(np.int32(0), number[before : before + own])
                for corner, (before, own) in self._blocks.items()
            },
            _labels=self._labels,
            _connectivity=self.connectivity,
        )


def find_components(
    read: Callable[[Window], Mask], shape: tuple[int, int], connectivity: int, block: int = BLOCK
) -> Components:
    """Find the components of a mask.

    Args:
        read: Returns the (h, w) bool part of the mask in a window.
        shape: (height, width) of the mask in px.
        connectivity: 4 or 8.
        block: Side of the blocks in px.
    """
    finder = ComponentFinder(shape[1], connectivity)
    for window in cut_blocks(shape[1], shape[0], block):
        finder.add(window, read(window))
    return finder.components()


def label(mask: Mask, connectivity: int) -> Labels:
    """Label the components of a block, (h, w) int32; the same mask always gets the same labels."""
    return np.asarray(
        cv2.connectedComponents(np.ascontiguousarray(mask).view(np.uint8), connectivity=connectivity)[1], np.int32
    )


def _measure(mask: Mask, connectivity: int, measure: Measure, x0: int, y0: int) -> tuple[Labels, NDArray[np.int64]]:
    """Label a block, and measure its components in px of the whole mask.

    Returns:
        The labels, and (n, 1), (n, 5) or (n, 8) figures: area; left, top, right, bottom; sum of x, sum of y, first
        column.
    """
    if measure == "area":  # takes half the time of OpenCV's statistics
        labels = label(mask, connectivity)
        return labels, np.bincount(labels.ravel())[1:, None]
    _, found, stats, centroids = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=connectivity, ltype=cv2.CV_32S
    )
    labels = np.asarray(found, np.int32)
    left, top, width, height, area = stats[1:].astype(np.int64).T
    columns = [area, left + x0, top + y0, left + x0 + width, top + y0 + height]
    if measure == "all":
        # The mean of whole numbers times their number is whole: rounding restores what the floats lost.
        sums = np.rint(centroids[1:] * area[:, None]).astype(np.int64) + area[:, None] * np.array([x0, y0])
        columns += [sums[:, 0], sums[:, 1], _find_first_columns(labels, top) + x0]
    return labels, np.stack(columns, axis=1)


def _find_first_columns(labels: Labels, tops: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the leftmost column of each label's topmost row, in px of the block."""
    columns = np.zeros(len(tops), np.int64)
    for top in np.unique(tops):
        found, first = np.unique(labels[top], return_index=True)
        here = np.flatnonzero(tops == top)
        columns[here] = first[np.searchsorted(found, here + 1)]
    return columns


def _find_roots(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the smallest of all numbers, 0 to count - 1, that pairs join each number to, directly or not.

    Each round halves the number of trees at least (Shiloach and Vishkin, "An O(log n) parallel connectivity
    algorithm", J Algorithms 3:57-67, 1982).
    """
    root = np.arange(count)
    while pairs.size:
        pairs = root[pairs]
        pairs = pairs[:, pairs[0] != pairs[1]]
        np.minimum.at(root, pairs.max(axis=0), pairs.min(axis=0))
        while (root[root] != root).any():
            root = root[root]
    return root
