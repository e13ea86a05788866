"""Where a slide has tissue, told by colour alone.

Haematoxylin and eosin both absorb green most, so stained tissue is always magenta to some degree: its green is
below the larger of red and blue. Glass, the constant grey patches some scanners fill in, black padding, pencil
and black, green or yellow ink are not, however dark they are, which is what brightness thresholds stumble over.
Blue and red ink are magenta by this measure too and are told by their extreme colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.errors import SlideError
from panda.wsi.geometry import Resolution, round_px
from panda.wsi.slide import Slide

OVERVIEW_UM = 8.0
"""µm per px at which tissue is looked for: a core is about a hundred px across."""

OVERVIEW_SIDE = 4096
"""Largest side in px of the picture in which tissue is looked for."""

UNKNOWN_SIDE = 2048
"""The same where the slide's µm/px is unknown."""

How = Literal["strict", "loose"]


@dataclass(frozen=True)
class _Pass:
    """Limits of one search. Magenta is in grey values of 0-255, areas are fractions of the picture's."""

    lowest: float
    highest: float
    speck: float
    hole: float


# Otsu's threshold stays within lowest..highest: on glass alone it would split noise, on a picture full of
# tissue it would split pale from dark tissue.
_PASSES: dict[How, _Pass] = {
    "strict": _Pass(lowest=8.0, highest=14.0, speck=1e-4, hole=2e-4),
    "loose": _Pass(lowest=4.5, highest=4.5, speck=2e-5, hole=2e-4),
}
_SMALLEST_AREA, _LARGEST_AREA = 4, 2000  # px, limits of what counts as a speck or a hole in any picture
_LARGEST_TINT = 8.0  # a scanner's glass is at most this magenta


def tissue_mask_rgb(img_rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Find tissue in a picture of a stained slide.

    Works at any scale, best at 2 to 16 µm/px. Colour is smoothed by a small median, the magenta of the glass is
    taken off, Otsu's threshold is kept within absolute limits, ink is left out, and specks and small holes are
    removed by area. Tissue is told from glass only: no benign tissue is told from cancer.

    Args:
        img_rgb: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) bool, True on tissue.

    Raises:
        ValueError: the array is not (H, W, 3) uint8.
    """
    return _find(img_rgb, _PASSES["strict"])


def _find(img_rgb: NDArray[np.uint8], limits: _Pass) -> NDArray[np.bool_]:
    if img_rgb.ndim != 3 or img_rgb.shape[2] != 3 or img_rgb.dtype != np.uint8:
        raise ValueError(f"a picture is (H, W, 3) uint8, not {img_rgb.shape} {img_rgb.dtype}")
    if img_rgb.size == 0:
        return np.zeros(img_rgb.shape[:2], np.bool_)
    smooth = cv2.medianBlur(np.ascontiguousarray(img_rgb), 5 if min(img_rgb.shape[:2]) >= 64 else 3)
    red, green, blue = (smooth[..., channel].astype(np.int16) for channel in range(3))
    magenta = np.maximum(red, blue) - green - _glass_tint(red, green, blue)
    # Blue ink mostly passes more green than red, as stained tissue never does; else its blue is extreme, and
    # so is the red of red ink.
    ink = (green - red > 8) | ((blue - red > 75) & (blue - green > 50)) | ((red - green > 100) & (red - blue > 100))
    magenta[ink] = 0
    np.clip(magenta, 0, 255, out=magenta)
    otsu, _ = cv2.threshold(magenta.astype(np.uint8), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    mask: NDArray[np.bool_] = magenta > min(max(otsu, limits.lowest), limits.highest)
    mask = _without_small(mask, limits.speck)
    return ~_without_small(~mask, limits.hole)


def _glass_tint(red: NDArray[np.int16], green: NDArray[np.int16], blue: NDArray[np.int16]) -> int:
    """How magenta the glass itself is: the median over what is bright and hardly coloured, if there is enough."""
    magenta = np.maximum(red, blue) - green
    glass = (np.minimum(np.minimum(red, green), blue) > 200) & (np.abs(magenta) <= _LARGEST_TINT)
    if np.count_nonzero(glass) < 0.05 * glass.size:
        return 0
    return int(max(0.0, np.median(magenta[glass])))


def _without_small(mask: NDArray[np.bool_], fraction: float) -> NDArray[np.bool_]:
    """Remove the connected parts of a mask that cover less than a fraction of the picture."""
    least = min(max(fraction * mask.size, _SMALLEST_AREA), _LARGEST_AREA)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    kept = np.zeros(count, np.bool_)
    kept[1:] = stats[1:, cv2.CC_STAT_AREA] >= least
    found: NDArray[np.bool_] = kept[labels]
    return found


@dataclass(frozen=True)
class TissueMap:
    """The tissue of a whole slide.

    Attributes:
        mask: (h, w) bool, True on tissue.
        resolution: the working resolution of ``mask``.
        how: ``"strict"``, or ``"loose"`` where only the search for pale tissue found any.
    """

    mask: NDArray[np.bool_]
    resolution: Resolution
    how: How

    @property
    def fraction(self) -> float:
        """Tissue as a fraction of the slide."""
        return float(self.mask.mean())

    def crop(self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Cut a window out at any working resolution of the slide, by nearest neighbour.

        Args:
            resolution: the resolution wanted.
            location: (x, y) of the top-left corner in level-0 px; may be negative.
            size: (width, height) in px of ``resolution``.

        Returns:
            (height, width) bool, False past the edge of the slide.
        """
        out = np.zeros((size[1], size[0]), np.bool_)
        own = self.resolution.downsample
        x = np.floor((location[0] + (np.arange(size[0]) + 0.5) * resolution.downsample) / own).astype(np.int64)
        y = np.floor((location[1] + (np.arange(size[1]) + 0.5) * resolution.downsample) / own).astype(np.int64)
        columns, rows = (x >= 0) & (x < self.mask.shape[1]), (y >= 0) & (y < self.mask.shape[0])
        out[np.ix_(rows, columns)] = self.mask[np.ix_(y[rows], x[columns])]
        return out

    def fraction_of(self, boxes_level0: NDArray[Any]) -> NDArray[np.float64]:
        """Tissue in each of many boxes, as a fraction of the box.

        The px of the map count with the part of them that lies in the box, exactly; what lies past the edge of
        the slide is no tissue.

        Args:
            boxes_level0: (N, 4) x0, y0, x1, y1 in level-0 px, each of positive area.

        Returns:
            (N,) float64 in 0..1, exactly 0 where a box touches no tissue.
        """
        boxes = np.asarray(boxes_level0, np.float64).reshape(-1, 4) / self.resolution.downsample
        x0, y0, x1, y1 = boxes.T
        inside = self._sum_to(x1, y1) - self._sum_to(x0, y1) - self._sum_to(x1, y0) + self._sum_to(x0, y0)
        inside[inside < 1e-6] = 0.0  # what the interpolation of large sums leaves of nothing
        fraction: NDArray[np.float64] = np.clip(inside / ((x1 - x0) * (y1 - y0)), 0.0, 1.0)
        return fraction

    @cached_property
    def _sums(self) -> NDArray[np.int32]:
        """Summed-area table, (h + 1, w + 1): tissue px left of and above each px corner."""
        return np.asarray(cv2.integral(self.mask.view(np.uint8), sdepth=cv2.CV_32S), np.int32)

    def _sum_to(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue area left of and above continuous points; between px corners the table is bilinear."""
        height, width = self.mask.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        left = np.minimum(x.astype(np.int64), width - 1)
        top = np.minimum(y.astype(np.int64), height - 1)
        fx, fy = x - left, y - top
        sums = self._sums
        upper = sums[top, left] * (1 - fx) + sums[top, left + 1] * fx
        lower = sums[top + 1, left] * (1 - fx) + sums[top + 1, left + 1] * fx
        area: NDArray[np.float64] = upper * (1 - fy) + lower * fy
        return area


def find_tissue(slide: Slide) -> TissueMap:
    """Find the tissue of a slide in an overview of about 8 µm/px, at most 4096 px a side.

    A level between 5 and 10 µm/px is used as it is, else a finer one is shrunk. Where the strict search finds
    nothing, a looser one for very pale tissue follows.

    Args:
        slide: the slide; where its µm/px is unknown, the overview has at most 2048 px a side.

    Raises:
        SlideError: neither search finds any tissue, or the slide cannot be read.
    """
    resolution = _overview_resolution(slide)
    picture = slide.read(resolution, (0, 0), resolution.size)
    for how, limits in _PASSES.items():
        mask = _find(picture, limits)
        if mask.any():
            return TissueMap(mask, resolution, how)
    raise SlideError(
        f"{slide.path}: no tissue found, not even pale tissue ({resolution.width} x {resolution.height} px "
        f"overview, mean grey {round_px(float(picture.mean()))}); is the slide stained? Leave it out if not"
    )


def _overview_resolution(slide: Slide) -> Resolution:
    side = max(slide.dimensions)
    if slide.mpp is None:
        return slide.at_downsample(max(1.0, side / UNKNOWN_SIDE))
    wanted = max(1.0, OVERVIEW_UM / min(slide.mpp), side / OVERVIEW_SIDE)
    near = [
        level
        for level in slide.usable_levels
        if 0.6 <= slide.level_downsamples[level] / wanted <= 1.25
        and max(slide.level_dimensions[level]) <= OVERVIEW_SIDE
    ]
    return slide.at(level=near[0]) if near else slide.at_downsample(wanted)
