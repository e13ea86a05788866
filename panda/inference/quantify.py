"""How much of a slide's tissue is tumour: threshold, clean-up, regions, areas.

A pixel of the working frame counts as tumour when its probability reaches the threshold, it lies in tissue and it
was scored. Objects under a smallest area are then removed, and after them holes under a smallest area are filled
(in this order, so that a speck within a gland does not keep its hole open). Objects are 8-connected and holes
4-connected, or the other way round: a diagonal never joins both. Only tissue is ever filled: the lumen of a gland
is glass, and stays out of the tumour's area.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.errors import ConfigError, PandaError
from panda.inference.canvas import Canvas
from panda.inference.canvas_store import CHUNK, probability
from panda.wsi.geometry import Resolution, round_px
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue

_MAX_PX = 2**31 - 1
"""OpenCV counts pixels in int32."""


@dataclass(frozen=True)
class QuantifySettings:
    """Limits of the clean-up.

    Args:
        min_region_um2: Smallest object that is kept, in µm²; 1,000 is a disc 36 µm across, less than a small gland.
        min_hole_um2: Smallest hole that stays open, in µm².
        min_region_px: Smallest object that is kept, in working px, where µm/px is unknown.
        min_hole_px: Smallest hole that stays open, in working px, where µm/px is unknown.
        connectivity: 8 joins pixels that touch at a corner into one object, 4 does not; holes use the other.

    Raises:
        ConfigError: A limit is negative, or the connectivity is neither 4 nor 8; names all such keys.
    """

    min_region_um2: float = 1000
    min_hole_um2: float = 1000
    min_region_px: int = 64
    min_hole_px: int = 64
    connectivity: Literal[4, 8] = 8

    def __post_init__(self) -> None:
        faults = [
            f"quantify.{key}={value} must be 0 or more"
            for key, value in asdict(self).items()
            if key != "connectivity" and not 0 <= value < float("inf")
        ]
        if self.connectivity not in {4, 8}:
            faults.append(f"quantify.connectivity={self.connectivity} must be 4 or 8")
        if faults:
            raise ConfigError(faults)

    def limits_px(self, pixel_area_um2: float | None) -> tuple[float, float]:
        """The limits for objects and holes in working px, as far as possible from µm².

        Args:
            pixel_area_um2: Area of a working px, or None where µm/px is unknown.
        """
        if pixel_area_um2 is None:
            return self.min_region_px, self.min_hole_px
        return self.min_region_um2 / pixel_area_um2, self.min_hole_um2 / pixel_area_um2


@dataclass(frozen=True)
class Labelled:
    """The objects of a mask, largest first.

    Attributes:
        labels: (H, W) int32; the pixels of an object hold its label, others 0. Labels are in no order.
        order: Label of each object by falling area, ties by label: object ``i + 1`` has label ``order[i]``.
        stats: (labels, 5) int32: left, top, width, height, area in working px; row 0 is the background.
        centroids: (labels, 2) float64 x, y of the mean pixel index.
    """

    labels: NDArray[np.int32]
    order: NDArray[np.int64]
    stats: NDArray[np.int32]
    centroids: NDArray[np.float64]


def label_objects(mask: NDArray[np.bool_], connectivity: int) -> Labelled:
    """Find the connected objects of a mask.

    Args:
        mask: (H, W) bool.
        connectivity: 4 or 8.

    Raises:
        PandaError: The mask has 2³¹ px or more, beyond what the labelling counts.
    """
    if mask.size > _MAX_PX:
        raise PandaError(
            f"a map of {mask.shape[1]} x {mask.shape[0]} px is too large to find regions in (2^31 px at most); "
            "train with a larger data.level or data.mpp, or leave the slide out"
        )
    _, labels, stats, centroids = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=connectivity, ltype=cv2.CV_32S
    )
    order = np.argsort(-stats[1:, cv2.CC_STAT_AREA].astype(np.int64), kind="stable") + 1
    return Labelled(np.asarray(labels, np.int32), order, np.asarray(stats, np.int32), np.asarray(centroids))


def clean_mask(
    mask: NDArray[np.bool_],
    fillable: NDArray[np.bool_],
    *,
    min_region: float,
    min_hole: float,
    connectivity: int = 8,
) -> NDArray[np.bool_]:
    """Remove small objects, then fill small holes.

    Args:
        mask: (H, W) bool.
        fillable: (H, W) bool; pixels of a hole outside of it stay open (they count towards its area).
        min_region: Objects of fewer px are removed.
        min_hole: Holes of fewer px are filled. What reaches the edge of the map is no hole.
        connectivity: Of the objects, 4 or 8; the holes' is the other one.

    Returns:
        (H, W) bool, a new array.
    """
    objects = label_objects(mask, connectivity)
    keep = objects.stats[:, cv2.CC_STAT_AREA] >= min_region
    keep[0] = False
    cleaned = keep[objects.labels]
    del objects
    gaps = label_objects(~cleaned, 12 - connectivity)
    stats = gaps.stats
    right = stats[:, cv2.CC_STAT_LEFT] + stats[:, cv2.CC_STAT_WIDTH]
    bottom = stats[:, cv2.CC_STAT_TOP] + stats[:, cv2.CC_STAT_HEIGHT]
    enclosed = (stats[:, cv2.CC_STAT_LEFT] > 0) & (stats[:, cv2.CC_STAT_TOP] > 0)
    enclosed &= (right < mask.shape[1]) & (bottom < mask.shape[0])
    fill = enclosed & (stats[:, cv2.CC_STAT_AREA] < min_hole)
    fill[0] = False
    cleaned |= fill[gaps.labels] & fillable
    return cleaned


def slide_quantification(
    pred_canvas: Canvas | NDArray[np.floating[Any]],
    slide: Slide,
    level_eval: int | Resolution,
    thr: float,
    *,
    settings: QuantifySettings | None = None,
    tissue: TissueMap | None = None,
) -> dict[str, Any]:
    """Measure the tumour on a slide.

    The threshold is compared in float64 with what the canvas holds, as the threshold search does. Areas are
    pixel counts times the area of a working px.

    Objects are found on the whole map at once: its arrays take about 10 bytes a working px at their peak, and a map
    of 2³¹ px or more is refused.

    Args:
        pred_canvas: The probability map: a canvas, or an (H, W) array of probabilities, all of it scored.
        slide: The slide it was made of.
        level_eval: Pyramid level the map is at, or its resolution.
        thr: A pixel is tumour when its probability is at least this.
        settings: Limits of the clean-up; `QuantifySettings()` where None.
        tissue: The slide's tissue; found anew where None.

    Returns:
        Plain data but for the mask:

        - ``tumor_px``, ``tissue_px``: working px after clean-up; ``unscored_tissue_px`` of the tissue was
          covered by no tile and counts as no tumour
        - ``tumor_percent_of_tissue``: 0..100, None where there is no tissue
        - ``tumor_mm2``, ``tissue_mm2``: None where µm/px is unknown; ``mm2_note`` says why, or where µm/px is from
        - ``num_regions`` and ``regions``, largest first: ``id`` from 1, ``area_px``, ``area_mm2``, ``centroid``
          [x, y] and ``bbox`` [left, top, right, bottom] in level-0 px, ``mean_probability``,
          ``max_probability`` (over the region's pixels, filled holes included)
        - ``mask_clean``: (H, W) bool in working px
        - ``threshold`` and ``settings``: what was asked

    Raises:
        PandaError: The map's shape is not the slide's at ``level_eval``, it holds NaN, or it is too large.
        SlideError: The slide has no such level, or no tissue is found.
        ValueError: ``thr`` is outside 0..1.
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
    in_tissue = (tissue if tissue is not None else find_tissue(slide)).crop(resolution, (0, 0), resolution.size)
    positive, scored_tissue = np.empty(shape, np.bool_), np.empty(shape, np.bool_)
    for y0, prob, scored in _bands(pred_canvas, slide):
        rows = slice(y0, y0 + len(prob))
        scored_tissue[rows] = scored & in_tissue[rows]
        # np.float64 and not float: against float32 numpy would round a plain float down to float32 first.
        positive[rows] = (prob >= np.float64(thr)) & scored_tissue[rows]
    area = resolution.pixel_area_um2
    min_region, min_hole = settings.limits_px(area)
    mask = clean_mask(
        positive,
        scored_tissue,
        min_region=min_region,
        min_hole=min_hole,
        connectivity=settings.connectivity,
    )
    regions = _regions(mask, pred_canvas, slide, resolution, settings.connectivity)
    tumor_px, tissue_px = int(np.count_nonzero(mask)), int(np.count_nonzero(in_tissue))
    return {
        "tumor_px": tumor_px,
        "tissue_px": tissue_px,
        "unscored_tissue_px": tissue_px - int(np.count_nonzero(scored_tissue)),
        "tumor_percent_of_tissue": 100 * tumor_px / tissue_px if tissue_px else None,
        "tumor_mm2": _mm2(tumor_px, area),
        "tissue_mm2": _mm2(tissue_px, area),
        "mm2_note": slide.mpp_note,
        "num_regions": len(regions),
        "regions": regions,
        "threshold": float(thr),
        "settings": asdict(settings),
        "mask_clean": mask,
    }


def _mm2(pixels: int, pixel_area_um2: float | None) -> float | None:
    return None if pixel_area_um2 is None else pixels * pixel_area_um2 / 1e6


def _bands(
    pred_canvas: Canvas | NDArray[np.floating[Any]], slide: Slide
) -> Iterator[tuple[int, NDArray[np.floating[Any]], NDArray[np.bool_]]]:
    """Yield (y0, probabilities, scored) band by band.

    Raises:
        PandaError: An array holds NaN.
    """
    if isinstance(pred_canvas, Canvas):
        for y0, codes in pred_canvas.code_bands():
            yield y0, probability(codes), codes > 0
        return
    for y0 in range(0, pred_canvas.shape[0], CHUNK):
        prob = pred_canvas[y0 : y0 + CHUNK]
        if np.isnan(prob).any():
            raise PandaError(
                f"{slide.path}: the probability map holds NaN in rows {y0} to {y0 + len(prob) - 1}; "
                "give 0 where nothing was scored"
            )
        yield y0, prob, np.ones(prob.shape, np.bool_)


def _regions(
    mask: NDArray[np.bool_],
    pred_canvas: Canvas | NDArray[np.floating[Any]],
    slide: Slide,
    resolution: Resolution,
    connectivity: int,
) -> list[dict[str, Any]]:
    """Describe the objects of the clean mask, largest first; see `slide_quantification`."""
    objects = label_objects(mask, connectivity)
    count = len(objects.stats)
    total, highest = np.zeros(count), np.zeros(count)
    for y0, prob, _ in _bands(pred_canvas, slide):
        inside = mask[y0 : y0 + len(prob)]
        of, values = objects.labels[y0 : y0 + len(prob)][inside], prob[inside].astype(np.float64)
        total += np.bincount(of, weights=values, minlength=count)
        np.maximum.at(highest, of, values)
    to_level0, (width, height) = resolution.frame.to_level0, slide.dimensions
    found = []
    for number, label in enumerate(objects.order.tolist(), start=1):
        left, top, w, h, area = objects.stats[label].tolist()
        x0, y0 = to_level0(left, top)
        x1, y1 = to_level0(left + w, top + h)
        x, y = objects.centroids[label].tolist()
        found.append(
            {
                "id": number,
                "area_px": area,
                "area_mm2": _mm2(area, resolution.pixel_area_um2),
                "centroid": list(to_level0(x + 0.5, y + 0.5)),
                "bbox": [round_px(x0), round_px(y0), min(round_px(x1), width), min(round_px(y1), height)],
                "mean_probability": float(total[label] / area),
                "max_probability": float(highest[label]),
            }
        )
    return found
