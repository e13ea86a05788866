"""What a mapped slide leaves for people and for other programs: pictures, GeoJSON, OME-TIFF."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from panda.files import whole_path, write_whole
from panda.inference.canvas import Canvas
from panda.inference.canvas_store import probability
from panda.inference.objects import cut_out
from panda.inference.pictures import JET, Key, Scale, framed, jet
from panda.inference.polygons import trace
from panda.wsi.geometry import Resolution, round_px
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

MAX_SIDE = 2048
"""Longest side of the image in a picture, in px."""

UNSCORED = (225, 225, 225)
OUTLINE = (0, 0, 0)
TUMOR_COLOUR = (200, 0, 0)
"""RGB of QuPath's own class "Tumor"."""

_TILE = 512
_FEATURES = uuid.UUID("7d2cf0a4-5a3e-4c7e-9d52-1d1b6f3a0c11")


def shrink(canvas: Canvas, factor: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Average a canvas over blocks of ``factor`` × ``factor`` px, band by band.

    Args:
        canvas: The probability map.
        factor: Side of a block in working px; blocks at the right and lower edge may be cut.

    Returns:
        (h, w) float32 mean probability of the scored pixels, 0 where there are none, and (h, w) float32 scored
        share of the block, both ``ceil(size / factor)``.
    """
    height, width = canvas.shape
    columns = np.arange(0, width, factor)
    size = -(-height // factor), len(columns)
    mean, share = np.zeros(size, np.float32), np.zeros(size, np.float32)
    band = factor * max(1, _TILE // factor)
    for y0, codes in canvas.code_bands(band):
        rows = np.arange(0, len(codes), factor)
        total = _block_sums(probability(codes), rows, columns)
        scored = _block_sums((codes > 0).astype(np.float32), rows, columns)
        pixels = np.outer(np.diff(rows, append=len(codes)), np.diff(columns, append=width))
        into = slice(y0 // factor, y0 // factor + len(rows))
        mean[into] = np.divide(total, scored, out=np.zeros_like(total), where=scored > 0)
        share[into] = scored / pixels
    return np.minimum(mean, 1), share


def _block_sums(
    values: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    return np.asarray(np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1))


def write_heatmap(canvas: Canvas, path: Path | str, *, max_side: int = MAX_SIDE) -> None:
    """Write the probability map as a picture in JET colours, with its colour bar and scale bar.

    Args:
        canvas: The probability map.
        path: The PNG, whole or absent.
        max_side: Longest side of the map in it; larger ones are averaged down by a whole factor.
    """
    resolution = canvas.resolution
    factor = -(-max(canvas.shape) // max_side)
    prob, share = shrink(canvas, factor)
    image = jet(prob)
    image[share == 0] = UNSCORED
    sheet = framed(
        image,
        title=str(canvas.attrs.get("slide_id", canvas.path.parent.name)),
        subtitle=f"Tumour probability, {_pixel_size(resolution)}",
        bar=JET,
        mark=None,
        scale=_scale(resolution, factor),
        keys=[Key("not scored", UNSCORED)],
    )
    with whole_path(path) as partial:
        sheet.save(partial, format="PNG")


def write_overlay(
    slide: Slide,
    canvas: Canvas,
    mask_clean: NDArray[np.bool_],
    threshold: float,
    path: Path | str,
    *,
    tissue: TissueMap | None = None,
    max_side: int = MAX_SIDE,
) -> None:
    """Write the slide with the probability over it and the tumour's outline.

    The colours fade with the probability: where it is low, the tissue is seen as it is.

    Args:
        slide: The slide.
        canvas: Its probability map.
        mask_clean: (H, W) bool in working px of the canvas; its outline is drawn.
        threshold: That ``mask_clean`` was made with; marked at the colour bar.
        path: The PNG, whole or absent.
        tissue: Where given, colours are laid on tissue only.
        max_side: Longest side of the slide in it.

    Raises:
        SlideError: The slide cannot be read.
    """
    image, view = slide.overview(max_side)
    resolution = canvas.resolution
    factor = max(1, round_px(view.downsample / resolution.downsample))
    prob, share = shrink(canvas, factor)
    prob = _warp(prob, factor * resolution.downsample, view)
    fade = _opacity(prob) * _warp(share, factor * resolution.downsample, view)
    if tissue is not None:
        fade *= tissue.crop(view, (0, 0), view.size)
    blended = _blend(image, jet(prob), fade)
    _draw_outline(blended, mask_clean, resolution.downsample / view.downsample)
    glass = np.full((256, 1, 3), 255, np.uint8)
    bar = _blend(glass, JET[:, None], _opacity(np.linspace(0, 1, 256, dtype=np.float32)[:, None]))
    sheet = framed(
        blended,
        title=slide.slide_id,
        subtitle=f"Tumour probability over the slide, threshold {threshold:.3g}, {_pixel_size(resolution)}",
        bar=bar[:, 0],
        mark=threshold,
        scale=_scale(view, 1),
        keys=[Key("counted as tumour: small objects removed, small holes filled", OUTLINE, line=True)],
    )
    with whole_path(path) as partial:
        sheet.save(partial, format="PNG")


def _opacity(prob: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much of the colour is laid over the tissue: none up to 0.1, rising to 0.4 at 0.6 and beyond."""
    return np.asarray(0.4 * np.clip((prob - 0.1) / 0.5, 0, 1), np.float32)


def _blend(below: NDArray[np.uint8], above: NDArray[np.uint8], opacity: NDArray[np.float32]) -> NDArray[np.uint8]:
    alpha = opacity[..., None]
    return np.asarray(np.rint(below * (1 - alpha) + above * alpha), np.uint8)


def _warp(values: NDArray[np.float32], downsample: float, view: Resolution) -> NDArray[np.float32]:
    """Bring values at ``downsample`` level-0 px per px onto the pixels of a view, bilinear."""
    ratio = view.downsample / downsample
    offset = 0.5 * ratio - 0.5  # between pixel centres
    back = np.array([[ratio, 0, offset], [0, ratio, offset]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(values, back, view.size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, np.float32)


def _draw_outline(image: NDArray[np.uint8], mask: NDArray[np.bool_], scale: float) -> None:
    """Draw the mask's outline into the image: a dark line on a light one, seen on any colour."""
    rings = [ring for polygon in trace(mask) for ring in polygon]
    shift = 4  # binary digits of a fraction of a pixel
    points = [np.rint((ring * scale - 0.5) * 2**shift).astype(np.int32) for ring in rings]
    thick = max(1, round_px(max(image.shape) / 1200))
    for colour, thickness in (((255, 255, 255), 2 * thick + 1), (OUTLINE, thick)):
        cv2.polylines(image, points, True, colour, thickness, cv2.LINE_AA, shift)


def _scale(resolution: Resolution, factor: int) -> Scale:
    um = None if resolution.mpp is None else resolution.mpp[0] * factor
    return Scale(resolution.downsample * factor, um)


def _pixel_size(resolution: Resolution) -> str:
    """The working resolution in words."""
    if resolution.mpp is None:
        return f"mapped at {resolution.downsample:g} level-0 px per px, µm/px unknown"
    return f"mapped at {resolution.mpp[0]:.3g} µm/px"


def write_geojson(quantification: Mapping[str, Any], slide: Slide, resolution: Resolution, path: Path | str) -> None:
    """Write the tumour regions as a GeoJSON that QuPath (0.4 and later) opens as annotations.

    Polygons lie in level-0 px, run along the edges of the working pixels and have holes, so that the area of a
    feature is its region's. A region whose pixels touch only at corners becomes a MultiPolygon.

    Args:
        quantification: From `slide_quantification`; its ``regions`` and ``mask_clean`` are used.
        slide: The slide; gives the annotations lasting ids.
        resolution: Of ``mask_clean``.
        path: The file, whole or absent.
    """
    mask, connectivity = quantification["mask_clean"], quantification["settings"]["connectivity"]
    features = []
    for region in quantification["regions"]:
        left, top = region["box_px"][:2]
        polygons = []
        for rings in trace(cut_out(mask, region["box_px"], region["start_px"], connectivity)):
            corners = [np.round((ring + np.array([left, top])) * resolution.downsample, 3) for ring in rings]
            polygons.append([np.concatenate([ring, ring[:1]]).tolist() for ring in corners])
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_FEATURES, f"{slide.slide_id}/{region['id']}")),
                "geometry": (
                    {"type": "Polygon", "coordinates": polygons[0]}
                    if len(polygons) == 1
                    else {"type": "MultiPolygon", "coordinates": polygons}
                ),
                "properties": {
                    "objectType": "annotation",
                    "name": f"Tumor {region['id']}",
                    "classification": {"name": "Tumor", "color": list(TUMOR_COLOUR)},
                    "measurements": _measurements(region),
                },
            }
        )
    collection = {"type": "FeatureCollection", "features": features}
    write_whole(path, json.dumps(collection, allow_nan=False, separators=(",", ":"), ensure_ascii=False))


def _measurements(region: Mapping[str, Any]) -> dict[str, float]:
    """A region's figures under the names that QuPath lists; area and diameter are left out where µm/px is unknown."""
    area, length = region["area_mm2"], region["length_mm"]
    known = {} if area is None else {"Area µm^2": area * 1e6, "Max diameter µm": length * 1e3}
    return known | {
        "Area working px": region["area_px"],
        "Mean tumor probability": region["mean_probability"],
        "Max tumor probability": region["max_probability"],
    }


def write_ome_tiff(canvas: Canvas, slide: Slide, path: Path | str) -> None:
    """Write the probability map as a pyramidal OME-TIFF of uint8: ``round(255 × probability)``.

    Levels halve until one tile holds the whole slide, and lie in SubIFDs as OME asks, where QuPath, Bio-Formats
    and tifffile find them (OpenSlide opens level 0 only). Not scored and probability 0 are both 0. The physical
    pixel size is left out where µm/px is unknown. The map goes through in bands; a quarter of it, as uint8, is
    held for the next level.

    Args:
        canvas: The probability map.
        slide: The slide; gives the image its name.
        path: The file, whole or absent.
    """
    resolution = canvas.resolution
    height, width = canvas.shape
    levels = 1
    while max(height, width) > _TILE * 2 ** (levels - 1):
        levels += 1
    metadata: dict[str, Any] = {
        "axes": "YX",
        "Name": f"{slide.slide_id} tumour probability x 255",
        "Channel": {"Name": ["tumour probability x 255"]},
    }
    if resolution.mpp is not None:
        for axis, mpp in zip("XY", resolution.mpp, strict=True):
            metadata |= {f"PhysicalSize{axis}": mpp, f"PhysicalSize{axis}Unit": "µm"}
    below = np.zeros((-(-height // 2), -(-width // 2)), np.uint8)
    with whole_path(path) as partial, tifffile.TiffWriter(partial, ome=True, bigtiff=True) as tif:
        tif.write(
            _base_tiles(canvas, below),
            shape=(height, width),
            dtype=np.uint8,
            subifds=levels - 1,
            metadata=metadata,
            **_tiff_options(resolution, 1),
        )
        for number in range(1, levels):
            tif.write(below, subfiletype=1, metadata=None, **_tiff_options(resolution, 2**number))
            below = _halved(below)


def _tiff_options(resolution: Resolution, factor: int) -> dict[str, Any]:
    options: dict[str, Any] = {"tile": (_TILE, _TILE), "photometric": "minisblack", "compression": "adobe_deflate"}
    if resolution.mpp is not None:
        per_cm = [1e4 / (mpp * factor) for mpp in resolution.mpp]
        options |= {"resolution": tuple(per_cm), "resolutionunit": "CENTIMETER"}
    return options


def _base_tiles(canvas: Canvas, below: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of the full size row by row, and fill in the next level on the way."""
    width = canvas.shape[1]
    for y0, prob in canvas.bands(_TILE):
        band = np.rint(prob * 255).astype(np.uint8)
        half = _halved(band)
        below[y0 // 2 : y0 // 2 + len(half)] = half
        for x0 in range(0, width, _TILE):
            tile = np.zeros((_TILE, _TILE), np.uint8)
            part = band[:, x0 : x0 + _TILE]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def _halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average 2 × 2 px; an odd last row or column is doubled first."""
    height, width = image.shape
    even = np.pad(image, ((0, height % 2), (0, width % 2)), mode="edge").astype(np.uint16)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)
