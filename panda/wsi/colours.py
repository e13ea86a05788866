"""Colours in a picture of a slide: the magenta of stained tissue, the colours of ink, and counts of values."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.wsi.components import Mask

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]

_LEAST_SATURATION = 0.08  # magenta over green absorbed; black ink and grey dirt have less


def measure_magenta(red: Bytes, green: Bytes, blue: Bytes, noise: int) -> Bytes:
    """Return how much less green passes than red or blue, in grey values above the glass; 0 if hardly coloured."""
    magenta = cv2.subtract(cv2.max(red, blue), green)
    magenta = cv2.subtract(magenta, np.full_like(magenta, noise))
    magenta[magenta < cv2.convertScaleAbs(cv2.bitwise_not(green), alpha=_LEAST_SATURATION)] = 0
    return np.asarray(magenta, np.uint8)


def detect_ink(red: Bytes, green: Bytes, blue: Bytes) -> tuple[Mask, Mask]:
    """Return px with the colour of red ink, and of any other ink, specks included."""
    red_over, blue_over = cv2.subtract(red, green), cv2.subtract(blue, green)
    reds = (red_over > 100) & (cv2.subtract(red, blue) > 100)
    # Green and most blue inks pass more green than red, unlike stained tissue; dark blue inks pass as much. Other
    # blues are extreme, and so is the lack of blue in yellow ink.
    others = (
        (cv2.subtract(green, red) > 8)
        | ((red_over <= 5) & (blue_over > 30))
        | ((cv2.subtract(blue, red) > 75) & (blue_over > 50))
        | (cv2.subtract(green, blue) > 60)
    )
    return np.asarray(reds), np.asarray(others)


def count_values(values: Any, where: Mask | None = None) -> Counts:
    """Count each of the values 0 to 255 of a (h, w) uint8 array of less than 2^24 px."""
    mask = None if where is None else where.view(np.uint8)
    return cv2.calcHist([np.asarray(values)], [0], mask, [256], [0, 256]).ravel().astype(np.int64)


def find_median(counts: Counts) -> float:
    """Return the median of counted values, the mean of the middle two if their number is even."""
    upto, last = counts.cumsum(), int(counts.sum()) - 1
    return float(np.searchsorted(upto, (last // 2, (last + 1) // 2), side="right").mean())


def make_disc(side: int) -> NDArray[Any]:
    """Return a round kernel of a side in px."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
