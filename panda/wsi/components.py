"""Connected components of masks that are too large to be labelled at once.

A mask is labelled block by block (see `panda.wsi.geometry.cut_blocks`), and components that touch across a seam are
joined. Labels take four bytes a px, so they are not kept but made again when needed. No result depends on the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]

BLOCK = 1024
"""Side of a block in px: a multiple of the canvas's chunks. One takes about 30 bytes a px while it is labelled."""
Window = tuple[int, int, int, int]
"""x0, y0, width, height in px."""
Measure = Literal["area", "box"]
"""The measures of components: `box` takes twice as long as `area` alone."""


def slice_window(window: Window) -> tuple[slice, slice]:
    """Return the rows and columns of a window."""
    x0, y0, width, height = window
    return slice(y0, y0 + height), slice(x0, x0 + width)


@dataclass(frozen=True)
class Components:
    """The 8-connected components of a mask, numbered from 1.

    Attributes:
        area: Area, (n + 1,) int64 px; entry 0 is the background in all arrays.
        box: Left, top, right, bottom, (n + 1, 4) int64 px edges; 0 if not measured.
    """

    area: NDArray[np.int64]
    box: NDArray[np.int64]
    _numbers: dict[tuple[int, int], Labels]  # by corner of the block: the number of each of its labels
    _labels: dict[tuple[int, int], Labels]

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
        return np.asarray(numbers[label(mask) if labels is None else labels])


class ComponentFinder:
    """Finds the 8-connected components of a mask whose blocks are added row by row.

    Args:
        width: Width of the mask, px.
        measure: The measures of each component.
        keep_labels: Keep the labels of all blocks.
    """

    def __init__(self, width: int, measure: Measure, *, keep_labels: bool = False) -> None:
        self.width, self.measure = width, measure
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
        labels, stats = _measure(mask, self.measure, x0, y0)
        if self._keep_labels:
            self._labels[x0, y0] = labels
        top, bottom, left, right = (
            np.where(line > 0, line.astype(np.int64) + self._count, 0)
            for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1])
        )
        for shift in (-1, 0, 1):
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
        columns = {"area": 1, "box": 5}[self.measure]
        stats = np.concatenate([np.zeros((0, columns), np.int64), *self._stats])
        pairs = np.concatenate([np.zeros((2, 0), np.int64), *self._pairs], axis=1)
        found, of = group_numbers(self._count, pairs)
        area, box = np.zeros(found, np.int64), np.zeros((found, 4), np.int64)
        np.add.at(area, of, stats[:, 0])
        if self.measure == "box":
            box[:, :2] = np.iinfo(np.int64).max
            np.minimum.at(box[:, :2], of, stats[:, 1:3])
            np.maximum.at(box[:, 2:], of, stats[:, 3:5])
        number = (of + 1).astype(np.int32)
        return Components(
            area=np.concatenate([[0], area]),
            box=np.concatenate([np.zeros((1, 4), np.int64), box]),
            _numbers={
                corner: np.append(np.int32(0), number[before : before + own])
                for corner, (before, own) in self._blocks.items()
            },
            _labels=self._labels,
        )


def label(mask: Mask) -> Labels:
    """Label the 8-connected components of a block, (h, w) int32; the same mask always gets the same labels."""
    return np.asarray(cv2.connectedComponents(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)[1], np.int32)


def _measure(mask: Mask, measure: Measure, x0: int, y0: int) -> tuple[Labels, NDArray[np.int64]]:
    """Label a block, and measure its components in px of the whole mask.

    Returns:
        The labels, and (n, 1) or (n, 5) figures: area; left, top, right, bottom.
    """
    if measure == "area":  # takes half the time of OpenCV's statistics
        labels = label(mask)
        return labels, np.bincount(labels.ravel())[1:, None]
    _, found, stats, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    left, top, width, height, area = stats[1:].astype(np.int64).T
    columns = [area, left + x0, top + y0, left + x0 + width, top + y0 + height]
    return np.asarray(found, np.int32), np.stack(columns, axis=1)


def group_numbers(count: int, pairs: NDArray[Any]) -> tuple[int, NDArray[np.int64]]:
    """Group the numbers from 0 to count - 1 that pairs join, directly or not.

    Args:
        count: How many numbers there are.
        pairs: (2, n) whole numbers.

    Returns:
        How many groups there are, and the group of each number, (count,). A group with a smaller first number comes
        first.
    """
    graph = coo_array((np.ones(pairs.shape[1], np.int8), tuple(pairs)), (count, count))
    groups, of = connected_components(graph, directed=False)
    return int(groups), np.asarray(of, np.int64)
