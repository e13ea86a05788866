"""Tumour regions of a clean mask: area, place, length and probability of each."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.spatial.distance import pdist

from panda.inference.canvas_store import STEPS
from panda.inference.scored_map import ScoredMap
from panda.wsi.components import Components, Window, window_slices
from panda.wsi.geometry import Resolution, cut_blocks, round_px


class Region(BaseModel):
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

    model_config = ConfigDict(frozen=True)

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


def describe_regions(objects: Components, mask: NDArray[np.bool_], scored: ScoredMap, block: int) -> tuple[Region, ...]:
    """Describe the objects of a clean mask, largest first.

    Args:
        objects: The objects of `mask`.
        mask: (H, W) bool in working px.
        scored: The probability map under the mask.
        block: Side of the blocks in px; it changes no result.
    """
    count = len(objects) + 1
    total, highest = np.zeros(count), np.zeros(count)
    ends = []
    for window in cut_blocks(mask.shape[1], mask.shape[0], block):
        inside = mask[window_slices(window)]
        if not inside.any():
            continue
        numbers, prob = objects.number_px(window, inside), scored.read(window)[2]
        number_of_px, values = numbers[inside], prob[inside].astype(np.float64)
        total += np.bincount(number_of_px, weights=scored.steps_of(values), minlength=count)
        np.maximum.at(highest, number_of_px, values)
        ends.append(_row_ends(numbers, window))
    lengths = _lengths(np.concatenate(ends, axis=1) if ends else np.zeros((4, 0), np.int64), scored.resolution)
    to_level0, (width, height) = scored.resolution.frame.to_level0, scored.slide.dimensions
    pixel_area = scored.resolution.pixel_area_um2
    regions = []
    for number in range(1, count):
        left, top, right, bottom = objects.box[number].tolist()
        x0, y0 = to_level0(left, top)
        x1, y1 = to_level0(right, bottom)
        x, y = objects.centroid[number].tolist()
        area = int(objects.area[number])
        regions.append(
            Region(
                id=number,
                area_px=area,
                area_mm2=area_mm2(area, pixel_area),
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


def area_mm2(pixels: int, pixel_area_um2: float | None) -> float | None:
    """Return the area of pixels in mm², None if the area of one is unknown."""
    return None if pixel_area_um2 is None else pixels * pixel_area_um2 / 1e6


def _row_ends(numbers: NDArray[np.int32], window: Window) -> NDArray[np.int64]:
    """Return how far each object reaches in each row of a block.

    Args:
        numbers: (h, w) int32, the object number of each pixel, 0 outside.
        window: The place of the block.

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
    return np.stack(
        [
            keys % many,
            keys // many + window[1],
            x[starts][first] + window[0],
            x[finishes][::-1][last] + window[0],
        ]
    )


def _lengths(ends: NDArray[np.int64], resolution: Resolution) -> list[tuple[float, float | None]]:
    """Return Feret's diameter of each object in working px and in mm, in order of their numbers, from `_row_ends`."""
    ends = ends[:, np.argsort(ends[0], kind="stable")]
    borders = np.flatnonzero(np.diff(ends[0])) + 1
    lengths = []
    for _, y, left, right in (part for part in np.split(ends, borders, axis=1) if part.size):
        corners = np.stack([np.concatenate([left, left, right, right]), np.concatenate([y, y + 1, y, y + 1])], axis=1)
        hull = cv2.convexHull(corners.astype(np.int32))[:, 0].astype(np.float64)
        mm = None if resolution.mpp is None else float(pdist(hull * resolution.mpp).max()) / 1000
        lengths.append((float(pdist(hull).max()), mm))
    return lengths
