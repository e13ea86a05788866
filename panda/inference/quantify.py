"""Measure how much of the tissue of a slide is tumour: threshold, clean-up, regions, areas.

A working pixel counts as tumour if its probability reaches the threshold, it is in tissue and it was scored. The
mask is then cleaned (`clean_mask`). Only tissue is ever filled: the lumen of a gland is glass and
stays out of the tumour's area.

Everything runs block by block (`panda.wsi.components`), because a map may be larger than memory.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, SkipValidation, model_validator
from pydantic_core import PydanticCustomError

from panda.errors import PandaError
from panda.inference.canvas_store import Canvas
from panda.inference.class_areas import ClassArea, classify_mask, describe_classes
from panda.inference.polygons import Outlines, trace
from panda.inference.regions import (
    Px,
    Region,
    clean_mask,
    compute_area_mm2,
    compute_percent,
    convert_px,
    describe_regions,
)
from panda.inference.scored_map import ScoredMap
from panda.settings import Settings
from panda.stored import Percent, Plain, Share
from panda.wsi.components import BLOCK, slice_window
from panda.wsi.geometry import Resolution, cut_blocks
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue

THRESHOLDS = np.arange(1001) / 1000
"""Thresholds at which `slide_quantification` counts pixels, so that a page can move the threshold later."""

NEARBY = (-0.1, -0.05, 0.0, 0.05, 0.1)
"""Offsets from the threshold at which the tumour share is measured too, to show how sensitive it is."""

_NEAR_PX = 1.0  # parts of px at the edge are rounded
_IN_MEMORY_PX = 2**28
"""A larger mask is an unnamed file on the disk, mapped into memory."""


class QuantifySettings(Settings):
    """Limits of the clean-up.

    Args:
        min_region_um2: Area of the smallest object that stays, in µm²; 1,000 is less than a small gland.
        min_hole_um2: Area of the smallest hole that stays open, in µm².
        min_region_px: Area of the smallest object that stays, in working px, if µm/px is unknown.
        min_hole_px: Area of the smallest hole that stays open, in working px, if µm/px is unknown.
        connectivity: 8 joins pixels that touch at a corner into one object, 4 does not; holes use the other.
    """

    node: ClassVar[str] = "quantify"

    min_region_um2: float = Field(default=1000, ge=0)
    min_hole_um2: float = Field(default=1000, ge=0)
    min_region_px: int = Field(default=64, ge=0)
    min_hole_px: int = Field(default=64, ge=0)
    connectivity: Literal[4, 8] = 8

    def convert_limits(self, pixel_area_um2: float | None) -> tuple[float, float]:
        """Return the limits for objects and holes in working px, from those in µm² if the area of a px is known."""
        if pixel_area_um2 is None:
            return self.min_region_px, self.min_hole_px
        return self.min_region_um2 / pixel_area_um2, self.min_hole_um2 / pixel_area_um2


class NearbyThreshold(Plain, frozen=True):
    """Tumour in per cent of tissue at a threshold near the chosen one, before the clean-up."""

    threshold: Share
    tumor_percent_of_tissue: Percent | None


class Measurements(Plain, frozen=True):
    """Figures of `slide_quantification` as plain data.

    Areas in working px are numbers of px. Only px at the right and lower edge can be partly past the slide, and these
    count as the part on it.

    Attributes:
        threshold: Probability at which a pixel counts as tumour.
        tumor_px: Tumour in working px, after the clean-up.
        tissue_px: Tissue in working px.
        unscored_tissue_px: Tissue that no tile covered, in working px; it counts as no tumour.
        tumor_percent_of_tissue: 0 to 100, None if there is no tissue.
        tumor_mm2: Area of the tumour, None if µm/px is unknown.
        tissue_mm2: Area of the tissue, None if µm/px is unknown.
        mm2_note: Why the areas are None, or the source of µm/px.
        regions: The regions, largest first.
        nearby: Tumour share at thresholds near `threshold`, before the clean-up.
        px_at_threshold: Scored tissue in px that reaches each of `THRESHOLDS`, before the clean-up.
        settings: The limits of the clean-up.
        classes: The tumour by class of cancer; empty if there is one class.
    """

    threshold: Share
    tumor_px: Px
    tissue_px: Px
    unscored_tissue_px: Px
    tumor_percent_of_tissue: Percent | None
    tumor_mm2: NonNegativeFloat | None
    tissue_mm2: NonNegativeFloat | None
    mm2_note: str
    num_regions: NonNegativeInt
    regions: tuple[Region, ...]
    nearby: tuple[NearbyThreshold, ...]
    px_at_threshold: Annotated[tuple[Px, ...], Field(min_length=len(THRESHOLDS), max_length=len(THRESHOLDS))]
    settings: QuantifySettings
    classes: tuple[ClassArea, ...] = Field(default=(), exclude_if=lambda areas: not areas)

    @model_validator(mode="after")
    def _check_sums(self) -> Self:
        """Refuse figures that contradict each other."""
        area = sum(region.area_px for region in self.regions)
        share, right = self.tumor_percent_of_tissue, compute_percent(self.tumor_px, self.tissue_px)
        is_right = (share is None) == (right is None) and math.isclose(share or 0, right or 0, abs_tol=1e-6)
        one_area = (self.tumor_mm2 is None) != (self.tissue_mm2 is None)
        rules = {
            "unscored_tissue_px is above tissue_px": self.unscored_tissue_px > self.tissue_px + _NEAR_PX,
            "num_regions is not the number of regions": self.num_regions != len(self.regions),
            "tumor_px is not the area of all regions": abs(self.tumor_px - area) > _NEAR_PX,
            "tumor_px is above tissue_px": self.tumor_px > self.tissue_px + _NEAR_PX,
            "tumor_percent_of_tissue is not tumor_px as a share of tissue_px": not is_right,
            "tumor_mm2 or tissue_mm2 is null, and the other is not": one_area,
            "px_at_threshold grows with the threshold": any(a < b for a, b in pairwise(self.px_at_threshold)),
            "class_px of a region is not its area by class": not all(map(self._adds_up, self.regions)),
        }
        if parts := self.classes:
            by_class = [part.px_at_threshold for part in parts]
            sums = map(sum, zip(*by_class, strict=False))
            rules["tumor_px is not the area of all classes"] = not _is_near(
                self.tumor_px, sum(part.area_px for part in parts)
            )
            rules["px_at_threshold is not that of all classes"] = {*map(len, by_class)} != {len(THRESHOLDS)} or not all(
                map(_is_near, self.px_at_threshold, sums)
            )
        if broken := [text for text, is_broken in rules.items() if is_broken]:
            raise PydanticCustomError("sums", "{broken}", {"broken": ", ".join(broken)})
        return self

    def _adds_up(self, region: Region) -> bool:
        """Return whether a region has an area for each class, and these add up to its own."""
        if len(region.class_px) != len(self.classes):
            return False
        return not self.classes or _is_near(region.area_px, sum(region.class_px))


class Quantification(Measurements, frozen=True, arbitrary_types_allowed=True):
    """The measurements of a slide with its tumour in working px.

    Attributes:
        mask_clean: The mask after the clean-up, (H, W) bool.
        class_map: The number of the class of cancer of each px in the mask, (H, W) uint8; 0 outside it.
    """

    mask_clean: SkipValidation[NDArray[np.bool_]] = Field(repr=False, exclude=True)
    class_map: SkipValidation[NDArray[np.uint8]] = Field(repr=False, exclude=True)

    @functools.cached_property
    def outlines(self) -> Outlines:
        """The outlines of `mask_clean` in working px."""
        return trace(self.mask_clean, self.settings.connectivity)


def slide_quantification(
    pred_canvas: Canvas | NDArray[np.floating[Any]],
    slide: Slide,
    level_eval: int | Resolution,
    thr: float,
    *,
    settings: QuantifySettings | None = None,
    tissue: TissueMap | None = None,
    block: int = BLOCK,
) -> Quantification:
    """Measure the tumour on a slide.

    The threshold is compared in float64 with the values of the canvas, as the threshold search does. Areas are
    pixel counts times the area of a working px.

    Memory does not grow with the map, except for `mask_clean`. The mask takes one byte per px of the blocks that hold
    tumour. From 2²⁸ px on it is a file beside the canvas, mapped into memory.

    Args:
        pred_canvas: The probability map: a canvas, or an (H, W) array of probabilities in which every px is scored.
        slide: The slide of the map.
        level_eval: Pyramid level of the map, or its resolution.
        thr: A pixel is tumour if its probability is at least this, 0 to 1.
        settings: Limits of the clean-up; None means `QuantifySettings()`.
        tissue: The tissue of the slide; None finds it again.
        block: Side of the blocks in px, a multiple of 512 for a canvas; it changes no result.

    Raises:
        PandaError: If the shape of the map is not that of the slide at `level_eval`, or the map holds NaN.
        SlideError: If the slide has no such level, or no tissue is found.
        ValueError: If `thr` is outside 0 to 1.
    """
    if not 0 <= thr <= 1:
        raise ValueError(f"the threshold is {thr}; it must be in 0..1")
    settings = settings or QuantifySettings()
    resolution = level_eval if isinstance(level_eval, Resolution) else slide.choose_resolution(level=level_eval)
    shape = resolution.height, resolution.width
    if pred_canvas.shape != shape:
        raise PandaError(
            f"{slide.path}: the probability map is {pred_canvas.shape[1]} x {pred_canvas.shape[0]} px, the slide at "
            f"{resolution.downsample:g} level-0 px per px is {resolution.width} x {resolution.height} px; "
            "give the level or resolution of the map"
        )
    scored_map = ScoredMap(pred_canvas, slide, tissue if tissue is not None else find_tissue(slide), resolution)
    folder = pred_canvas.path.parent if isinstance(pred_canvas, Canvas) else None
    mask, names = _make_empty_mask(shape, folder), scored_map.classes.cancer_names
    near = np.clip(thr + np.array(NEARBY), 0, 1)
    steps = np.union1d(THRESHOLDS, near)
    bound = scored_map.find_bound(thr)
    tissue_counts, counts = _count_px(scored_map, steps, mask, bound, block)
    tissue_px = convert_px(resolution.weigh_counts(tissue_counts))
    class_at_least = resolution.weigh_counts(counts[..., ::-1].cumsum(axis=2)[..., ::-1])[:, 1:]
    at_least = class_at_least.sum(axis=0)
    pixel_area = resolution.pixel_area_um2
    min_region, min_hole = settings.convert_limits(pixel_area)
    objects = clean_mask(
        mask,
        lambda window: scored_map.read(window)[1] >= scored_map.lowest,
        min_region=min_region,
        min_hole=min_hole,
        connectivity=settings.connectivity,
        block=block,
    )
    class_map, class_areas = mask.view(np.uint8), np.zeros((len(objects) + 1, 0))
    if len(names) > 1:
        class_map = _make_empty_mask(shape, folder).view(np.uint8)
        class_areas = classify_mask(class_map, mask, objects, scored_map, bound=bound, block=block)
    regions, tumor_px = describe_regions(objects, mask, scored_map, class_areas, block)
    return Quantification(
        threshold=float(thr),
        tumor_px=tumor_px,
        tissue_px=tissue_px,
        unscored_tissue_px=convert_px(resolution.weigh_counts(tissue_counts - counts.sum(axis=(1, 2)))),
        tumor_percent_of_tissue=compute_percent(tumor_px, tissue_px),
        tumor_mm2=compute_area_mm2(tumor_px, pixel_area),
        tissue_mm2=compute_area_mm2(tissue_px, pixel_area),
        mm2_note=slide.mpp_note,
        num_regions=len(regions),
        regions=regions,
        nearby=tuple(
            NearbyThreshold(threshold=float(step), tumor_percent_of_tissue=compute_percent(float(count), tissue_px))
            for step, count in zip(near, at_least[np.searchsorted(steps, near)], strict=True)
        ),
        px_at_threshold=tuple(map(convert_px, at_least[np.searchsorted(steps, THRESHOLDS)])),
        settings=settings,
        classes=describe_classes(
            scored_map,
            class_areas.sum(axis=0),
            class_at_least[:, np.searchsorted(steps, THRESHOLDS)],
            tumor_px,
            tissue_px,
        ),
        mask_clean=mask,
        class_map=class_map,
    )


def _count_px(
    scored_map: ScoredMap, steps: NDArray[np.float64], mask: NDArray[np.bool_], bound: float, block: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the px of a map by place and probability, and mark those at or above a bound in an empty mask.

    Args:
        scored_map: The map.
        steps: Ascending thresholds, (n,).
        mask: Receives the px of the tumour, (H, W).
        bound: The lowest value of a px of the tumour.
        block: Side of the blocks in px.

    Returns:
        Tissue px by place, (4,), and scored tissue px by place, class and step, (4, k, n + 1). The four places are
        those of `Resolution.list_edges`, whose px have different areas.
    """
    counts = np.zeros((4, len(scored_map.classes.cancer_names), len(steps) + 1), np.int64)
    tissue_counts = np.zeros(4, np.int64)
    resolution = scored_map.resolution
    for window in cut_blocks(*resolution.size, block):
        in_tissue, values = scored_map.read(window)
        is_scored = (values >= scored_map.lowest).any()
        by_class = scored_map.split_classes(window, values) if is_scored else []
        for index, px in resolution.list_edges(window):
            tissue_counts[index] += np.count_nonzero(in_tissue[px])
            for number, own in enumerate(by_class):
                counts[index, number] += scored_map.count_steps(own[px], steps)
        if is_scored:
            np.greater_equal(values, bound, out=mask[slice_window(window)])
    return tissue_counts, counts


def _is_near(area: Px, other: Px) -> bool:
    """Return whether areas are equal except for the rounding of parts of px."""
    return math.isclose(area, other, rel_tol=1e-9, abs_tol=1e-6)


def _make_empty_mask(shape: tuple[int, int], folder: Path | None) -> NDArray[np.bool_]:
    """Return a mask of False; a large one is an unnamed file in `folder`.

    Memory is taken only for the parts of the mask that are written.
    """
    size = shape[0] * shape[1]
    if size < _IN_MEMORY_PX:
        return np.zeros(shape, np.bool_)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and would be a crash later
        else:
            file.truncate(size)
        return np.memmap(file, np.bool_, "r+", shape=shape)
