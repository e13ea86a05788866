"""The classes of cancer in the clean mask of a slide: which one a px has, and the area of each."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat

from panda.inference.regions import Px, compute_area_mm2, compute_percent, convert_px
from panda.inference.scored_map import ScoredMap
from panda.stored import Percent, Plain
from panda.wsi.components import slice_window
from panda.wsi.geometry import cut_blocks
from panda.wsi.label_maps import Pattern
from panda.wsi.runs import ConnectedRuns


class ClassArea(Plain, frozen=True):
    """The tumour of one class, after the clean-up. The areas of all classes add up to that of the tumour.

    Attributes:
        name: The class.
        patterns: Its Gleason patterns.
        area_px: Area in working px.
        area_mm2: Area, None if µm/px is unknown.
        percent_of_tumor: 0 to 100, None if there is no tumour.
        percent_of_tissue: 0 to 100, None if there is no tissue.
        px_at_threshold: Area in px at each of `panda.inference.quantify.THRESHOLDS`, before the clean-up.
    """

    name: str
    patterns: Annotated[tuple[Pattern, ...], Field(min_length=1)]
    area_px: Px
    area_mm2: NonNegativeFloat | None
    percent_of_tumor: Percent | None
    percent_of_tissue: Percent | None
    px_at_threshold: tuple[Px, ...]


def describe_class_area(area: ClassArea) -> str:
    """Write a class with its area and its share of the tumour, for a legend."""
    size = f"{area.area_px:,g} px" if area.area_mm2 is None else f"{area.area_mm2:.3f} mm²"
    share = "" if area.percent_of_tumor is None else f", {area.percent_of_tumor:.1f} % of the tumour"
    return f"{area.name}: {size}{share}"


def classify_mask(
    class_map: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    objects: ConnectedRuns,
    scored: ScoredMap,
    *,
    bound: Any,
    block: int,
) -> NDArray[Any]:
    """Write the number of the class of each px of a clean mask into `class_map`, (H, W), which is 0 elsewhere.

    A px that reaches the threshold has the class of cancer with the highest probability. A px of a filled hole, which
    does not, has the class that most px of its object have. Ties have the highest pattern.

    Args:
        class_map: Zeros.
        mask: The clean mask, (H, W) bool.
        objects: The objects of the mask.
        scored: The probability map.
        bound: The value of `scored` that a px of tumour reaches.
        block: Side of the blocks in px; it changes no result.

    Returns:
        Areas of the classes of cancer in each object in working px, (n + 1, k), see `Resolution.weigh_counts`.
    """
    order = np.array(scored.classes.by_pattern)
    counts = np.zeros((4, len(objects) + 1, len(order) + 1), np.int64)
    windows = list(cut_blocks(mask.shape[1], mask.shape[0], block))
    for window in windows:
        part = slice_window(window)
        if mask[part].any():
            reached = mask[part] & (scored.read(window)[1] >= bound)
            np.copyto(class_map[part], scored.choose_classes(window), where=reached)
            counts[0] += _count(_number_px(objects, window, mask[part]), class_map[part], counts.shape[1:])
    most = order[counts[0][:, order].argmax(axis=1)]
    counts[:] = 0
    for window in windows:
        part = slice_window(window)
        if mask[part].any():
            number = _number_px(objects, window, mask[part])
            np.copyto(class_map[part], most[number], where=mask[part] & (class_map[part] == 0), casting="unsafe")
            for index, px in scored.resolution.list_edges(window):
                counts[index] += _count(number[px], class_map[part][px], counts.shape[1:])
    return scored.resolution.weigh_counts(counts)[:, 1:]


def describe_classes(
    scored: ScoredMap, areas: NDArray[Any], at_thresholds: NDArray[Any], tumor_px: Px, tissue_px: Px
) -> tuple[ClassArea, ...]:
    """Describe the classes of cancer of a map, in their order; none without areas.

    Args:
        scored: The probability map.
        areas: Area of each class after the clean-up in working px, (k,), or (0,).
        at_thresholds: Area of each class at each threshold before the clean-up in working px, (k, n).
        tumor_px: Area of the tumour after the clean-up.
        tissue_px: Area of the tissue.
    """
    names, pixel_area = scored.classes.cancer_names, scored.resolution.pixel_area_um2
    return tuple(
        ClassArea(
            name=name,
            patterns=scored.classes.patterns[name],
            area_px=area,
            area_mm2=compute_area_mm2(area, pixel_area),
            percent_of_tumor=compute_percent(area, tumor_px),
            percent_of_tissue=compute_percent(area, tissue_px),
            px_at_threshold=tuple(map(convert_px, counts)),
        )
        for name, area, counts in zip(names, map(convert_px, areas), at_thresholds, strict=False)
    )


def _number_px(
    objects: ConnectedRuns, window: tuple[int, int, int, int], inside: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the number of the object of each px in a window, (h, w), from the mask there; 0 outside of objects."""
    index, runs = objects.runs.cut(window)
    number = np.zeros(inside.shape, np.int64)
    number[inside] = np.repeat(objects.number[index], runs.length)
    return number


def _count(number: NDArray[np.int64], class_map: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Count px by object and class, (objects + 1, classes); px outside of objects are in row 0."""
    places = number * shape[1] + class_map
    return np.bincount(places.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
