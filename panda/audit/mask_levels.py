"""Check that the smaller levels of a label mask have codes of its larger levels, and not means of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.wsi.geometry import axis_scales, ceil_px, floor_px
from panda.wsi.mask_image import MAX_PX, CodeImage

_SIDE = 256
"""Side of a compared window, px of the smaller level."""
_WINDOWS = 4
"""Windows of each level that are compared, those with most edges between codes."""
_LEAST_PX = 16
"""Px with a code that the larger level lacks there, at least, of a level that was averaged."""


def find_averaging(image: CodeImage) -> str | None:
    """Say which level of a mask has codes where the next larger one has none of them; None if there is none."""
    sizes = image.level_dimensions
    if len(sizes) == 1 or math.prod(sizes[-1]) > MAX_PX:
        return None
    edges = _list_edges(image, len(sizes) - 1)
    for level in range(1, len(sizes)):
        strange = np.zeros(256, np.int64)
        for window in _choose_windows(edges, sizes[level]):
            strange += _count_strange(image, level, window)
        if strange.sum() >= _LEAST_PX:
            listed = ", ".join(f"{code} ({strange[code]} px)" for code in np.flatnonzero(strange).tolist())
            return f"level {level} has {listed} at places where level {level - 1} has no such code"
    return None


def _list_edges(image: CodeImage, level: int) -> NDArray[np.float64]:
    """Return the places where codes change at a level, (n, 2) as parts of width and height."""
    width, height = image.level_dimensions[level]
    codes = image.read(level, 0, 0, width, height, keep=False)
    change = np.zeros(codes.shape, bool)
    change[:, 1:] |= codes[:, 1:] != codes[:, :-1]
    change[1:] |= codes[1:] != codes[:-1]
    return (np.argwhere(change)[:, ::-1] + 0.5) / (width, height)


def _choose_windows(edges: NDArray[np.float64], size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield the windows (x, y, w, h) of a level of a size (W, H) that have most edges."""
    width, height = size
    columns = math.ceil(width / _SIDE)
    cells = (edges * size).astype(np.int64) // _SIDE
    counts = np.bincount(cells[:, 1] * columns + cells[:, 0])
    for cell in np.argsort(counts, kind="stable")[::-1][:_WINDOWS].tolist():
        if counts[cell]:
            y, x = (index * _SIDE for index in divmod(cell, columns))
            yield x, y, min(_SIDE, width - x), min(_SIDE, height - y)


def _count_strange(image: CodeImage, level: int, window: tuple[int, int, int, int]) -> NDArray[np.int64]:
    """Count the px of a window by code that have no such code near them in the next larger level; (256,) int64."""
    x, y, width, height = window
    whole, (step_x, step_y) = image.level_dimensions[level - 1], _find_steps(image, level)
    x0, y0 = np.maximum(0, floor_px(np.array([(x - 1) * step_x, (y - 1) * step_y]))).tolist()
    x1, y1 = min(whole[0], ceil_px((x + width + 1) * step_x)), min(whole[1], ceil_px((y + height + 1) * step_y))
    codes, larger = image.read(level, *window), image.read(level - 1, x0, y0, x1 - x0, y1 - y0)
    # A px of one code within a px of the smaller level, whose px may be off by half of it.
    kernel = np.ones((2 * math.ceil(step_y) + 1, 2 * math.ceil(step_x) + 1), np.uint8)
    at_x = np.clip(floor_px((x + np.arange(width) + 0.5) * step_x) - x0, 0, larger.shape[1] - 1)
    at_y = np.clip(floor_px((y + np.arange(height) + 0.5) * step_y) - y0, 0, larger.shape[0] - 1)
    strange = np.zeros(256, np.int64)
    for code in np.unique(codes).tolist():
        near = np.asarray(cv2.dilate((larger == code).view(np.uint8), kernel))[np.ix_(at_y, at_x)]
        strange[code] = np.count_nonzero((codes == code) & (near == 0))
    return strange


def _find_steps(image: CodeImage, level: int) -> tuple[float, float]:
    """Return px of the next larger level per px of a level, along x and y."""
    full = image.level_dimensions[0]
    own, larger = (axis_scales(full, image.level_dimensions[number]) for number in (level, level - 1))
    return own[0] / larger[0], own[1] / larger[1]
