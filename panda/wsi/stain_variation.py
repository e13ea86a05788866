"""Variation of a stain: other amounts and directions of haematoxylin and eosin, as another laboratory would get.

Optical density adds up over stains, see `panda.wsi.stain_normalization`. Only the two stains of a pixel change. The
rest of its optical density (blood, ink, pigment, noise) stays, so that nothing is lost. Glass does not change at all:
it is not magenta, and only magenta pixels count as stained (see `panda.wsi.appearance`).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from panda.wsi.stain_normalization import REFERENCE, WHITE, compute_density

GLASS_MAGENTA, STAINED_MAGENTA = 10, 28
"""Grey values of green below the larger of red and blue: at most the first in glass, at least the second in full stain.

A pixel between them changes in part, so that no edge appears.
"""
_MOST = 3.0  # amount of a stain: darker px are black in at least one channel, and their colour is noise
_BAND_PX = 2**14  # px that are processed at a time, so that they stay in the cache of the processor

_STAINS = np.array([REFERENCE.haematoxylin, REFERENCE.eosin])
_AMOUNTS = np.vstack([np.linalg.pinv(_STAINS.T), np.zeros(3)]).astype(np.float32)  # square, as OpenCV is fast at
_SHARE = np.clip((np.arange(256) - GLASS_MAGENTA) / (STAINED_MAGENTA - GLASS_MAGENTA), 0, 1)
_SHARE = (_SHARE**2 * (3 - 2 * _SHARE)).astype(np.float32)  # without a kink at either end


def vary_stain(rgb: NDArray[np.uint8], strength: ArrayLike, turn: ArrayLike = 0.0) -> NDArray[np.uint8]:
    """Change haematoxylin and eosin of a picture.

    Args:
        rgb: (h, w, 3) uint8 RGB.
        strength: Factors of the amounts of haematoxylin and eosin, (2,); 1 is neutral.
        turn: Added to their directions in optical density before these get length 1 again, (2, 3); 0 is neutral.

    Returns:
        (h, w, 3) uint8 RGB. Glass is unchanged, and so is all if both are neutral.
    """
    stains = _STAINS + turn
    stains *= np.linalg.norm(_STAINS, axis=1, keepdims=True) / np.linalg.norm(stains, axis=1, keepdims=True)
    change = np.zeros((3, 3), np.float32)
    change[:, :2] = (_STAINS - stains * np.reshape(strength, (2, 1))).T
    out = np.empty_like(rgb)
    rows = max(1, _BAND_PX // max(1, rgb.shape[1]))
    for top in range(0, len(rgb), rows):
        band = rgb[top : top + rows]
        red, green, blue = cv2.split(band)
        share = cv2.LUT(cv2.subtract(cv2.max(red, blue), green), _SHARE)
        values = cv2.transform(compute_density(band, (WHITE, WHITE, WHITE)), _AMOUNTS)
        cv2.transform(np.clip(values, 0, _MOST, out=values), change, dst=values)
        cv2.exp(cv2.multiply(values, cv2.merge((share, share, share)), dst=values), dst=values)
        out[top : top + rows] = cv2.multiply(band, values, dtype=cv2.CV_8U)
    return out
