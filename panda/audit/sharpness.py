"""Whether tissue is in focus: how much of its detail at 2 µm is left."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.wsi.geometry import mean_mpp
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

FINE_UM, COARSE_UM = 2.0, 4.0
"""Nuclei, of 5 to 10 µm, have their borders at the first and their bodies at the second."""

BLURRED = 0.22
"""Sharpness below which a window is out of focus: a Gaussian of 2 µm and more, see docs/audit.md."""

WINDOWS = 12
"""Windows of tissue that are measured on a slide."""

_SIDE_UM = 200.0  # of a window, at least
_SIDE_PX = 512  # windows are multiples of it, so that they meet the tiles
_LEAST_TISSUE = 0.5  # share of a window
_FLAT = 1.0  # variance of grey values below which there is nothing to be sharp


@dataclass(frozen=True)
class Sharpness:
    """How sharp the windows measured are.

    Attributes:
        median: Of `compute_sharpness` over the windows.
        blurred: Share of the windows below `BLURRED`.
        windows: How many were measured.
    """

    median: float
    blurred: float
    windows: int


def compute_sharpness(rgb: NDArray[np.uint8], um: float) -> float | None:
    """Measure a window of tissue.

    Two ratios of variances, which hold whatever the strength of the stain: the Laplacian at 2 µm/px over that at
    4 µm/px, which falls with the first blur, and over the contrast at 2 µm/px (doubled, to have the same limit),
    which goes on falling where nothing is left but the noise of camera and JPEG.

    Args:
        rgb: (h, w, 3) uint8.
        um: µm per px, at most 2.

    Returns:
        The smaller ratio; in focus it was 0.46 or more in the slides tried. None where the window is of one colour.
    """
    grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.float32)
    fine, coarse = _shrunk(grey, FINE_UM / um), _shrunk(grey, COARSE_UM / um)
    contrast = float(fine.var())
    if contrast < _FLAT:
        return None
    detail = float(cv2.Laplacian(fine, cv2.CV_32F).var())
    return min(detail / max(float(cv2.Laplacian(coarse, cv2.CV_32F).var()), 1e-6), 2 * detail / contrast)


def _shrunk(grey: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Shrink by area means."""
    size = max(1, round(grey.shape[1] / factor)), max(1, round(grey.shape[0] / factor))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.float32)


def measure_sharpness(slide: Slide, tissue: TissueMap, *, seed: int) -> Sharpness | None:
    """Measure windows of a slide's tissue at level 0.

    Args:
        slide: The slide.
        tissue: Its tissue.
        seed: Of the windows that are taken.

    Returns:
        None where it cannot be said: µm/px is unknown or over 2 at level 0, or no window is half tissue.

    Raises:
        SlideError: The slide cannot be read there.
    """
    if slide.mpp is None or (um := mean_mpp(slide.mpp)) > FINE_UM:
        return None
    side = _SIDE_PX * math.ceil(_SIDE_UM / um / _SIDE_PX)
    width, height = slide.dimensions
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(0, width, side), np.arange(0, height, side)))
    boxes = np.stack([x, y, np.minimum(x + side, width), np.minimum(y + side, height)], axis=1)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) * um >= _SIDE_UM / 2]
    boxes = boxes[tissue.fraction_of(boxes) >= _LEAST_TISSUE] if len(boxes) else boxes
    found: list[float] = []
    for left, top, right, bottom in np.random.default_rng(seed).permutation(boxes)[:WINDOWS].tolist():
        value = compute_sharpness(slide.read_region((left, top), 0, (right - left, bottom - top)), um)
        if value is not None:
            found.append(value)
    if not found:
        return None
    values = np.array(found)
    return Sharpness(float(np.median(values)), float((values < BLURRED).mean()), len(values))
