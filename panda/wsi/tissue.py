"""Where a slide has tissue: the searches over its overview, and the map they leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.errors import SlideError
from panda.wsi.appearance import LOOSE, STRICT, Picture
from panda.wsi.geometry import Resolution, floor_px, round_px
from panda.wsi.slide import Slide

OVERVIEW_UM = 8.0
"""µm per px at which tissue is looked for: a core is about a hundred px across."""

OVERVIEW_PX = 4_000_000
"""Largest area in px of the picture in which tissue is looked for: four in a hundred of PANDA's slides are larger at
8 µm per px and are looked at more coarsely. It bounds the memory that a slide takes, whatever its size."""

RULES = 1
"""A new number whenever other pixels would count as tissue: stores and canvases made before are made anew."""

_BOXES = 2**12  # at a time

LEAST_STRICT = 0.5
"""The strict search stands where it finds at least this share of what the loose one finds."""

How = Literal["strict", "loose", "whole"]


def tissue_mask_rgb(img_rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Find tissue in a picture of a slide stained with haematoxylin and eosin.

    Works at any scale, best at 5 to 16 µm/px; searches as `find_tissue` does, strict and loose. Tissue is told from
    glass only: no benign tissue is told from cancer.

    Args:
        img_rgb: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) bool, True on tissue; all False where there is none.

    Raises:
        ValueError: The array is not (H, W, 3) uint8.
    """
    if img_rgb.ndim != 3 or img_rgb.shape[2] != 3 or img_rgb.dtype != np.uint8:
        raise ValueError(f"a picture is (H, W, 3) uint8, not {img_rgb.shape} {img_rgb.dtype}")
    if img_rgb.size == 0:
        return np.zeros(img_rgb.shape[:2], np.bool_)
    return _stained(Picture(img_rgb, None))[0]


def _stained(picture: Picture) -> tuple[NDArray[np.bool_], How]:
    """Search strictly, and loosely where there may be much more; the loose search stands where it finds that."""
    strict = picture.tissue(STRICT)
    enough = np.count_nonzero(strict) / LEAST_STRICT
    if enough < np.count_nonzero(picture.candidates(LOOSE)):
        loose = picture.tissue(LOOSE)
        if enough < np.count_nonzero(loose):
            return loose, "loose"
    return strict, "strict"


@dataclass(frozen=True)
class TissueMap:
    """The tissue of a whole slide.

    Attributes:
        mask: (h, w) bool, True on tissue.
        resolution: The working resolution of `mask`.
        how: `"strict"`; `"loose"` where the tissue is so pale that only the looser search found most of it;
            `"whole"` where the slide is not stained as expected, so that all of it counts as tissue.
        glass: Colour of the clean glass, RGB; None where there is too little of it to tell.
    """

    mask: NDArray[np.bool_]
    resolution: Resolution
    how: How
    glass: tuple[float, float, float] | None = None

    @property
    def fraction(self) -> float:
        """Tissue as a fraction of the slide."""
        return float(self.mask.mean())

    def crop(self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Cut a window out at any working resolution of the slide, by nearest neighbour.

        Args:
            resolution: The resolution wanted.
            location: (x, y) of the top-left corner in level-0 px; may be negative.
            size: (width, height) in px of `resolution`.

        Returns:
            (height, width) bool, False past the edge of the slide.
        """
        own = self.resolution.downsample
        x = (location[0] + (np.arange(size[0]) + 0.5) * resolution.downsample) / own
        y = (location[1] + (np.arange(size[1]) + 0.5) * resolution.downsample) / own
        return self._nearest(x, y)

    def window(self, resolution: Resolution, x0: int, y0: int, width: int, height: int) -> NDArray[np.bool_]:
        """Cut a window out by px of a working resolution: the same px as of the whole of it by `crop`.

        Args:
            resolution: The resolution wanted.
            x0: Left edge in px of `resolution`; may be negative.
            y0: Top edge, likewise.
            width: In px of `resolution`.
            height: Likewise.

        Returns:
            (height, width) bool, False past the edge of the slide.
        """
        own = self.resolution.downsample
        x = (x0 + np.arange(width) + 0.5) * resolution.downsample / own
        y = (y0 + np.arange(height) + 0.5) * resolution.downsample / own
        return self._nearest(x, y)

    def _nearest(self, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """The mask's px that hold the points (x, y) of a grid, in px of the mask; False outside of it."""
        out = np.zeros((len(y), len(x)), np.bool_)
        column, row = floor_px(x), floor_px(y)
        columns, rows = (column >= 0) & (column < self.mask.shape[1]), (row >= 0) & (row < self.mask.shape[0])
        out[np.ix_(rows, columns)] = self.mask[np.ix_(row[rows], column[columns])]
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
        parts = [self._fraction_of(boxes[start : start + _BOXES]) for start in range(0, len(boxes), _BOXES)]
        return np.concatenate([np.empty(0), *parts])

    def _fraction_of(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue in boxes in px of the map."""
        height, width = self.mask.shape
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        x0, y0, x1, y1 = np.clip(boxes, 0, (width, height, width, height)).T
        # A summed-area table takes four bytes a px: of the rows between the boxes only.
        top = min(int(y0.min()), height - 1)
        rows = self.mask[top : max(int(np.ceil(y1.max())), top + 1)]
        sums = np.asarray(cv2.integral(rows.view(np.uint8), sdepth=cv2.CV_32S), np.int32)
        y0, y1 = y0 - top, y1 - top
        inside = _sum_to(sums, x1, y1) - _sum_to(sums, x0, y1) - _sum_to(sums, x1, y0) + _sum_to(sums, x0, y0)
        inside[inside < 1e-6] = 0.0  # what the interpolation of large sums leaves of nothing
        fraction: NDArray[np.float64] = np.clip(inside / area, 0.0, 1.0)
        return fraction


def _sum_to(sums: NDArray[np.int32], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tissue area left of and above continuous points; between px corners the table is bilinear."""
    left = np.minimum(x.astype(np.int64), sums.shape[1] - 2)
    top = np.minimum(y.astype(np.int64), sums.shape[0] - 2)
    fx, fy = x - left, y - top
    upper = sums[top, left] * (1 - fx) + sums[top, left + 1] * fx
    lower = sums[top + 1, left] * (1 - fx) + sums[top + 1, left + 1] * fx
    area: NDArray[np.float64] = upper * (1 - fy) + lower * fy
    return area


@dataclass(frozen=True)
class Survey:
    """A slide looked over for tissue.

    Attributes:
        overview: (h, w, 3) uint8 RGB, the whole slide.
        picture: The same, made ready for searches.
        resolution: Of both, about 8 µm/px and at most 4 million px.
        tissue: What was found; None where there is nothing but glass, ink and dirt.
    """

    overview: NDArray[np.uint8]
    picture: Picture
    resolution: Resolution
    tissue: TissueMap | None


def survey(slide: Slide) -> Survey:
    """Look a slide over as `find_tissue` does, and keep what was looked at.

    Raises:
        SlideError: The slide cannot be read.
    """
    resolution = _overview_resolution(slide)
    overview = slide.read(resolution, (0, 0), resolution.size, keep=False)
    picture = Picture(overview, resolution.mean_mpp)
    tissue = _searched(picture, lambda: overview, resolution)
    return Survey(overview, picture, resolution, tissue)


def _searched(picture: Picture, overview: Callable[[], NDArray[np.uint8]], resolution: Resolution) -> TissueMap | None:
    """The tissue of an overview, of which the picture was made ready; None where there is none."""
    mask, how = _stained(picture)
    if mask.any():
        return TissueMap(mask, resolution, how, picture.glass)
    if picture.has_structure(overview()):
        return TissueMap(np.ones_like(mask), resolution, "whole", picture.glass)
    return None


def find_tissue(slide: Slide) -> TissueMap:
    """Find the tissue of a slide in an overview of about 8 µm/px, at most 4 million px.

    A level between 5 and 10 µm/px is used as it is, else a finer one is shrunk, block by block. A strict search for
    stained tissue comes first, then a looser one for very pale tissue. Where neither finds any, the whole slide
    counts as tissue if there is structure on it that is no glass, ink or dirt (a grey-scale scan, another stain);
    docs/tissue.md says how they are told apart.

    Args:
        slide: The slide; where its µm/px is unknown, the overview has 4 million px, or all that there are.

    Raises:
        SlideError: There is nothing but glass, ink and dirt, or the slide cannot be read.
    """
    resolution = _overview_resolution(slide)

    def overview() -> NDArray[np.uint8]:
        return slide.read(resolution, (0, 0), resolution.size, keep=False)

    # Read anew where there is no stain: few slides come to that, and all others would have to keep it.
    tissue = _searched(Picture(overview(), resolution.mean_mpp), overview, resolution)
    if tissue is None:
        raise SlideError(
            f"{slide.path}: no tissue found, not even pale tissue or an unusual stain ({resolution.width} x "
            f"{resolution.height} px overview, mean grey {round_px(float(overview().mean()))}): nothing but glass, "
            "ink, lines and specks; leave the slide out"
        )
    return tissue


def _overview_resolution(slide: Slide) -> Resolution:
    smallest = max(1.0, math.sqrt(math.prod(slide.dimensions) / OVERVIEW_PX))
    if slide.mpp is None:
        return slide.at_downsample(smallest)
    wanted = max(smallest, OVERVIEW_UM / min(slide.mpp))
    near = [
        level
        for level in slide.usable_levels
        if 0.6 <= slide.level_downsamples[level] / wanted <= 1.25
        and math.prod(slide.level_dimensions[level]) <= OVERVIEW_PX
    ]
    return slide.at(level=near[0]) if near else slide.at_downsample(wanted)
