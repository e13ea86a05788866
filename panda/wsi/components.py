"""The connected parts of masks as large as a slide's overview, found stripe by stripe.

Labels take four bytes a px, more than all else that a search keeps, so there are never those of a whole mask at once:
each stripe is labelled by itself, parts that meet at its edges are joined, and labels are made again when asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]

KEPT_PX = 2**21
"""Px of a mask whose labels are kept; those of a larger one are made again."""


def stripes(height: int, rows: int, halo: int = 0) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a picture into stripes of whole rows.

    Args:
        height: Of the picture in px.
        rows: Of a stripe, at least 1.
        halo: Rows above and below that a filter needs.

    Yields:
        The stripe's rows; the same with its halo, as far as the picture goes; the stripe's rows within the latter.
    """
    for top in range(0, height, rows):
        own = slice(top, min(top + rows, height))
        yield own, *around(own, height, halo)


def around(own: slice, height: int, halo: int) -> tuple[slice, slice]:
    """Rows with a halo, as far as the picture goes, and where the rows themselves lie in it."""
    first = max(own.start - halo, 0)
    return slice(first, min(own.stop + halo, height)), slice(own.start - first, own.stop - first)


class Pieces:
    """The 8-connected parts of a mask. They have numbers over 0, not all of which are taken; 0 is what is in none.

    Args:
        mask: (H, W) bool.
        rows: Of a stripe.
        boxes: Measure the parts' sides too.

    Attributes:
        area: (N,) px of each part; 0 for number 0 and those that are not taken.
        sides: (N, 2) width and height of each part's box in px, 0 likewise; where they are not measured, all 0.
    """

    def __init__(self, mask: Mask, rows: int, *, boxes: bool = False) -> None:
        self._mask = mask
        self._rows = rows
        self._kept: list[Labels | None] = []
        firsts, areas, corners = [], [np.zeros(1, np.int64)], [np.zeros((1, 4), np.int64)]
        pairs: list[NDArray[np.int64]] = []
        above = np.zeros(mask.shape[1], np.int64)
        total = 1
        for own, _, _ in stripes(mask.shape[0], rows):
            firsts.append(total)
            if not mask[own].any():
                above = np.zeros_like(above)
                self._kept.append(None)
                continue
            labels, area, box = _labelled(mask[own], boxes)
            areas.append(area)
            corners.append(box + np.array((0, own.start, 0, own.start)))
            edges = labels[[0, -1]].astype(np.int64)
            first, last = np.where(edges > 0, edges + (total - 1), 0)
            pairs += [_meeting(above, first), _meeting(above[1:], first[:-1]), _meeting(above[:-1], first[1:])]
            above = last
            total += len(area)
            self._kept.append(labels if mask.size <= KEPT_PX else None)
        firsts.append(total)
        numbers = _joined(total, np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64))
        self._numbers = [np.append(np.int32(0), numbers[start:stop]) for start, stop in itertools.pairwise(firsts)]
        self.area = np.zeros(total, np.int64)
        np.add.at(self.area, numbers, np.concatenate(areas))
        low = np.full((total, 2), max(mask.shape), np.int64)
        high = np.zeros((total, 2), np.int64)
        corner = np.concatenate(corners)
        if boxes:
            np.minimum.at(low, numbers, corner[:, :2])
            np.maximum.at(high, numbers, corner[:, 2:])
        self.sides = np.maximum(high - low, 0)
        self.sides[0] = 0

    def labels(self) -> Iterator[tuple[slice, Labels]]:
        """Number the px of each stripe in turn; a stripe that touches no part is passed over.

        Yields:
            The stripe's rows, and the number of each of its px. These rows of the mask may be altered then.
        """
        for number, (own, _, _) in enumerate(stripes(self._mask.shape[0], self._rows)):
            if len(self._numbers[number]) > 1:
                yield own, self._numbers[number][self._labels(number, own)]

    def px_of(self, chosen: Mask) -> Iterator[tuple[slice, Mask]]:
        """Mark the px of the parts that are chosen, (N,) bool; a stripe that touches none is passed over.

        Yields:
            The stripe's rows, and which of its px are chosen. These rows of the mask may be altered then.
        """
        for number, (own, _, _) in enumerate(stripes(self._mask.shape[0], self._rows)):
            here = chosen[self._numbers[number]]
            here[0] = False
            if here.any():
                yield own, here[self._labels(number, own)]

    def _labels(self, number: int, own: slice) -> Labels:
        """The labels of a stripe."""
        kept = self._kept[number]
        if kept is not None:
            return kept
        return np.asarray(cv2.connectedComponents(self._mask[own].view(np.uint8), connectivity=8)[1], np.int32)

    def remove(self, chosen: Mask) -> None:
        """Take the parts that are chosen, (N,) bool, out of the mask."""
        for own, px in self.px_of(chosen):
            self._mask[own] &= ~px


def keep_large(mask: Mask, area: float, rows: int) -> None:
    """Take the 8-connected parts out of a mask that are smaller than an area in px."""
    pieces = Pieces(mask, rows)
    pieces.remove(pieces.area < area)


def _labelled(mask: Mask, boxes: bool) -> tuple[Labels, NDArray[np.int64], NDArray[np.int64]]:
    """Label a stripe; the area of each part, and the box: left, top, right, bottom."""
    if not boxes:  # twice as fast as OpenCV's own statistics
        count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        area = np.bincount(labels.ravel(), minlength=count)[1:]
        return np.asarray(labels, np.int32), area, np.zeros((count - 1, 4), np.int64)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    left, top, width, height, area = stats[1:].T.astype(np.int64)
    return np.asarray(labels, np.int32), area, np.stack([left, top, left + width, top + height], axis=1)


def _meeting(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers, (N, 2), that lie one below the other."""
    both = (above > 0) & (below > 0)
    pairs = np.stack([above[both], below[both]], axis=1)
    again = np.zeros(len(pairs), np.bool_)  # most say what their neighbour says
    again[1:] = (pairs[1:] == pairs[:-1]).all(axis=1)
    return np.asarray(pairs[~again], np.int64)


def _joined(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int32]:
    """The numbers from 0 on, those that pairs join all as the least of them."""
    root: dict[int, int] = {}

    def root_of(number: int) -> int:
        while (higher := root.get(number, number)) != number:
            root[number] = number = root.get(higher, higher)
        return number

    for one, other in pairs.tolist():
        low, high = sorted((root_of(one), root_of(other)))
        root[high] = low
    numbers = np.arange(count, dtype=np.int32)
    for number in root:
        numbers[number] = root_of(number)
    return numbers
