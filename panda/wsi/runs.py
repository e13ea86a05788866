"""Horizontal runs of a mask, and its connected components.

A run is a row's px of the mask without a gap between them. Runs take memory with the outline of a mask, not with its
area. Their components are found without an image of labels, as Rosenfeld and Pfaltz do ("Sequential operations in
digital picture processing", J ACM 13:471-494, 1966).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panda.wsi.components import Window, group_numbers

Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]
Places = NDArray[np.int32]

_BAND_PX = 2**20
_AT_ONCE = 2**16  # px that are painted, or runs that are compared with those above them, at a time


@dataclass(frozen=True)
class Runs:
    """The runs of a mask, row by row and from the left.

    Attributes:
        y: Row, (n,) int32 px.
        left: First column, (n,) int32 px.
        right: Column after the last, (n,) int32 px.
        shape: (height, width) of the mask in px.
    """

    y: Places
    left: Places
    right: Places
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.y)

    @property
    def length(self) -> Integers:
        """Number of px, (n,)."""
        return np.subtract(self.right, self.left, dtype=np.int64)

    @property
    def sum_of_x(self) -> Integers:
        """Sum of the columns of the px, (n,)."""
        return (self.length - 1 + 2 * self.left.astype(np.int64)) * self.length // 2

    @classmethod
    def from_mask(cls, mask: Mask | NDArray[np.uint8], number: int | None = None) -> Runs:
        """Find the runs of a mask, (H, W) bool, or of a number in (H, W) uint8, in bands of whole rows."""
        height, width = mask.shape
        found = [np.zeros((3, 0), np.int32)]
        rows = max(1, _BAND_PX // max(1, width))
        for top in range(0, height, rows):
            part = mask[top : top + rows]
            part = part if number is None else part == number
            if not part.any():
                continue
            change = np.empty((len(part), width + 1), np.bool_)
            change[:, 0], change[:, -1] = part[:, 0], part[:, -1]
            np.not_equal(part[:, 1:], part[:, :-1], out=change[:, 1:-1])
            y, x = np.divmod(np.flatnonzero(change), width + 1)
            found.append(np.stack([y[::2] + top, x[::2], x[1::2]]).astype(np.int32))
        y, left, right = np.concatenate(found, axis=1)
        return cls(y, left, right, (height, width))

    def select(self, chosen: Mask) -> Runs:
        """Return the runs that are chosen, (n,) bool."""
        return Runs(self.y[chosen], self.left[chosen], self.right[chosen], self.shape)

    def invert(self) -> Runs:
        """Return the runs of the px outside of the mask."""
        height, width = self.shape
        rows = np.arange(height) * (width + 1)
        starts = np.sort(np.concatenate([rows, self.number_places(self.right)]), kind="stable")
        ends = np.sort(np.concatenate([self.number_places(self.left), rows + width]), kind="stable")
        some = starts < ends
        y, left = np.divmod(starts[some], width + 1)
        right = ends[some] - y * (width + 1)
        return Runs(y.astype(np.int32), left.astype(np.int32), right.astype(np.int32), self.shape)

    def number_places(self, x: Places) -> Integers:
        """Return the numbers of px edges, (n,), in the rows of the runs; a row has one edge more than px."""
        return self.y.astype(np.int64) * (self.shape[1] + 1) + x

    def cut(self, window: Window) -> tuple[Integers, Runs]:
        """Return the parts of the runs in a window, in px of the window, with the index of the run of each."""
        x0, y0, width, height = window
        first, past = np.searchsorted(self.y, (y0, y0 + height))
        inside = np.flatnonzero((self.left[first:past] < x0 + width) & (self.right[first:past] > x0)) + first
        left, right = np.maximum(self.left[inside] - x0, 0), np.minimum(self.right[inside] - x0, width)
        return inside, Runs(self.y[inside] - y0, left, right, (height, width))

    def paint(self, image: NDArray[Any], value: Any) -> None:
        """Set the px of the runs in an image, (H, W), to a value."""
        length = self.length
        past = length.cumsum()
        steps = np.searchsorted(past, np.arange(_AT_ONCE, past[-1], _AT_ONCE)) if len(self) else ()
        for own in np.split(np.arange(len(self)), steps):
            count = length[own]
            x = np.arange(count.sum()) + np.repeat(self.left[own] - (count.cumsum() - count), count)
            image[np.repeat(self.y[own], count), x] = value

    def find_touching(self, connectivity: int) -> Places:
        """Return the pairs of runs in neighbouring rows that touch, (2, m) indices.

        With connectivity 8, runs touch that have only a corner in common; with 4, they do not.
        """
        corner = connectivity == 8
        starts, ends = self.number_places(self.left), self.number_places(self.right)
        pairs = [np.zeros((2, 0), np.int32)]
        row = self.shape[1] + 1
        for at in range(0, len(self), _AT_ONCE):
            left, right = starts[at : at + _AT_ONCE] - row, ends[at : at + _AT_ONCE] - row
            first = np.searchsorted(ends, left, "left" if corner else "right")
            past = np.searchsorted(starts, right, "right" if corner else "left")
            count = past - first
            lower = np.repeat(np.arange(at, at + len(count)), count)
            upper = np.arange(len(lower)) + np.repeat(first - (np.cumsum(count) - count), count)
            pairs.append(np.stack([upper, lower]).astype(np.int32))
        return np.concatenate(pairs, axis=1)


@dataclass(frozen=True)
class ConnectedRuns:
    """The connected components of a mask, numbered from 1: the largest is the first, and of equal ones the topmost.

    Attributes:
        runs: The runs of the mask.
        number: Number of the component of each run, (runs,) int64.
        area: Area, (n + 1,) int64 px; entry 0 is the background in all arrays.
        box: Left, top, right, bottom, (n + 1, 4) int64 px edges.
        centroid: x and y of the mean pixel index, (n + 1, 2) float64.
        start: x and y of the leftmost px of the topmost row, (n + 1, 2) int64.
    """

    runs: Runs
    number: Integers
    area: Integers
    box: Integers
    centroid: NDArray[np.float64]
    start: Integers

    def __len__(self) -> int:
        return len(self.area) - 1


def connect_runs(runs: Runs, connectivity: int) -> ConnectedRuns:
    """Find the components of a mask from its runs; connectivity 8 joins px that touch at a corner, 4 does not."""
    count, of = group_numbers(len(runs), runs.find_touching(connectivity))
    first, last = np.empty((2, count), np.int64)
    last[of] = np.arange(len(runs))  # the last one assigned stays
    first[of[::-1]] = np.arange(len(runs))[::-1]
    # Arrays of their own, with the types of what they get: `at` takes ten times as long for others.
    area, sum_x, sum_y = (np.zeros(count, np.int64) for _ in range(3))
    left, right = runs.left[first], runs.right[first]
    length = runs.length
    np.add.at(area, of, length)
    np.add.at(sum_x, of, runs.sum_of_x)
    np.add.at(sum_y, of, runs.y * length)
    np.minimum.at(left, of, runs.left)
    np.maximum.at(right, of, runs.right)
    box = np.stack([left, runs.y[first], right, runs.y[last] + 1], axis=1).astype(np.int64)
    sums = np.stack([sum_x, sum_y], axis=1)
    order = np.lexsort((first, -area))
    number = np.empty(count, np.int64)
    number[order] = np.arange(1, count + 1)
    first, area = first[order], area[order]
    return ConnectedRuns(
        runs,
        number[of],
        area=np.concatenate([[0], area]),
        box=np.concatenate([np.zeros((1, 4), np.int64), box[order]]),
        centroid=np.concatenate([np.zeros((1, 2)), sums[order] / area[:, None]]),
        start=np.concatenate([np.zeros((1, 2), np.int64), np.stack([runs.left[first], runs.y[first]], axis=1)]),
    )
