"""Measure how sharp tissue is, by its detail at 2 µm."""

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
"""The first scale shows the borders of nuclei (5 to 10 µm), the second their bodies."""

BLURRED = 0.22
"""A window with less sharpness is out of focus, by a Gaussian of 2 µm or more; see docs/audit.md."""

WINDOWS = 12
"""Number of windows of tissue that are measured on a slide."""

_SIDE_UM = 200.0  # of a window, at least
_SIDE_PX = 512  # windows are multiples of it, to align with tiles
_LEAST_TISSUE = 0.5  # share of a window
_FLAT = 1.0  # variance of grey values below which a window has no detail


@dataclass(frozen=True)
class Sharpness:
    """The median sharpness of the windows of a slide, the share of them below `BLURRED`, and their number."""

    median: float
    blurred: float
    windows: int


def compute_sharpness(rgb: NDArray[np.uint8], um: float) -> float | None:
    """Compute the sharpness of a window of tissue.

    It is the smaller of two ratios of variances, which do not depend on the strength of the stain. The Laplacian at
    2 µm/px over that at 4 µm/px falls with slight blur. The Laplacian at 2 µm/px over the contrast there (doubled, to
    have the same limit) still falls if only the noise of camera and JPEG is left.

    Args:
        rgb: Window, (h, w, 3) uint8.
        um: µm per px, at most 2.

    Returns:
        The smaller ratio, at least 0.46 on the slides in focus that were tried. None for a window of one colour.
    """
    grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.float32)
    fine, coarse = _shrink(grey, FINE_UM / um), _shrink(grey, COARSE_UM / um)
    contrast = float(fine.var())
    if contrast < _FLAT:
        return None
    detail = float(cv2.Laplacian(fine, cv2.CV_32F).var())
    return min(detail / max(float(cv2.Laplacian(coarse, cv2.CV_32F).var()), 1e-6), 2 * detail / contrast)


def _shrink(grey: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Shrink by area means."""
    size = max(1, round(grey.shape[1] / factor)), max(1, round(grey.shape[0] / factor))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.float32)


def measure_sharpness(slide: Slide, tissue: TissueMap, *, seed: int) -> Sharpness | None:
    """Measure the sharpness of random windows of a slide's tissue at level 0, chosen by `seed`.

    It is None if µm/px is unknown or over 2 at level 0, or if no window is half tissue and has detail.
    """
    if slide.mpp is None or (um := mean_mpp(slide.mpp)) > FINE_UM:
        return None
    side = _SIDE_PX * math.ceil(_SIDE_UM / um / _SIDE_PX)
    width, height = slide.dimensions
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(0, width, side), np.arange(0, height, side)))
    boxes = np.stack([x, y, np.minimum(x + side, width), np.minimum(y + side, height)], axis=1)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) * um >= _SIDE_UM / 2]
    boxes = boxes[tissue.measure_fraction(boxes) >= _LEAST_TISSUE] if len(boxes) else boxes
    found = [
        compute_sharpness(slide.read_region((left, top), 0, (right - left, bottom - top)), um)
        for left, top, right, bottom in np.random.default_rng(seed).permutation(boxes)[:WINDOWS].tolist()
    ]
    values = np.array([value for value in found if value is not None])
    if not len(values):
        return None
    return Sharpness(float(np.median(values)), float((values < BLURRED).mean()), len(values))
