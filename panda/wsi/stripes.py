"""Stripes of whole rows, in which a picture in memory is processed, and the components of its masks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from panda.wsi.components import ComponentFinder, Labels, Mask, Window

KEPT_PX = 2**21
"""Area in px up to which `MaskComponents` keeps the labels of a mask."""


def stripes(height: int, rows: int, halo: int = 0) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a picture into stripes of whole rows.

    Args:
        height: Height of the picture, px.
        rows: Rows of a stripe, at least 1.
        halo: Rows above and below that a filter needs.

    Yields:
        The stripe's rows; these rows with their halo, see `add_halo`; the stripe's rows within the latter.
    """
    for top in range(0, height, rows):
        own = slice(top, min(top + rows, height))
        yield own, *add_halo(own, height, halo)


def add_halo(own: slice, height: int, halo: int) -> tuple[slice, slice]:
    """Return rows with a halo that ends at the picture's edge, and the position of the rows within it."""
    first = max(own.start - halo, 0)
    return slice(first, min(own.stop + halo, height)), slice(own.start - first, own.stop - first)


class MaskComponents:
    """The 8-connected components of a mask in memory, found stripe by stripe.

    Args:
        mask: (H, W) bool.
        rows: Rows of a stripe.
        boxes: Measure boxes too.

    Attributes:
        area: Area, (n + 1,) int64 px; 0 for number 0, which is px outside of all components.
    """

    def __init__(self, mask: Mask, rows: int, *, boxes: bool = False) -> None:
        self._mask = mask
        self._rows = rows
        height, width = mask.shape
        finder = ComponentFinder(width, "box" if boxes else "area", keep_labels=mask.size <= KEPT_PX)
        for own, _, _ in stripes(height, rows):
            finder.add((0, own.start, width, own.stop - own.start), mask[own])
        self._found = finder.components()
        self.area = self._found.area

    @property
    def sides(self) -> NDArray[np.int64]:
        """Width and height of each component's box, (n + 1, 2) int64 px; 0 if boxes are not measured."""
        return np.asarray(self._found.box[:, 2:] - self._found.box[:, :2])

    def labels(self) -> Iterator[tuple[slice, Labels]]:
        """Yield the rows of each stripe that touches a component, and the numbers of their px.

        The caller may change these rows of the mask.
        """
        for own, window in self._stripes():
            if len(self._found.find_numbers(window)) > 1:
                yield own, self._found.number_px(window, self._mask[own])

    def mark_px(self, chosen: Mask) -> Iterator[tuple[slice, Mask]]:
        """Yield the rows of each stripe that touches a chosen component, and which of their px are chosen.

        The caller may change these rows of the mask.

        Args:
            chosen: (n + 1,) bool; entry 0 has no effect.
        """
        chosen = chosen.copy()
        chosen[0] = False
        for own, window in self._stripes():
            if chosen[self._found.find_numbers(window)].any():
                yield own, chosen[self._found.number_px(window, self._mask[own])]

    def remove(self, chosen: Mask) -> None:
        """Remove the chosen components, (n + 1,) bool, from the mask."""
        for own, px in self.mark_px(chosen):
            self._mask[own] &= ~px

    def _stripes(self) -> Iterator[tuple[slice, Window]]:
        height, width = self._mask.shape
        for own, _, _ in stripes(height, self._rows):
            yield own, (0, own.start, width, own.stop - own.start)


def keep_large(mask: Mask, area: float, rows: int) -> None:
    """Remove the 8-connected components that are smaller than an area in px from a mask."""
    components = MaskComponents(mask, rows)
    components.remove(components.area < area)
