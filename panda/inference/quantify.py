"""How much of a slide's tissue is tumour: threshold, clean-up, regions, areas.

A pixel of the working frame counts as tumour when its probability reaches the threshold, it lies in tissue and it
was scored. Components under a smallest area are then removed, and after them holes under a smallest area are filled
(in this order, so that a speck within a gland does not keep its hole open). Components are 8-connected and holes
4-connected, or the other way round: a diagonal never joins both. Only tissue is ever filled: the lumen of a gland
is glass, and stays out of the tumour's area.

All of it goes block by block (`panda.wsi.components`): a map may be larger than memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.spatial.distance import pdist

from panda.errors import PandaError
from panda.inference.canvas import Canvas
from panda.inference.canvas_store import STEPS, probability
from panda.settings import Settings
from panda.wsi.components import BLOCK, ComponentFinder, Components, Window, find_components, windows
from panda.wsi.geometry import Resolution, round_px
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue

THRESHOLDS = np.arange(1001) / 1000
"""At which `slide_quantification` counts the pixels of a slide, for whoever moves the threshold afterwards."""

NEARBY = (-0.1, -0.05, 0.0, 0.05, 0.1)
"""How far from the threshold its neighbours lie, to tell how much hangs on it."""

_IN_MEMORY_PX = 2**28
"""A larger mask lies in an unnamed file on the disk, mapped into memory."""


class QuantifySettings(Settings):
    """Limits of the clean-up.

    Args:
        min_region_um2: Smallest object that is kept, in µm²; 1,000 is a disc 36 µm across, less than a small gland.
        min_hole_um2: Smallest hole that stays open, in µm².
        min_region_px: Smallest object that is kept, in working px, where µm/px is unknown.
        min_hole_px: Smallest hole that stays open, in working px, where µm/px is unknown.
        connectivity: 8 joins pixels that touch at a corner into one object, 4 does not; holes use the other.
    """

    node: ClassVar[str] = "quantify"

    min_region_um2: float = Field(default=1000, ge=0)
    min_hole_um2: float = Field(default=1000, ge=0)
    min_region_px: int = Field(default=64, ge=0)
    min_hole_px: int = Field(default=64, ge=0)
    connectivity: Literal[4, 8] = 8

    def limits_px(self, pixel_area_um2: float | None) -> tuple[float, float]:
        """The limits for objects and holes in working px, as far as possible from µm².

        Args:
            pixel_area_um2: Area of a working px, or None where µm/px is unknown.
        """
        if pixel_area_um2 is None:
            return self.min_region_px, self.min_hole_px
        return self.min_region_um2 / pixel_area_um2, self.min_hole_um2 / pixel_area_um2


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
        mask: (H, W) bool; cleaned where it lies.
        fillable: Gives the (h, w) bool part of what may be filled in a window; pixels of a hole outside of it stay
            open (they count towards its area).
        min_region: Components of fewer px are removed.
        min_hole: Holes of fewer px are filled. What reaches the edge of the map is no hole.
        connectivity: Of the objects, 4 or 8; the holes' is the other one.
        block: Side of the blocks in px; it changes no result.

    Returns:
        The objects of the clean mask.
    """
    height, width = mask.shape
    objects = find_components(lambda window: mask[_part(window)], (height, width), connectivity, block)
    keep = objects.area >= min_region
    keep[0] = False
    holes = ComponentFinder(width, 12 - connectivity)
    for window in windows((height, width), block):
        part = mask[_part(window)]
        if part.any():
            part[:] = keep[objects.numbered(window, part)]
        holes.add(window, ~part)
    gaps = holes.components()
    enclosed = (gaps.box[:, :2] > 0).all(axis=1) & (gaps.box[:, 2] < width) & (gaps.box[:, 3] < height)
    fill = enclosed & (gaps.area < min_hole)
    fill[0] = False
    cleaned = ComponentFinder(width, connectivity)
    for window in windows((height, width), block):
        part = mask[_part(window)]
        if fill.any() and not part.all():  # a block may be all hole
            small = fill[gaps.numbered(window, ~part)]
            if small.any():
                part |= small & fillable(window)
        cleaned.add(window, part)
    return cleaned.components()


def slide_quantification(
    pred_canvas: Canvas | NDArray[np.floating[Any]],
    slide: Slide,
    level_eval: int | Resolution,
    thr: float,
    *,
    settings: QuantifySettings | None = None,
    tissue: TissueMap | None = None,
    block: int = BLOCK,
) -> dict[str, Any]:
    """Measure the tumour on a slide.

    The threshold is compared in float64 with what the canvas holds, as the threshold search does. Areas are
    pixel counts times the area of a working px.

    Memory does not grow with the map, but for `mask_clean`: one byte a px of the blocks that hold tumour, and from
    2²⁸ px on the mask lies on the disk (beside the canvas), mapped into memory.

    Args:
        pred_canvas: The probability map: a canvas, or an (H, W) array of probabilities, all of it scored.
        slide: The slide it was made of.
        level_eval: Pyramid level the map is at, or its resolution.
        thr: A pixel is tumour when its probability is at least this.
        settings: Limits of the clean-up; `QuantifySettings()` where None.
        tissue: The slide's tissue; found anew where None.
        block: Side of the blocks in px, a multiple of 512 for a canvas; it changes no result.

    Returns:
        Plain data but for the mask:

        - `tumor_px`, `tissue_px`: working px after clean-up; `unscored_tissue_px` of the tissue was
          covered by no tile and counts as no tumour
        - `tumor_percent_of_tissue`: 0..100, None where there is no tissue
        - `tumor_mm2`, `tissue_mm2`: None where µm/px is unknown; `mm2_note` says why, or where µm/px is from
        - `num_regions` and `regions`, largest first: `id` from 1, `area_px`, `area_mm2`, `centroid`
          [x, y] and `bbox` [left, top, right, bottom] in level-0 px, `mean_probability`,
          `max_probability` (over the region's pixels, filled holes included), `length_px` (working px) and
          `length_mm`: the greatest distance of two of its points (Feret's diameter); `box_px` [left, top, right,
          bottom] and `start_px` [x, y], its topmost and there leftmost px, in working px
        - `nearby`: tumour per cent of tissue at thresholds near `thr`, before the clean-up: list of
          `threshold` and `tumor_percent_of_tissue`
        - `px_at_threshold`: scored tissue px whose probability is at least 0, 0.001, … 1, before the clean-up
        - `mask_clean`: (H, W) bool in working px
        - `threshold` and `settings`: what was asked

    Raises:
        PandaError: The map's shape is not the slide's at `level_eval`, or it holds NaN.
        SlideError: The slide has no such level, or no tissue is found.
        ValueError: `thr` is outside 0..1.
    """
    if not 0 <= thr <= 1:
        raise ValueError(f"the threshold is {thr}; it must be in 0..1")
    settings = settings if settings is not None else QuantifySettings()
    resolution = level_eval if isinstance(level_eval, Resolution) else slide.at(level=level_eval)
    shape = resolution.height, resolution.width
    if tuple(pred_canvas.shape) != shape:
        raise PandaError(
            f"{slide.path}: the probability map is {pred_canvas.shape[1]} x {pred_canvas.shape[0]} px, the slide "
            f"at {resolution.downsample:g} level-0 px per px is {shape[1]} x {shape[0]} px; "
            "give the level or resolution that the map was made at"
        )
    source = _Source(pred_canvas, slide, tissue if tissue is not None else find_tissue(slide), resolution)
    mask = _empty_mask(shape, pred_canvas.path.parent if isinstance(pred_canvas, Canvas) else None)
    near = np.clip(thr + np.array(NEARBY), 0, 1)
    steps = np.union1d(THRESHOLDS, near)
    counts = np.zeros(len(steps) + 1, np.int64)
    reached = source.reached(steps)
    tissue_px = 0
    for window in windows(shape, block):
        in_tissue, scored, prob = source.read(window)
        tissue_px += int(np.count_nonzero(in_tissue))
        if scored.any():
            counts += np.bincount(reached(prob[scored]), minlength=len(counts))
            # np.float64 and not float: against float32 numpy would round a plain float down to float32 first.
            mask[_part(window)] = (prob >= np.float64(thr)) & scored
    at_least = counts[::-1].cumsum()[::-1][1:]
    area = resolution.pixel_area_um2
    min_region, min_hole = settings.limits_px(area)
    objects = clean_mask(
        mask,
        lambda window: source.read(window)[1],
        min_region=min_region,
        min_hole=min_hole,
        connectivity=settings.connectivity,
        block=block,
    )
    regions = _regions(objects, mask, source, block)
    tumor_px = int(objects.area.sum())
    return {
        "tumor_px": tumor_px,
        "tissue_px": tissue_px,
        "unscored_tissue_px": tissue_px - int(counts.sum()),
        "tumor_percent_of_tissue": _percent(tumor_px, tissue_px),
        "tumor_mm2": _mm2(tumor_px, area),
        "tissue_mm2": _mm2(tissue_px, area),
        "mm2_note": slide.mpp_note,
        "num_regions": len(regions),
        "regions": regions,
        "nearby": [
            {"threshold": float(step), "tumor_percent_of_tissue": _percent(int(count), tissue_px)}
            for step, count in zip(near, at_least[np.searchsorted(steps, near)], strict=True)
        ],
        "px_at_threshold": at_least[np.searchsorted(steps, THRESHOLDS)].tolist(),
        "threshold": float(thr),
        "settings": settings.model_dump(),
        "mask_clean": mask,
    }


def _part(window: Window) -> tuple[slice, slice]:
    x0, y0, width, height = window
    return slice(y0, y0 + height), slice(x0, x0 + width)


def _percent(pixels: int, of: int) -> float | None:
    return 100 * pixels / of if of else None


def _mm2(pixels: int, pixel_area_um2: float | None) -> float | None:
    return None if pixel_area_um2 is None else pixels * pixel_area_um2 / 1e6


def _empty_mask(shape: tuple[int, int], folder: Path | None) -> NDArray[np.bool_]:
    """A mask of False. Of one in memory only the parts that are written to take any; a large one lies on the disk."""
    size = shape[0] * shape[1]
    if size < _IN_MEMORY_PX:
        return np.zeros(shape, np.bool_)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and would be a crash later
        else:
            file.truncate(size)
        return np.memmap(file, np.bool_, "r+", shape=shape)


@dataclass(frozen=True)
class _Source:
    """A probability map and the tissue under it, block by block."""

    map: Canvas | NDArray[np.floating[Any]]
    slide: Slide
    tissue: TissueMap
    resolution: Resolution

    def read(self, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.floating[Any]]]:
        """Tissue, scored tissue and probability in a window, each (h, w).

        Raises:
            PandaError: An array holds NaN.
        """
        tissue = self.tissue.window(self.resolution, *window)
        if isinstance(self.map, Canvas):
            codes = self.map.codes(*window)
            return tissue, tissue & (codes > 0), probability(codes)
        prob = self.map[_part(window)]
        if np.isnan(prob).any():
            raise PandaError(
                f"{self.slide.path}: the probability map holds NaN in rows {window[1]} to "
                f"{window[1] + window[3] - 1}; give 0 where nothing was scored"
            )
        return tissue, tissue, prob

    def reached(self, steps: NDArray[np.float64]) -> Callable[[NDArray[np.floating[Any]]], NDArray[np.int64]]:
        """Give of probabilities of this map how many of the ascending steps each reaches, compared in float64."""
        if not isinstance(self.map, Canvas):
            return lambda values: np.searchsorted(steps, values.astype(np.float64), side="right")
        codes = np.arange(1, STEPS + 2).astype(np.uint16)  # a search for each code, not for each px
        table = np.searchsorted(steps, probability(codes).astype(np.float64), side="right")
        return lambda values: table[np.rint(values * STEPS).astype(np.int64)]


def _regions(objects: Components, mask: NDArray[np.bool_], source: _Source, block: int) -> list[dict[str, Any]]:
    """Describe the objects of the clean mask, largest first; see `slide_quantification`."""
    count = len(objects) + 1
    total, highest = np.zeros(count), np.zeros(count)
    ends = []
    for window in windows((mask.shape[0], mask.shape[1]), block):
        inside = mask[_part(window)]
        if not inside.any():
            continue
        numbers, prob = objects.numbered(window, inside), source.read(window)[2]
        of, values = numbers[inside], prob[inside].astype(np.float64)
        steps = values * STEPS
        if isinstance(source.map, Canvas):
            steps = np.rint(steps)  # whole numbers: a sum that is the same in whatever blocks it is taken
        total += np.bincount(of, weights=steps, minlength=count)
        np.maximum.at(highest, of, values)
        ends.append(_row_ends(numbers, window))
    lengths = _lengths(np.concatenate(ends, axis=1) if ends else np.zeros((4, 0), np.int64), source.resolution)
    to_level0, (width, height) = source.resolution.frame.to_level0, source.slide.dimensions
    found = []
    for number in range(1, count):
        left, top, right, bottom = box = objects.box[number].tolist()
        x0, y0 = to_level0(left, top)
        x1, y1 = to_level0(right, bottom)
        x, y = objects.centroid[number].tolist()
        area = int(objects.area[number])
        found.append(
            {
                "id": number,
                "area_px": area,
                "area_mm2": _mm2(area, source.resolution.pixel_area_um2),
                "centroid": list(to_level0(x + 0.5, y + 0.5)),
                "bbox": [round_px(x0), round_px(y0), min(round_px(x1), width), min(round_px(y1), height)],
                "mean_probability": float(total[number] / STEPS / area),
                "max_probability": float(highest[number]),
                "length_px": lengths[number - 1][0],
                "length_mm": lengths[number - 1][1],
                "box_px": box,
                "start_px": objects.start[number].tolist(),
            }
        )
    return found


def _row_ends(numbers: NDArray[np.int32], window: Window) -> NDArray[np.int64]:
    """(4, n) number, y, left and right edge in px: how far each object reaches in each row of a block."""
    height, width = numbers.shape
    framed = np.zeros((height, width + 2), np.int64)
    framed[:, 1:-1] = numbers
    change = framed[:, 1:] != framed[:, :-1]
    y, x = np.nonzero(change)
    before, after = framed[y, x], framed[y, x + 1]
    many = int(numbers.max()) + 1
    starts, finishes = after > 0, before > 0
    keys, first = np.unique(y[starts] * many + after[starts], return_index=True)
    last = np.unique((y[finishes] * many + before[finishes])[::-1], return_index=True)[1]
    return np.stack(
        [
            keys % many,
            keys // many + window[1],
            x[starts][first] + window[0],
            x[finishes][::-1][last] + window[0],
        ]
    )


def _lengths(ends: NDArray[np.int64], resolution: Resolution) -> list[tuple[float, float | None]]:
    """Feret's diameter of each object in working px and in mm, by number, from the ends of its rows."""
    ends = ends[:, np.argsort(ends[0], kind="stable")]
    borders = np.flatnonzero(np.diff(ends[0])) + 1
    lengths = []
    for number, y, left, right in (part for part in np.split(ends, borders, axis=1) if part.size):
        del number
        corners = np.stack([np.concatenate([left, left, right, right]), np.concatenate([y, y + 1, y, y + 1])], axis=1)
        hull = cv2.convexHull(corners.astype(np.int32))[:, 0].astype(np.float64)
        mm = None if resolution.mpp is None else float(pdist(hull * resolution.mpp).max()) / 1000
        lengths.append((float(pdist(hull).max()), mm))
    return lengths
