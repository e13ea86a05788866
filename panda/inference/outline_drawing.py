"""Draw the outline of the tumour into the picture of a whole slide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.inference.class_colours import Colour
from panda.inference.polygons import Outlines, trace
from panda.wsi.geometry import round_px

OUTLINE: Colour = (0, 0, 0)
_HALO = (255, 255, 255)
_SHIFT, _PARTS = 4, 16
"""Binary digits of a fraction of a px, and the number of such fractions."""


def find_thickness(image: NDArray[np.uint8]) -> int:
    """Return the width in px of lines that are visible in the whole of an image, (h, w, 3)."""
    longest: int = max(image.shape)
    return max(1, round_px(longest / 1200))


def find_closed_gap(image: NDArray[np.uint8]) -> int:
    """Return the width in px of the widest gap that `draw_outlines` closes in an image, (h, w, 3)."""
    return 6 * find_thickness(image)


def draw_outlines(image: NDArray[np.uint8], outlines: Outlines, scale: float) -> None:
    """Draw outlines into an image, exact to a px: a dark line on a light one, visible on any colour.

    Gaps and holes that are hardly wider than the line would show as a tangle of specks. So they are closed before.

    Args:
        image: (h, w, 3) uint8 RGB.
        outlines: Outlines of the tumour in working px.
        scale: Px of the image per working px.
    """
    mask, gap = np.zeros(image.shape[:2], np.uint8), find_closed_gap(image) + 1
    cv2.fillPoly(mask, [_fix(ring * scale - 0.5) for ring in outlines.rings], 1, cv2.LINE_8, _SHIFT)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap))
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc), np.uint8)
    kept = [
        ring
        for polygon in trace(mask.view(np.bool_)).polygons
        for number, ring in enumerate(polygon)
        if number == 0 or cv2.contourArea(ring.astype(np.int32)) > gap**2
    ]
    thick = find_thickness(image)
    draw_rings(image, kept, OUTLINE, (thick, 2 * thick + 1))


def draw_rings(
    image: NDArray[np.uint8], rings: Iterable[NDArray[Any]], colour: Colour, widths: tuple[int, int]
) -> None:
    """Draw closed rings into an image in a colour, on wider light ones.

    Args:
        image: (h, w, 3) uint8 RGB.
        rings: (n, 2) x, y corners of each, in px edges of the image.
        colour: The colour.
        widths: Widths of the line and of the light one below it, px.
    """
    lines = [cv2.approxPolyDP(_fix(ring - 0.5), 0.75 * _PARTS, True) for ring in rings]
    for own, width in ((_HALO, widths[1]), (colour, widths[0])):
        cv2.polylines(image, lines, True, own, width, cv2.LINE_AA, _SHIFT)


def fade_outside(image: NDArray[np.uint8], rings: Iterable[NDArray[Any]], share: float) -> None:
    """Mix white into the px of an image outside of closed rings.

    Args:
        image: (h, w, 3) uint8 RGB.
        rings: (n, 2) x, y corners of each, in px edges of the image; a ring inside another one is a hole.
        share: Share of white.
    """
    inside = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(inside, [_fix(ring - 0.5) for ring in rings], 1, cv2.LINE_8, _SHIFT)
    pale = cv2.addWeighted(image, 1 - share, np.full_like(image, 255), share, 0)
    np.copyto(image, pale, where=inside[..., None] == 0)


def _fix(corners: NDArray[np.floating]) -> NDArray[np.int32]:
    """Return coordinates as OpenCV takes fractions of a px."""
    return round_px(np.asarray(corners * _PARTS)).astype(np.int32)
