"""Tumour regions of a mask: clean it, then find area, place, length and probability of each region."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy.spatial.distance import pdist

from panda.inference.canvas_store import STEPS
from panda.inference.scored_map import ScoredMap
from panda.wsi.components import BLOCK, ComponentFinder, Components, Window, find_components, window_slices
from panda.wsi.geometry import Resolution, cut_blocks, round_px


class Region(BaseModel, frozen=True):
    """One connected tumour region.

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

    id: int
    area_px: int
    area_mm2: float | None
    centroid: tuple[float, float]
    bbox: tuple[int, int, int, int]
    mean_probability: float
    max_probability: float
    length_px: float
    length_mm: float | None
    box_px: tuple[int, int, int, int]
    start_px: tuple[int, int]


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
    objects = find_components(lambda window: mask[window_slices(window)], (height, width), connectivity, block)
    keep = objects.area >= min_region
    keep[0] = False
    hole_finder = ComponentFinder(width, 12 - connectivity)
    for window in cut_blocks(width, height, block):
        part = mask[window_slices(window)]
        if part.any():
            part[:] = keep[objects.number_px(window, part)]
        hole_finder.add(window, ~part)
    holes = hole_finder.components()
    enclosed = (holes.box[:, :2] > 0).all(axis=1) & (holes.box[:, 2] < width) & (holes.box[:, 3] < height)
    fill = enclosed & (holes.area < min_hole)
    fill[0] = False
    clean_finder = ComponentFinder(width, connectivity)
    for window in cut_blocks(width, height, block):
        part = mask[window_slices(window)]
        if fill.any() and not part.all():  # the other masks are not empty in a block that is all hole
            small = fill[holes.number_px(window, ~part)]
            if small.any():
                part |= small & fillable(window)
        clean_finder.add(window, part)
    return clean_finder.components()


def describe_regions(objects: Components, mask: NDArray[np.bool_], scored: ScoredMap, block: int) -> tuple[Region, ...]:
    """Describe the objects of a clean (H, W) mask, largest first; the side of the blocks changes no result."""
    count = len(objects) + 1
    total, highest = np.zeros(count), np.zeros(count)
    ends = []
    for window in cut_blocks(mask.shape[1], mask.shape[0], block):
        inside = mask[window_slices(window)]
        if not inside.any():
            continue
        numbers, prob = objects.number_px(window, inside), scored.read(window)[2]
        number_of_px, values = numbers[inside], prob[inside].astype(np.float64)
        total += np.bincount(number_of_px, weights=scored.convert_to_steps(values), minlength=count)
        np.maximum.at(highest, number_of_px, values)
        ends.append(_find_row_ends(numbers, window))
    lengths = _measure_lengths(np.concatenate(ends, axis=1) if ends else np.zeros((4, 0), np.int64), scored.resolution)
    to_level0, (width, height) = scored.resolution.frame.to_level0, scored.slide.dimensions
    pixel_area = scored.resolution.pixel_area_um2
    regions = []
    for number in range(1, count):
        left, top, right, bottom = objects.box[number].tolist()
        (x0, y0), (x1, y1) = to_level0(left, top), to_level0(right, bottom)
        x, y = objects.centroid[number].tolist()
        area = int(objects.area[number])
        regions.append(
            Region(
                id=number,
                area_px=area,
                area_mm2=compute_area_mm2(area, pixel_area),
                centroid=to_level0(x + 0.5, y + 0.5),
                bbox=(round_px(x0), round_px(y0), min(round_px(x1), width), min(round_px(y1), height)),
                mean_probability=float(total[number] / STEPS / area),
                max_probability=float(highest[number]),
                length_px=lengths[number - 1][0],
                length_mm=lengths[number - 1][1],
                box_px=(left, top, right, bottom),
                start_px=tuple(objects.start[number].tolist()),
            )
        )
    return tuple(regions)


def compute_area_mm2(pixels: int, pixel_area_um2: float | None) -> float | None:
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
        hull = cv2.convexHull(corners.astype(np.int32))[:, 0].astype(np.float64)
        mm = None if resolution.mpp is None else float(pdist(hull * resolution.mpp).max()) / 1000
        lengths.append((float(pdist(hull).max()), mm))
    return lengths
