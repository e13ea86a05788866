"""The tissue of a slide: searches in its overview, and the map that they give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.errors import SlideError
from panda.wsi.appearance import LOOSE, NOMINAL_UM, STRICT, Picture
from panda.wsi.geometry import Resolution, floor_px, round_px
from panda.wsi.mpp import is_anisotropic
from panda.wsi.slide import Slide

OVERVIEW_UM = 8.0
"""µm per px of the overview in which tissue is searched; a core is about a hundred px wide there."""
OVERVIEW_PX = 4_000_000
"""Largest area of the overview in px, which bounds its memory. 4 % of PANDA's slides get a coarser overview by it."""
RULES = 3
"""Version of the search. A new number makes old stores and canvases invalid, because other px count as tissue, or the
same px have other coordinates."""
BLACK_SLIDE = 0.01
"""Least share of plain black that a note mentions."""
PIECE_MM = 0.2
"""Diameter in mm from which a round piece of tissue is found; smaller ones can be taken for specks (docs/tissue.md)."""
LEAST_STRICT = 0.5
"""Least share of the area of the loose search that the strict search must find to be used."""
_BOXES = 2**12  # boxes that are measured at a time

How = Literal["strict", "loose", "whole"]


def tissue_mask_rgb(img_rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Find tissue in a picture of a slide stained with haematoxylin and eosin.

    It works at any scale, best at 5 to 16 µm/px, and searches like `find_tissue`. It separates tissue from glass
    only, never cancer from benign tissue.

    Args:
        img_rgb: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) bool, True on tissue.

    Raises:
        ValueError: If the array is not (H, W, 3) uint8.
    """
    if img_rgb.ndim != 3 or img_rgb.shape[2] != 3 or img_rgb.dtype != np.uint8:
        raise ValueError(f"a picture is (H, W, 3) uint8, not {img_rgb.shape} {img_rgb.dtype}")
    if img_rgb.size == 0:
        return np.zeros(img_rgb.shape[:2], np.bool_)
    return _search_stain(Picture(img_rgb, None))[0]


def _search_stain(picture: Picture) -> tuple[NDArray[np.bool_], How]:
    """Return the tissue of a strict search, or of a loose one if that finds much more."""
    strict = picture.find_tissue(STRICT)
    enough = np.count_nonzero(strict) / LEAST_STRICT
    if enough < np.count_nonzero(picture.find_candidates(LOOSE)):
        loose = picture.find_tissue(LOOSE)
        if enough < np.count_nonzero(loose):
            return loose, "loose"
    return strict, "strict"


@dataclass(frozen=True)
class TissueMap:
    """The tissue of a whole slide.

    Attributes:
        mask: (h, w) bool, True on tissue.
        resolution: The working resolution of `mask`.
        how: `"strict"`; `"loose"` if only the loose search found most of the tissue, which is pale; `"whole"` if all
            of the slide counts as tissue, because its stain is unexpected.
        glass: Colour of the clean glass, RGB; None if there is too little of it.
        black: Share of the slide that is plain black, which a scanner shows where it did not scan.
    """

    mask: NDArray[np.bool_]
    resolution: Resolution
    how: How
    glass: tuple[float, float, float] | None = None
    black: float = 0.0

    @property
    def fraction(self) -> float:
        """Tissue as a fraction of the slide."""
        return self.resolution.measure_px(self.mask) / math.prod(self.resolution.extent)

    @property
    def area_mm2(self) -> float | None:
        """Area of the tissue; None if µm/px is unknown."""
        area = self.resolution.pixel_area_um2
        return None if area is None else self.resolution.measure_px(self.mask) * area / 1e6

    def crop(self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return a window at any working resolution of the slide, by nearest neighbour.

        Args:
            resolution: The resolution of the window.
            location: (x, y) of the top-left corner in level-0 px; may be negative.
            size: (width, height) in px of `resolution`.

        Returns:
            (height, width) bool, False past the edge of the slide.
        """
        x0, y0 = (start / resolution.downsample for start in location)
        return self.window(resolution, x0, y0, *size)

    def window(self, resolution: Resolution, x0: float, y0: float, width: int, height: int) -> NDArray[np.bool_]:
        """Return a window by px of a working resolution, as `crop` does by level-0 px.

        Args:
            resolution: The resolution of the window.
            x0: Left edge in px of `resolution`; may be negative.
            y0: Top edge in px of `resolution`; may be negative.
            width: Width in px of `resolution`.
            height: Height in px of `resolution`.

        Returns:
            (height, width) bool, False past the edge of the slide.
        """
        columns, column = self._find_nearest(resolution, 0, x0, width)
        rows, row = self._find_nearest(resolution, 1, y0, height)
        # Several rows of the window can be of one row of the map, which is looked up once.
        first = np.flatnonzero(np.diff(row, prepend=-1))
        part = np.repeat(self.mask[row[first]][:, column], np.diff(first, append=len(row)), axis=0)
        if rows.all() and columns.all():
            return part
        out = np.zeros((height, width), np.bool_)
        out[np.ix_(rows, columns)] = part
        return out

    def _find_nearest(
        self, resolution: Resolution, axis: int, start: float, count: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return which of `count` working px from `start` on are on the slide, and the px of the map under these.

        A px that is partly past the edge is looked up at the centre of its part on the slide. If the sides of the map
        were rounded down, its last px go on up to the edge.
        """
        left, end = start + np.arange(count), resolution.extent[axis]
        centres = (left + np.minimum(left + 1, end)) / 2
        on_slide = (centres >= 0) & (left < end)
        px = floor_px(centres[on_slide] * resolution.downsample / self.resolution.downsample)
        return on_slide, np.minimum(px, self.mask.shape[1 - axis] - 1)

    def measure_fraction(self, boxes_level0: NDArray[Any], resolution: Resolution | None = None) -> NDArray[np.float64]:
        """Return the exact fraction of tissue in each box; px past the edge of the slide are not tissue.

        Args:
            boxes_level0: Boxes as x0, y0, x1, y1, (N, 4), level-0 px, each of positive area.
            resolution: The working resolution whose extent ends the slide; None for that of the map.

        Returns:
            (N,) float64 in 0..1, exactly 0 if a box touches no tissue.
        """
        seen = resolution or self.resolution
        end_x, end_y = (side * seen.downsample / self.resolution.downsample for side in seen.extent)
        boxes = np.asarray(boxes_level0, np.float64).reshape(-1, 4) / self.resolution.downsample
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        inside = np.clip(boxes, 0, (end_x, end_y) * 2)
        parts = [self._measure_area(inside[start : start + _BOXES]) for start in range(0, len(boxes), _BOXES)]
        return np.asarray(np.clip(np.concatenate([np.empty(0), *parts]) / area, 0.0, 1.0))

    def _measure_area(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the area of tissue in boxes, both in px of the map, whose last px go on up to the edge."""
        height = self.mask.shape[0]
        x0, y0, x1, y1 = boxes.T
        # A summed-area table takes four bytes a px, so it covers only the rows of the boxes.
        top = min(int(y0.min()), height - 1)
        rows = self.mask[top : max(int(np.ceil(y1.max())), top + 1)]
        sums = np.asarray(cv2.integral(rows.view(np.uint8), sdepth=cv2.CV_32S), np.int32)
        y0, y1 = y0 - top, y1 - top
        inside = _sum_to(sums, x1, y1) - _sum_to(sums, x0, y1) - _sum_to(sums, x1, y0) + _sum_to(sums, x0, y0)
        inside[inside < 1e-6] = 0.0  # error of the interpolation of large sums
        return np.asarray(inside)


def _sum_to(sums: NDArray[np.int32], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the tissue area left of and above continuous points; the table is bilinear between px corners."""
    left = np.minimum(x.astype(np.int64), sums.shape[1] - 2)
    top = np.minimum(y.astype(np.int64), sums.shape[0] - 2)
    fx, fy = x - left, y - top
    upper = sums[top, left] * (1 - fx) + sums[top, left + 1] * fx
    lower = sums[top + 1, left] * (1 - fx) + sums[top + 1, left + 1] * fx
    return np.asarray(upper * (1 - fy) + lower * fy)


@dataclass(frozen=True)
class Survey:
    """An overview of a slide and the tissue in it.

    Attributes:
        overview: The whole slide, (h, w, 3) uint8 RGB.
        picture: The overview, prepared for searches.
        resolution: Resolution of the overview, about 8 µm/px and at most 4 million px.
        tissue: The tissue; None if there is nothing but glass, ink and dirt.
    """

    overview: NDArray[np.uint8]
    picture: Picture
    resolution: Resolution
    tissue: TissueMap | None


def survey(slide: Slide) -> Survey:
    """Search a slide like `find_tissue`, and return the overview too."""
    resolution = _choose_overview(slide)
    overview = slide.read(resolution, (0, 0), resolution.size, keep=False)
    picture = Picture(overview, resolution.mean_mpp)
    tissue = _search_tissue(picture, lambda: overview, resolution)
    return Survey(overview, picture, resolution, tissue)


def _search_tissue(
    picture: Picture, overview: Callable[[], NDArray[np.uint8]], resolution: Resolution
) -> TissueMap | None:
    """Return the tissue of a prepared overview, or None if there is none."""
    mask, how = _search_stain(picture)
    if mask.any():
        return TissueMap(mask, resolution, how, picture.glass, picture.black)
    if picture.has_structure(overview()):
        return TissueMap(np.ones_like(mask), resolution, "whole", picture.glass, picture.black)
    return None


def find_tissue(slide: Slide) -> TissueMap:
    """Find the tissue of a slide in an overview of about 8 µm/px, at most 4 million px.

    A strict search for stained tissue comes first, then a loose one for very pale tissue. If neither finds any, the
    whole slide counts as tissue if it shows structure other than glass, ink or dirt (a grey-scale scan, another
    stain). See docs/tissue.md.

    Raises:
        SlideError: If there is nothing but glass, ink and dirt, or the slide cannot be read.
    """
    resolution = _choose_overview(slide)

    def overview() -> NDArray[np.uint8]:
        return slide.read(resolution, (0, 0), resolution.size, keep=False)

    # Few slides have no stain and are read again; to keep the overview would cost memory for all others.
    tissue = _search_tissue(Picture(overview(), resolution.mean_mpp), overview, resolution)
    if tissue is None:
        raise SlideError(
            f"{slide.path}: no tissue found, not even pale tissue or an unusual stain ({resolution.width} x "
            f"{resolution.height} px overview, mean grey {round_px(float(overview().mean()))}): nothing but glass, "
            f"ink, lines and specks. Pieces under {PIECE_MM} mm can count as specks, {_describe_scale(resolution)}; "
            "leave the slide out"
        )
    return tissue


def _describe_scale(resolution: Resolution) -> str:
    """Return by which scale pieces are measured, and the key that corrects it if it is only assumed."""
    if resolution.mean_mpp is not None:
        return f"at {resolution.mean_mpp:.3g} µm per px of the overview"
    return f"but µm/px is unknown and {NOMINAL_UM:g} are assumed in the overview: give data.mpp_override"


def list_slide_notes(slide: Slide, tissue: TissueMap) -> tuple[str, ...]:
    """Return what a reader of a slide's figures must know of its scan, in sentences."""
    notes = []
    if slide.mpp is not None and is_anisotropic(slide.mpp):
        notes.append(
            f"µm/px is {slide.mpp[0]:.4g} along x and {slide.mpp[1]:.4g} along y. Areas and lengths use both, but the "
            "network sees the tissue stretched: check µm/px, or scan the slide again with square px."
        )
    if tissue.black >= BLACK_SLIDE:
        notes.append(
            f"{tissue.black:.0%} of the slide is plain black. It is no tissue, but networks learn white beside tissue. "
            "Maps and figures can be wrong near the black: export the slide with white where nothing was scanned."
        )
    return tuple(notes)


def _choose_overview(slide: Slide) -> Resolution:
    smallest = max(1.0, math.sqrt(math.prod(slide.dimensions) / OVERVIEW_PX))
    if slide.mpp is None:
        return slide.choose_resolution(downsample=smallest)
    wanted = max(smallest, OVERVIEW_UM / min(slide.mpp))
    near = [
        level
        for level in slide.usable_levels
        if 0.6 <= slide.level_downsamples[level] / wanted <= 1.25
        and math.prod(slide.level_dimensions[level]) <= OVERVIEW_PX
    ]
    return slide.choose_resolution(level=near[0]) if near else slide.choose_resolution(downsample=wanted)
