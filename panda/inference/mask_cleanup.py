"""Clean a tumour mask in place, block by block: remove small objects, then fill small holes.

The order matters: a speck inside a gland is removed first, so it does not keep the hole around it open. Objects are
8-connected and holes 4-connected, or the reverse, so a diagonal never joins both.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from panda.wsi.components import BLOCK, ComponentFinder, Components, Window, find_components, window_slices
from panda.wsi.geometry import cut_blocks


def clean_mask(
    mask: NDArray[np.bool_],
    fillable: Callable[[Window], NDArray[np.bool_]],
    *,
    min_region: float,
    min_hole: float,
    connectivity: int = 8,
    block: int = BLOCK,
) -> Components:
    """Remove small objects of a mask, then fill its small holes, in place.

    Args:
        mask: (H, W) bool; changed in place.
        fillable: Returns the (h, w) bool part of the pixels in a window that may be filled. Other pixels of a hole
            stay open, but they count towards the area of the hole.
        min_region: Objects of fewer px are removed.
        min_hole: Holes of fewer px are filled. A gap that reaches the edge of the map is no hole.
        connectivity: Connectivity of the objects, 4 or 8; holes use the other one.
        block: Side of the blocks in px; it changes no result.

    Returns:
        The objects of the clean mask.
    """
    height, width = mask.shape
    objects = find_components(lambda window: mask[window_slices(window)], (height, width), connectivity, block)
    keep = objects.area >= min_region
    keep[0] = False
    hole_finder = ComponentFinder(width, 12 - connectivity)
    for window in cut_blocks(width, height, block):
        part = mask[window_slices(window)]
        if part.any():
            part[:] = keep[objects.number_px(window, part)]
        hole_finder.add(window, ~part)
    holes = hole_finder.components()
    enclosed = (holes.box[:, :2] > 0).all(axis=1) & (holes.box[:, 2] < width) & (holes.box[:, 3] < height)
    fill = enclosed & (holes.area < min_hole)
    fill[0] = False
    clean_finder = ComponentFinder(width, connectivity)
    for window in cut_blocks(width, height, block):
        part = mask[window_slices(window)]
        if fill.any() and not part.all():  # the other masks are not empty in a block that is all hole
            small = fill[holes.number_px(window, ~part)]
            if small.any():
                part |= small & fillable(window)
        clean_finder.add(window, part)
    return clean_finder.components()
