"""The tiles of a slide, of its map and of its label: grids of levels, and their pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from panda.inference.canvas_store import Canvas
from panda.inference.class_colours import encode_map
from panda.inference.codes import STEPS
from panda.inference.slide_images import reduce_resolution, shrink
from panda.wsi.geometry import Resolution, round_px
from panda.wsi.label_maps import UNKNOWN, look_up_codes
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

SIDE = 512
"""Side of a tile in px of its level."""
JPEG_QUALITY = 90
_FAR_APART = 3.0
"""Ratio of the downsamples of two levels from which there is a level between them."""

Window = tuple[int, int, int, int]
"""x, y, width and height in px of a level."""


def list_slide_levels(slide: Slide) -> list[Resolution]:
    """Return the levels that a browser shows, finest first: those of the file, and others between and above them.

    A level of the file has unchanged px. The others have a downsample that is a power of two times that of the level
    below, up to a level that is one tile.
    """
    native = sorted({slide.level_downsamples[level] for level in slide.usable_levels})
    found = []
    for downsample, finer_than in itertools.zip_longest(native, native[1:]):
        step = downsample
        while True:
            resolution = slide.choose_resolution(downsample=step)
            found.append(resolution)
            is_last = max(resolution.size) <= SIDE if finer_than is None else finer_than / step < _FAR_APART
            if is_last:
                break
            step *= 2
    return found


def list_map_factors(canvas: Canvas) -> list[int]:
    """Return the px of a map per px of each of its levels, 1 first, up to a level that is one tile."""
    factors = [1]
    while max(canvas.shape) > SIDE * factors[-1]:
        factors.append(2 * factors[-1])
    return factors


def cut_tile(size: tuple[int, int], column: int, row: int) -> Window | None:
    """Return the window of a tile in a level of a size (width, height); None if it has no such tile."""
    x, y = column * SIDE, row * SIDE
    width, height = min(SIDE, size[0] - x), min(SIDE, size[1] - y)
    return (x, y, width, height) if width > 0 and height > 0 else None


def draw_slide(slide: Slide, level: Resolution, window: Window) -> bytes:
    """Return the JPEG of a window of a slide."""
    pixels = slide.read(level, _find_corner(level, window), window[2:])
    return bytes(imagecodecs.jpeg8_encode(pixels, level=JPEG_QUALITY, subsampling="444"))


def draw_map(canvas: Canvas, factor: int, window: Window, tissue: TissueMap | None) -> bytes | None:
    """Return the PNG of a window of a map; None if nothing of it is scored.

    It is that of `encode_map`, but red and blue are the upper and lower byte of 65534 × probability of cancer. So the
    px at or above a threshold are those that the figures count.

    Args:
        canvas: The map.
        factor: Working px of the map per px of the level.
        window: The window in px of the level.
        tissue: Px outside it count as not scored; None if it is unknown.
    """
    by_class, share = shrink(canvas, factor, window)
    if tissue is not None:
        share *= tissue.window(reduce_resolution(canvas.resolution, factor), *window)
    planes = encode_map(by_class, share, canvas.classes)
    steps = np.rint(np.minimum(by_class.sum(axis=0), 1) * STEPS).astype(np.uint16)
    planes[..., 0], planes[..., 2] = steps >> 8, steps & 255
    return _encode(planes) if planes[..., 1].any() else None


def draw_label(label: LabelMask, codes: Sequence[int], level: Resolution, window: Window) -> bytes | None:
    """Return the PNG of a window of a label in grey: 1 for the first of `codes`, 2 for the second; 0 for others.

    None if none of the codes is there. The window has the px of `draw_slide` with the same arguments.
    """
    label_map = label.label_maps[label.provider]
    table = np.full(256, UNKNOWN, np.uint8)
    table[list(label_map.names)] = 0
    table[list(codes)] = np.arange(1, len(codes) + 1)
    found = look_up_codes(label.read(level, _find_corner(level, window), window[2:]), table, label.provider)
    return _encode(found) if found.any() else None


def _find_corner(level: Resolution, window: Window) -> tuple[int, int]:
    """Return the upper left corner of a window in level-0 px."""
    return round_px(window[0] * level.downsample), round_px(window[1] * level.downsample)


def _encode(values: NDArray[np.uint8]) -> bytes:
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(values), level=1))
