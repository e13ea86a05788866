"""What the page of a slide moves in: the slide, its map, and the tumour at any threshold."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panda.inference.legends import COLOUR_MAPS
from panda.inference.quantify import THRESHOLDS
from panda.report.run_folder import mapping, number, read_json, sequence

MOST_REGIONS = 300
"""Regions, the largest first, that a page lists and outlines; more would weigh too much for a browser."""


def read_viewer(slide_dir: Path, quantification: dict[str, Any]) -> dict[str, Any] | None:
    """Gather what the viewer of a slide's page shows.

    Args:
        slide_dir: The slide's folder, with `slide.jpg` and, of a slide that was mapped, `map.png`.
        quantification: Content of its `quantification.json`.

    Returns:
        `slide` and `view`, the data that the script reads; of a slide that was mapped also `map`, `labelled`,
        `mm2` (whether areas are known) and `curve` (points of an SVG 200 × 40: tumour per cent against threshold).
        `slide` and `map` are data URIs. None where the folder lacks a part of it.
    """
    level0, path = number(quantification.get("view_downsample")), slide_dir / "slide.jpg"
    if not path.is_file() or not level0:
        return None
    mapped = _mapped(slide_dir, quantification)
    tiles = _tiles(mapping(quantification.get("grade")), level0)
    if not mapped and not tiles:
        return None
    with Image.open(path) as picture:
        width, height = picture.size
    mpp = sequence(quantification.get("mpp"))
    um = number(mpp[0]) if mpp else None
    view = {
        "width": width,
        "height": height,
        "um": None if um is None else um * level0,
        "level0": level0,
        "tiles": tiles,
        "regions": _regions(read_json(slide_dir / "regions.geojson")[0], level0) if mapped else [],
    }
    whole = {"slide": _uri(path, "jpeg"), "map": "", "labelled": False} | mapped
    return whole | {"view": view | mapped.get("view", {})}


def _mapped(slide_dir: Path, quantification: dict[str, Any]) -> dict[str, Any]:
    """What there is beside the slide where it was mapped; empty where it was not, or a part is missing."""
    counts = [number(count) for count in sequence(quantification.get("px_at_threshold"))]
    tissue, area = number(quantification.get("tissue_px")), number(quantification.get("tissue_mm2"))
    path = slide_dir / "map.png"
    if not path.is_file() or len(counts) != len(THRESHOLDS) or None in counts or tissue is None:
        return {}
    highest = max(tissue, 1)
    return {
        "map": _uri(path, "png"),
        "labelled": number(mapping(quantification.get("against_label")).get("dice")) is not None,
        "mm2": area is not None,
        "curve": " ".join(f"{k / 5:g},{40 - 38 * (count or 0) / highest:.1f}" for k, count in enumerate(counts)),
        "view": {
            "threshold": number(quantification.get("threshold")),
            "counts": counts,
            "tissue": tissue,
            "mm2": None if area is None or not tissue else area / tissue,
            "colours": {name: colours.tobytes().hex() for name, colours in COLOUR_MAPS.items()},
        },
    }


def _uri(path: Path, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _regions(collection: dict[str, Any], level0: float) -> list[dict[str, Any]]:
    """The outlines of the largest regions in px of the view, to half a px of it."""
    regions = []
    for rank, feature in enumerate(sequence(collection.get("features"))[:MOST_REGIONS], start=1):
        geometry = mapping(mapping(feature).get("geometry"))
        polygons = sequence(geometry.get("coordinates"))
        rings = [
            ring for polygon in ([polygons] if geometry.get("type") == "Polygon" else polygons) for ring in polygon
        ]
        corners = [np.asarray(ring, np.float32) / np.float32(level0) for ring in rings]
        if not corners:
            continue
        outer = np.concatenate(corners)
        regions.append(
            {
                "id": rank,
                "box": [round(float(v), 1) for v in (*outer.min(axis=0), *outer.max(axis=0))],
                "rings": [_simpler(ring) for ring in corners],
            }
        )
    return regions


def _simpler(ring: NDArray[np.float32]) -> list[float]:
    kept = cv2.approxPolyDP(ring[:, None], 0.5, True)[:, 0]
    return [round(float(value), 1) for value in kept.reshape(-1)]


def _tiles(grade: dict[str, Any], level0: float) -> Sequence[list[float]]:
    """The tiles that the grading network looked at: left, top and side in px of the view, attention over the most."""
    tiles, side = [mapping(tile) for tile in sequence(grade.get("tiles"))], number(grade.get("tile_side_px"))
    most = max((number(tile.get("attention")) or 0.0 for tile in tiles), default=0.0)
    if side is None or most <= 0:
        return []
    places = [[number(tile.get(key)) or 0.0 for key in ("x", "y", "attention")] for tile in tiles]
    return [[round(v, 2) for v in (x / level0, y / level0, side / level0, weight / most)] for x, y, weight in places]
