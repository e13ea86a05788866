"""Turn a mask into polygons along the edges of its pixels, with the same area."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.wsi.components import cut_out, find_components, slice_window

Ring = NDArray[np.int64]
"""(n, 2) x, y corners in px edges, not closed: pixel i spans i to i + 1."""


def trace(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """Trace a mask's outline along pixel edges.

    Pixels that touch only at a corner give separate polygons, because a ring that meets itself there is not valid.
    Every pixel edge is on exactly one ring, so the areas of the polygons are exact pixel counts.

    Args:
        mask: (H, W) bool.

    Returns:
        One list per polygon, largest first: its outer ring, then its holes.
    """
    objects = find_components(lambda window: mask[slice_window(window)], (mask.shape[0], mask.shape[1]), 4)
    polygons = []
    for box, start in zip(objects.box[1:].tolist(), objects.start[1:].tolist(), strict=True):
        part = cut_out(mask, box, start, connectivity=4)
        polygons.append([ring + np.array(box[:2]) for ring in _trace_rings(part)])
    return polygons


def _trace_rings(part: NDArray[np.bool_]) -> Iterator[Ring]:
    """Yield the outer ring and then the holes of one 4-connected object.

    OpenCV's contours run through pixel centres. After each pixel is doubled, its four copies stand for its four
    corners, and a contour through them is a path along its edges.
    """
    doubled = part.view(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for index in np.argsort(hierarchy[0, :, 3] >= 0, kind="stable"):  # the one without a parent first
        corners = (contours[index][:, 0, :].astype(np.int64) + 1) // 2
        corners = corners[np.any(corners != np.roll(corners, 1, axis=0), axis=1)]
        before, after = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
        yield corners[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
