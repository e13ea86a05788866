"""Write the pictures of a whole mapped slide: heatmap, overlay, attention, and the images of its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panda.files import write_beside
from panda.inference.canvas_store import Canvas
from panda.inference.class_areas import ClassArea, describe_class_area
from panda.inference.class_colours import encode_map, find_class_colour, make_class_tables, paint_classes
from panda.inference.codes import STEPS
from panda.inference.grade import Grade
from panda.inference.legends import COLOUR_MAPS, ColourMap, LegendEntry, Scale, colorize, format_length, frame_image
from panda.inference.outline_drawing import OUTLINE, draw_outlines, find_closed_gap, find_thickness
from panda.inference.picture_file import write_png
from panda.inference.polygons import Outlines
from panda.wsi.classes import ClassSet
from panda.wsi.geometry import Resolution, floor_px, round_px
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

MAX_SIDE = 2048
"""Longest side of the image in a picture, in px."""

UNSCORED = (225, 225, 225)
_BAND_PX = 512


def shrink(
    canvas: Canvas, factor: int, window: tuple[int, int, int, int] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Average a canvas over blocks of `factor` × `factor` px, window by window.

    Args:
        canvas: The probability map.
        factor: Side of a block in working px.
        window: x0, y0, width, height in blocks, within the canvas; None for all of it.

    Returns:
        (k, h, w) float32 mean probability of each class of cancer over the scored pixels, 0 without any, and (h, w)
        float32 scored share of the block, all of size `ceil(size / factor)`: blocks at the right and lower edge may
        be cut.
    """
    x, y, *size = window or (0, 0, *(-(-side // factor) for side in canvas.shape[::-1]))
    left, top = x * factor, y * factor
    width, height = (
        min(side * factor, end - start) for side, end, start in zip(size, canvas.shape[::-1], (left, top), strict=True)
    )
    shape = size[1], size[0]
    mean, share = np.zeros((len(canvas.classes.cancer_names), *shape), np.float32), np.zeros(shape, np.float32)
    step = factor * max(1, _BAND_PX // factor)
    for y0 in range(0, height, step):
        for x0 in range(0, width, step):
            codes = canvas.read_class_codes(left + x0, top + y0, min(step, width - x0), min(step, height - y0))
            if not codes.any():
                continue
            rows, columns = (_measure_blocks(side, factor) for side in codes.shape[1:])
            area = rows[:, None] * columns
            scored = area if codes[0].all() else _sum_blocks(codes[0] > 0, factor)
            row, column = y0 // factor, x0 // factor
            into = slice(row, row + len(scored)), slice(column, column + scored.shape[1])
            for own, means in zip(codes, mean, strict=True):
                total = _sum_blocks(own, factor) - scored
                means[into] = np.divide(total, STEPS * scored, out=np.zeros(total.shape), where=scored > 0)
            share[into] = scored / area
    return mean, share


def _measure_blocks(side: int, factor: int) -> NDArray[np.int64]:
    """Return how many px of a side each block of `factor` px has; the last one may be cut."""
    return np.diff(np.minimum(np.arange(0, side + factor, factor), side))


def _sum_blocks(values: NDArray[Any], factor: int) -> NDArray[np.int64]:
    """Sum blocks of `factor` × `factor` px of whole numbers; those at the right and lower edge may be cut."""
    height, width = (-(-side // factor) for side in values.shape)
    rows, sums = np.zeros((height, values.shape[1]), np.uint32), np.zeros((height, width), np.int64)
    for offset in range(min(factor, len(values))):
        part = values[offset::factor]
        rows[: len(part)] += part
    for offset in range(min(factor, values.shape[1])):
        columns = rows[:, offset::factor]
        sums[:, : columns.shape[1]] += columns
    return sums


@dataclass(frozen=True)
class Overview:
    """A slide and its probability map, both shrunk to the size of a picture.

    Attributes:
        image: (h, w, 3) uint8 RGB, the whole slide.
        resolution: Resolution of `image`.
        by_class: (k, h, w) float32 mean probability of each class of cancer over the scored pixels under each px.
        classes: The classes.
        share: (h, w) float32 share of each px that is scored tissue.
        mapped: Resolution of the probability map itself.
    """

    slide_id: str
    image: NDArray[np.uint8]
    resolution: Resolution
    by_class: NDArray[np.float32]
    classes: ClassSet
    share: NDArray[np.float32]
    mapped: Resolution

    @property
    def prob(self) -> NDArray[np.float32]:
        """(h, w) float32 mean probability of cancer of the scored pixels under each px."""
        return np.asarray(self.by_class.sum(axis=0), np.float32)

    @classmethod
    def from_canvas(
        cls, slide: Slide, canvas: Canvas, tissue: TissueMap | None = None, max_side: int = MAX_SIDE
    ) -> Overview:
        """Shrink a slide and its map; with `tissue`, pixels outside it count as not scored."""
        image, view = slide.overview(max_side)
        factor = max(1, round_px(view.downsample / canvas.resolution.downsample))
        by_class, share = shrink(canvas, factor)
        downsample = factor * canvas.resolution.downsample
        share = _warp(share, downsample, view)
        if tissue is not None:
            share *= tissue.crop(view, (0, 0), view.size)
        by_class = np.stack([_warp(prob, downsample, view) for prob in by_class])
        return cls(slide.slide_id, image, view, by_class, canvas.classes, share, canvas.resolution)


def write_heatmap(
    canvas: Canvas,
    outlines: Outlines,
    threshold: float,
    path: Path | str,
    *,
    tissue: TissueMap | None = None,
    areas: Sequence[ClassArea] = (),
    colour_map: ColourMap = "jet",
    max_side: int = MAX_SIDE,
) -> None:
    """Write the probability map as a picture with the outline of the tumour, a colour bar and a scale bar.

    Args:
        canvas: The probability map.
        outlines: Outlines of the tumour in working px of the canvas.
        threshold: Threshold of the tumour, marked on the colour bar.
        path: The PNG, whole or absent.
        tissue: Pixels outside it, which no figure counts, look like those that were not scored.
        areas: The tumour by class of cancer, for the legend; empty if there is one class.
        colour_map: Name of the colours if there is one class of cancer.
        max_side: Longest side of the map in the picture; a larger map is averaged down by a whole factor.
    """
    resolution = canvas.resolution
    factor = -(-max(canvas.shape) // max_side)
    by_class, share = shrink(canvas, factor)
    tables = make_class_tables(canvas.classes, colour_map, fades=True)
    image = paint_classes(by_class, canvas.classes, tables)
    scored = share > 0
    if tissue is not None:
        shown = reduce_resolution(resolution, factor)
        scored &= tissue.crop(shown, (0, 0), shown.size)
    image[~scored] = UNSCORED
    draw_outlines(image, outlines, 1 / factor)
    scale = _make_scale(resolution, factor)
    sheet, box = frame_image(
        image,
        title=str(canvas.attrs.get("slide_id", canvas.path.parent.name)),
        subtitle=f"Tumour probability, threshold {threshold:.3g}, {_describe_scale(resolution)}",
        bar=tables.swapaxes(0, 1),
        mark=threshold,
        scale=scale,
        keys=[*_list_classes(areas), _describe_outline(image, scale), LegendEntry("glass, or not scored", UNSCORED)],
    )
    write_png(sheet, path, box)


def write_overlay(
    overview: Overview,
    outlines: Outlines,
    threshold: float,
    path: Path | str,
    *,
    areas: Sequence[ClassArea] = (),
    colour_map: ColourMap = "jet",
) -> None:
    """Write the slide with its probability map as an overlay and the outline of the tumour.

    Only scored pixels are coloured. The opacity falls with the probability, so tissue of low probability keeps its own
    colours. The arguments are those of `write_heatmap`.
    """
    tables = make_class_tables(overview.classes, colour_map)
    painted = paint_classes(overview.by_class, overview.classes, tables)
    blended = _blend(overview.image, painted, _compute_opacity(overview.prob) * overview.share)
    draw_outlines(blended, outlines, overview.mapped.downsample / overview.resolution.downsample)
    scale = _make_scale(overview.resolution)
    glass = np.full((256, len(tables), 3), 255, np.uint8)
    opacity = _compute_opacity(np.linspace(0, 1, 256, dtype=np.float32)[:, None])
    sheet, box = frame_image(
        blended,
        title=overview.slide_id,
        subtitle=f"Tumour probability over the slide, threshold {threshold:.3g}, {_describe_scale(overview.mapped)}",
        bar=_blend(glass, tables.swapaxes(0, 1), opacity),
        mark=threshold,
        scale=scale,
        keys=[*_list_classes(areas), _describe_outline(blended, scale)],
    )
    write_png(sheet, path, box)


def write_attention(image: NDArray[np.uint8], view: Resolution, grade: Grade | None, slide_id: str, path: Path) -> None:
    """Draw the attention for the tiles into a copy of the whole slide, (h, w, 3) uint8 RGB, and write it as a PNG.

    `view` is the resolution of the image. Without a grade, an earlier picture is removed.
    """
    if grade is None:
        path.unlink(missing_ok=True)
        return
    record, attention = grade.record, grade.record.attention
    share = attention / (attention.sum() or 1)  # all is 0 if the attention of a patient is on other slides
    colours = COLOUR_MAPS["viridis"]
    fills = colorize(share[None] / (share.max() or 1), colours)[0]
    corners = floor_px(np.array([(tile.x, tile.y) for tile in record.tiles]) / view.downsample)
    side = max(1, round_px((record.tile_side_px or 0) / view.downsample))
    laid, thick = image.copy(), find_thickness(image)
    for (x, y), colour in zip(corners.tolist(), fills.tolist(), strict=True):
        tile = laid[y : y + side, x : x + side]
        tile[:] = _blend(tile, np.array(colour, np.uint8), np.full(tile.shape[:2], 0.5, np.float32))
        cv2.rectangle(laid, (x, y), (x + side - 1, y + side - 1), colour, thick)
    sheet, box = frame_image(
        laid,
        title=slide_id,
        subtitle=f"Attention for {len(share)} tiles, {record.describe()} predicted; "
        f"the most attended has {share.max():.1%}",
        bar=_blend(np.full((256, 1, 3), 255, np.uint8), colours[:, None], np.full((256, 1), 0.5, np.float32)),
        mark=None,
        scale=_make_scale(view),
        keys=[LegendEntry("a tile; the rest of the slide had no part in the grade", tuple(fills[share.argmax()]))],
        measures=("attention,", "of the most"),
    )
    write_png(sheet, path, box)


def write_slide(image: NDArray[np.uint8], folder: Path) -> None:
    """Write the whole slide as `slide.jpg` into a folder, from (h, w, 3) uint8 RGB."""
    with write_beside(folder / "slide.jpg") as partial:
        Image.fromarray(image).save(partial, format="JPEG", quality=85)


def write_view(overview: Overview, folder: Path, label: NDArray[np.bool_] | None = None) -> None:
    """Write `slide.jpg` and `map.png`, from which the page of a slide draws its map at any threshold.

    Both have the same size. The map has the values of `encode_map`, and blue is 255 if cancer is labelled: `label`,
    (h, w) bool in px of the overview.
    """
    planes = encode_map(overview.by_class, overview.share, overview.classes)
    if label is not None:
        planes[..., 2] = 255 * label
    write_slide(overview.image, folder)
    write_png(planes, folder / "map.png")


def _list_classes(areas: Sequence[ClassArea]) -> list[LegendEntry]:
    """Return the legend of the classes of cancer, with their areas and shares."""
    return [LegendEntry(describe_class_area(area), find_class_colour(area.patterns)) for area in areas]


def _compute_opacity(prob: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the opacity of the overlay: none up to a probability of 0.1, rising to 0.4 from 0.6 on."""
    return np.asarray(0.4 * np.clip((prob - 0.1) / 0.5, 0, 1), np.float32)


def _blend(below: NDArray[np.uint8], above: NDArray[np.uint8], opacity: NDArray[np.float32]) -> NDArray[np.uint8]:
    above = np.ascontiguousarray(np.broadcast_to(above, below.shape))
    alpha = np.ascontiguousarray(np.broadcast_to(opacity, below.shape[:2]))
    return np.asarray(cv2.blendLinear(np.ascontiguousarray(below), above, 1 - alpha, alpha), np.uint8)


def _warp(values: NDArray[np.float32], downsample: float, view: Resolution) -> NDArray[np.float32]:
    """Resample values at `downsample` level-0 px per px to the pixels of a view, bilinear."""
    ratio = view.downsample / downsample
    offset = 0.5 * ratio - 0.5  # between pixel centres
    back = np.array([[ratio, 0, offset], [0, ratio, offset]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(values, back, view.size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, np.float32)


def _describe_outline(image: NDArray[np.uint8], scale: Scale) -> LegendEntry:
    """Return the legend of the outline in an image, with the width of the gaps that it does not show."""
    gap = find_closed_gap(image)
    width = f"{gap} px of this picture" if scale.um is None else format_length(float(f"{gap * scale.um:.2g}"))
    return LegendEntry(f"counted as tumour; gaps up to {width} wide are not drawn", OUTLINE, line=True)


def reduce_resolution(resolution: Resolution, factor: int) -> Resolution:
    """Return the resolution of a map that `shrink` averaged over blocks of `factor` × `factor` px."""
    width, height = (-(-side // factor) for side in resolution.size)
    part = resolution.extent[0] / factor - (width - 1), resolution.extent[1] / factor - (height - 1)
    return replace(resolution, downsample=resolution.downsample * factor, width=width, height=height, part=part)


def _make_scale(resolution: Resolution, factor: int = 1) -> Scale:
    um = None if resolution.mpp is None else resolution.mpp[0] * factor
    return Scale(resolution.downsample * factor, um)


def _describe_scale(resolution: Resolution) -> str:
    """Return the working resolution in words."""
    if resolution.mpp is None:
        return f"mapped at {resolution.downsample:g} level-0 px per px, µm/px unknown"
    return f"mapped at {resolution.mpp[0]:.3g} µm/px"
