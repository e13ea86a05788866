"""Tumour regions of a mask: clean it, then find area, place, length and probability of each region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from scipy.spatial.distance import pdist

from panda.inference.canvas_store import STEPS
from panda.inference.scored_map import ScoredMap
from panda.stored import Plain, Share
from panda.wsi.components import BLOCK, ComponentFinder, Components, Window, find_components, slice_window
from panda.wsi.geometry import Resolution, cut_blocks, round_px

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


def clean_mask(
    mask: NDArray[np.bool_],
    fillable: Callable[[Window], NDArray[np.bool_]],
    *,
    min_region: float,
    min_hole: float,
    connectivity: int = 8,
    block: int = BLOCK,
) -> Components:
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
    objects = find_components(lambda window: mask[slice_window(window)], (height, width), connectivity, block)
    keep = objects.area >= min_region
    keep[0] = False
    hole_finder = ComponentFinder(width, 12 - connectivity)
    for window in cut_blocks(width, height, block):
        part = mask[slice_window(window)]
        if part.any():
            part[:] = keep[objects.number_px(window, part)]
        hole_finder.add(window, ~part)
    holes = hole_finder.components()
    enclosed = (holes.box[:, :2] > 0).all(axis=1) & (holes.box[:, 2] < width) & (holes.box[:, 3] < height)
    fill = enclosed & (holes.area < min_hole)
    fill[0] = False
    clean_finder = ComponentFinder(width, connectivity)
    for window in cut_blocks(width, height, block):
        part = mask[slice_window(window)]
        if fill.any() and not part.all():  # the other masks are not empty in a block that is all hole
            small = fill[holes.number_px(window, ~part)]
            if small.any():
                part |= small & fillable(window)
        clean_finder.add(window, part)
    return clean_finder.components()


def describe_regions(
    objects: Components, mask: NDArray[np.bool_], scored: ScoredMap, block: int
) -> tuple[tuple[Region, ...], Px]:
    """Describe the objects of a clean (H, W) mask; the side of the blocks changes no result.

    Returns:
        The regions, largest first, and the area of all of them in working px.
    """
    count = len(objects) + 1
    total, highest = np.zeros(count), np.zeros(count)
    edges = _EdgeCounts(objects, scored.resolution)
    ends = []
    for window in cut_blocks(mask.shape[1], mask.shape[0], block):
        inside = mask[slice_window(window)]
        if not inside.any():
            continue
        numbers, prob = objects.number_px(window, inside), scored.read(window)[2]
        number_of_px, values = numbers[inside], prob[inside].astype(np.float64)
        total += np.bincount(number_of_px, weights=scored.convert_to_steps(values), minlength=count)
        np.maximum.at(highest, number_of_px, values)
        edges.add(window, numbers)
        ends.append(_find_row_ends(numbers, window))
    lengths = _measure_lengths(np.concatenate(ends, axis=1) if ends else np.zeros((4, 0), np.int64), scored.resolution)
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
            )
        )
    return tuple(regions), edges.total


class _EdgeCounts:
    """Counts the px of objects in the last column and row of a slide, of which a part may be past its edge.

    Sums are whole numbers, so no result depends on the blocks.
    """

    def __init__(self, objects: Components, resolution: Resolution) -> None:
        self._objects = objects
        self._resolution = resolution
        self._counts = np.zeros((4, len(objects) + 1), np.int64)
        self._counts[0] = objects.area
        self._y_in_column, self._x_in_row = np.zeros((2, len(objects) + 1), np.int64)

    def add(self, window: Window, numbers: NDArray[np.int32]) -> None:
        """Count the (h, w) object number of each px of a block; 0 outside of all."""
        for index, px in self._resolution.list_edges(window):
            if index:
                edge = numbers[px].ravel()
                np.add.at(self._counts[index], edge, 1)
                if index == 1:
                    np.add.at(self._y_in_column, edge, window[1] + np.arange(edge.size))
                elif index == 2:
                    np.add.at(self._x_in_row, edge, window[0] + np.arange(edge.size))

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


def compute_area_mm2(pixels: float, pixel_area_um2: float | None) -> float | None:
    """Return the area of pixels in mm², None if the area of one is unknown."""
    return None if pixel_area_um2 is None else pixels * pixel_area_um2 / 1e6


def _find_row_ends(numbers: NDArray[np.int32], window: Window) -> NDArray[np.int64]:
    """Return how far each object reaches in each row of a block, from the (h, w) object number of each pixel.

    Returns:
        (4, n) int64: number, y, left and right edge in working px.
    """
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
    left, right = x[starts][first] + window[0], x[finishes][::-1][last] + window[0]
    return np.stack([keys % many, keys // many + window[1], left, right])


def _measure_lengths(ends: NDArray[np.int64], resolution: Resolution) -> list[tuple[float, float | None]]:
    """Return Feret's diameter of each object, by number, in working px and in mm, from `_find_row_ends`."""
    ends = ends[:, np.argsort(ends[0], kind="stable")]
    borders = np.flatnonzero(np.diff(ends[0])) + 1
    lengths = []
    for _, y, left, right in (part for part in np.split(ends, borders, axis=1) if part.size):
        corners = np.stack([np.concatenate([left, left, right, right]), np.concatenate([y, y + 1, y, y + 1])], axis=1)
        cut = np.minimum(corners, resolution.extent)
        hull = cut[cv2.convexHull(cut.astype(np.float32), returnPoints=False)[:, 0]]
        mm = None if resolution.mpp is None else float(pdist(hull * resolution.mpp).max()) / 1000
        lengths.append((float(pdist(hull).max()), mm))
    return lengths
