"""Tumour regions of a mask: clean it, then find area, place, length and probability of each region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from scipy.spatial.distance import pdist

from panda.inference.codes import STEPS
from panda.inference.scored_map import ScoredMap
from panda.stored import Plain, Share
from panda.wsi.components import BLOCK, Window, slice_window
from panda.wsi.geometry import Resolution, cut_blocks, round_px
from panda.wsi.runs import ConnectedRuns, Runs, connect_runs

Px = Annotated[int | float, Field(ge=0)]
"""An area in working px: whole, unless px at the edge of the slide are partly past it."""


Box = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt]


class Region(Plain, frozen=True):
    """One connected tumour region, cut at the edge of the slide.

    Attributes:
        id: Number from 1; the largest region is first.
        area_px: Area in working px.
        area_mm2: Area, None if µm/px is unknown.
        centroid: x, y in level-0 px.
        bbox: Left, top, right, bottom in level-0 px.
        mean_probability: Mean over the pixels of the region, filled holes included.
        max_probability: Maximum over the same pixels.
        length_px: Feret's diameter, the greatest distance of two points of the region, in working px.
        length_mm: The same in mm, None if µm/px is unknown.
        box_px: Left, top, right, bottom in working px.
        start_px: x, y of the leftmost pixel of the topmost row, in working px.
        class_px: Area of each class of cancer in working px; empty if there is one class.
    """

    id: PositiveInt
    area_px: Px
    area_mm2: NonNegativeFloat | None
    centroid: tuple[NonNegativeFloat, NonNegativeFloat]
    bbox: Box
    mean_probability: Share
    max_probability: Share
    length_px: NonNegativeFloat
    length_mm: NonNegativeFloat | None
    box_px: Box
    start_px: tuple[NonNegativeInt, NonNegativeInt]
    class_px: tuple[Px, ...] = Field(default=(), exclude_if=lambda areas: not areas)


def clean_mask(
    mask: NDArray[np.bool_],
    fillable: Callable[[Window], NDArray[np.bool_]],
    *,
    min_region: float,
    min_hole: float,
    connectivity: int = 8,
    block: int = BLOCK,
) -> ConnectedRuns:
    """Remove small objects of a mask, then fill its small holes, in place and block by block.

    A speck inside a gland is removed first, so it does not keep the hole around it open. Objects are 8-connected and
    holes 4-connected, or the reverse, so a diagonal never joins both.

    Args:
        mask: (H, W) bool; changed in place.
        fillable: Returns the (h, w) bool part of the pixels in a window that may be filled. Other pixels of a hole
            stay open, but they count towards the area of the hole.
        min_region: Objects of fewer px are removed.
        min_hole: Holes of fewer px are filled. A gap that reaches the edge of the map is no hole.
        connectivity: Connectivity of the objects, 4 or 8; holes use the other one.
        block: Side of the blocks in px; it changes no result.

    Returns:
        The objects of the clean mask.
    """
    height, width = mask.shape
    objects = connect_runs(Runs.from_mask(mask), connectivity)
    small = (objects.area < min_region)[objects.number]
    objects.runs.select(small).paint(mask, value=False)
    holes = connect_runs(objects.runs.select(~small).invert(), 12 - connectivity)
    enclosed = (holes.box[:, :2] > 0).all(axis=1) & (holes.box[:, 2] < width) & (holes.box[:, 3] < height)
    fill = (enclosed & (holes.area < min_hole))[holes.number]
    if fill.any():
        _fill(mask, holes.runs.select(fill), fillable, block)
    if not (small.any() or fill.any()):
        return objects
    return connect_runs(Runs.from_mask(mask), connectivity)


def _fill(mask: NDArray[np.bool_], holes: Runs, fillable: Callable[[Window], NDArray[np.bool_]], block: int) -> None:
    """Fill runs of a mask in place, as `clean_mask` does."""
    for window in cut_blocks(mask.shape[1], mask.shape[0], block):
        _, inside = holes.cut(window)
        if len(inside):
            hole = np.zeros(inside.shape, np.bool_)
            inside.paint(hole, value=True)
            mask[slice_window(window)] |= hole & fillable(window)


def describe_regions(
    objects: ConnectedRuns, mask: NDArray[np.bool_], scored: ScoredMap, class_areas: NDArray[Any], block: int
) -> tuple[tuple[Region, ...], Px]:
    """Describe the objects of a clean (H, W) mask; the side of the blocks changes no result.

    Args:
        objects: The objects.
        mask: The mask.
        scored: The probability map.
        class_areas: Areas of classes in each object in working px, (n + 1, k).
        block: Side of the blocks in px.

    Returns:
        The regions, largest first, and the area of all of them in working px.
    """
    count = len(objects) + 1
    total, highest = np.zeros(count), np.zeros(count)
    for window in cut_blocks(mask.shape[1], mask.shape[0], block):
        index, runs = objects.runs.cut(window)
        if not len(runs):
            continue
        numbers, starts = objects.number[index], np.cumsum(runs.length) - runs.length
        values = scored.read(window)[1][mask[slice_window(window)]]
        total += np.bincount(numbers, np.add.reduceat(scored.convert_to_steps(values), starts), count)
        most = scored.convert_to_probability(np.maximum.reduceat(values, starts))
        np.maximum.at(highest, numbers, most.astype(np.float64))
    edges = _EdgeCounts(objects, scored.resolution)
    lengths = _measure_lengths(objects, scored.resolution)
    to_level0, (width, height) = scored.resolution.frame.to_level0, scored.slide.dimensions
    pixel_area = scored.resolution.pixel_area_um2
    areas, centroids = edges.measure()
    regions = []
    for place, number in enumerate(sorted(range(1, count), key=lambda number: (-areas[number], number)), start=1):
        left, top, right, bottom = objects.box[number].tolist()
        (x0, y0), (x1, y1) = to_level0(left, top), to_level0(right, bottom)
        x, y = centroids[number].tolist()
        area = convert_px(areas[number])
        regions.append(
            Region(
                id=place,
                area_px=area,
                area_mm2=compute_area_mm2(area, pixel_area),
                centroid=to_level0(x, y),
                bbox=(round_px(x0), round_px(y0), min(round_px(x1), width), min(round_px(y1), height)),
                mean_probability=float(total[number] / STEPS / objects.area[number]),
                max_probability=float(highest[number]),
                length_px=lengths[number - 1][0],
                length_mm=lengths[number - 1][1],
                box_px=(left, top, right, bottom),
                start_px=tuple(objects.start[number].tolist()),
                class_px=tuple(map(convert_px, class_areas[number])),
            )
        )
    return tuple(regions), edges.total


class _EdgeCounts:
    """Counts the px of objects in the last column and row of a slide, of which a part may be past its edge."""

    def __init__(self, objects: ConnectedRuns, resolution: Resolution) -> None:
        self._objects = objects
        self._resolution = resolution
        runs = objects.runs
        in_column, in_row = runs.right == resolution.width, runs.y == resolution.height - 1

        def add(values: NDArray[Any], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
            sums = np.zeros(len(objects) + 1, np.int64)
            np.add.at(sums, objects.number[chosen], values[chosen])
            return sums

        one = np.ones_like(runs.y)
        edges = (add(one, in_column), add(runs.length, in_row), add(one, in_column & in_row))
        self._counts = np.stack([objects.area, *edges])
        self._y_in_column, self._x_in_row = add(runs.y, in_column), add(runs.sum_of_x, in_row)

    @property
    def total(self) -> Px:
        """Area of all objects in working px, without the part past the edge."""
        return convert_px(self._resolution.weigh_counts(self._counts[:, 1:].sum(axis=1)))

    def measure(self) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Return the area, (n + 1,), and the centroid, (n + 1, 2) x and y, of the part of each object on the slide.

        Areas are in working px, centroids continuous in working px; entry 0 has no meaning.
        """
        counts, size, part = self._counts, self._resolution.size, self._resolution.part
        areas = self._resolution.weigh_counts(counts)
        moments = (self._objects.centroid + 0.5) * self._objects.area[:, None]
        for axis, across in ((0, self._x_in_row), (1, self._y_in_column)):
            own, other = (counts[1], counts[2]) if axis == 0 else (counts[2], counts[1])
            past = 1 - part[1 - axis]  # of the px in the other edge
            last = size[axis] - 1
            change = part[axis] * (last + part[axis] / 2) - (last + 0.5)  # of the moment of a px in its own edge
            moments[:, axis] += change * (own - past * counts[3]) - past * (across + 0.5 * other)
        own_areas = areas[:, None]
        return areas, np.divide(moments, own_areas, out=np.zeros_like(moments), where=own_areas > 0)


def convert_px(area: Any) -> Px:
    """Return an area in px as `int` if it is whole, else as `float`."""
    value = float(area)
    return int(value) if value.is_integer() else value


def compute_percent(pixels: float, total: float) -> float | None:
    """Return pixels in per cent of a total, None if that is 0."""
    return 100 * pixels / total if total else None


def compute_area_mm2(pixels: float, pixel_area_um2: float | None) -> float | None:
    """Return the area of pixels in mm², None if the area of one is unknown."""
    return None if pixel_area_um2 is None else pixels * pixel_area_um2 / 1e6


def _measure_lengths(objects: ConnectedRuns, resolution: Resolution) -> list[tuple[float, float | None]]:
    """Return Feret's diameter of each object, by number, in working px and in mm."""
    runs, order = objects.runs, np.argsort(objects.number, kind="stable")
    number, y = objects.number[order], runs.y[order]
    is_first = np.ones(len(runs), np.bool_)  # of its object in its row
    is_first[1:] = (number[1:] != number[:-1]) | (y[1:] != y[:-1])
    number, y, left = number[is_first], y[is_first], runs.left[order][is_first]
    right = runs.right[order][np.append(is_first[1:], True)] if len(runs) else left
    lengths = []
    for part in np.split(np.arange(len(y)), np.flatnonzero(np.diff(number)) + 1) if len(runs) else ():
        x, rows = np.tile([left[part], right[part]], (1, 2)).ravel(), y[part]
        corners = np.stack([x, np.concatenate([rows, rows + 1, rows, rows + 1])], axis=1)
        cut = np.minimum(corners, resolution.extent)
        hull = cut[cv2.convexHull(cut.astype(np.float32), returnPoints=False)[:, 0]]
        mm = None if resolution.mpp is None else float(pdist(hull * resolution.mpp).max()) / 1000
        lengths.append((float(pdist(hull).max()), mm))
    return lengths
