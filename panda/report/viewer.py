"""Gather the data of the viewer on a slide's page: the slide, its map, and the tumour at any threshold."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field, TypeAdapter

from panda.inference.class_colours import find_class_colour, make_class_table
from panda.inference.grade import GradeRecord
from panda.inference.legends import COLOUR_MAPS
from panda.inference.quantify import THRESHOLDS
from panda.inference.slide_result import SlideFacts, SlideResult
from panda.report.run_folder import make_data_uri
from panda.stored import read_model

MOST_REGIONS = 300
"""Number of largest regions that a page lists and outlines; more would be too many for a browser."""

BY_CLASS = "by pattern"
"""Name of the colours by class of cancer."""

Coordinate = Annotated[float, Field(ge=-(2**31), le=2**31)]
Ring = Annotated[list[tuple[Coordinate, Coordinate]], Field(min_length=4)]
Rings = Annotated[list[Ring], Field(min_length=1)]


class _Polygon(BaseModel):
    type: Literal["Polygon"]
    coordinates: Rings

    @property
    def rings(self) -> list[list[tuple[float, float]]]:
        return self.coordinates


class _MultiPolygon(BaseModel):
    type: Literal["MultiPolygon"]
    coordinates: Annotated[list[Rings], Field(min_length=1)]

    @property
    def rings(self) -> list[list[tuple[float, float]]]:
        return [ring for polygon in self.coordinates for ring in polygon]


class _Feature(BaseModel):
    geometry: Annotated[_Polygon | _MultiPolygon, Field(discriminator="type")]
    properties: Any = None

    def find_region(self, rank: int) -> int:
        """Return the number of the region that the feature is part of, or its rank if it is a region of its own."""
        try:
            return int(self.properties["measurements"]["Region"])
        except (TypeError, KeyError, ValueError):
            return rank


class _Regions(BaseModel):
    """The parts of `regions.geojson` that the viewer shows; other programs may add their own."""

    type: Literal["FeatureCollection"]
    features: list[_Feature]


_REGIONS = TypeAdapter(_Regions)
_REMEDY = "it was edited or is damaged: map the slide again"


def read_viewer(slide_dir: Path, facts: SlideFacts) -> dict[str, Any] | None:
    """Return the data that the viewer of a slide's page shows; None if the folder lacks a part of it.

    These are `slide`, a data URI, and `view`, the data that the script reads. A slide that was mapped also has `map` (a
    data URI), `labelled`, `mm2` (whether areas are known) and `curve`: points of an SVG 200 × 40, tumour per cent by
    threshold.

    Raises:
        PandaError: If `regions.geojson` of a slide that was mapped does not hold outlines.
    """
    level0, path = facts.view_downsample, slide_dir / "slide.jpg"
    if not path.is_file() or not level0:
        return None
    mapped = _read_map(slide_dir, facts) if isinstance(facts, SlideResult) else {}
    tiles = place_tiles(facts.grade, level0) if facts.grade else []
    if not mapped and not tiles:
        return None
    with Image.open(path) as picture:
        width, height = picture.size
    view = {
        "width": width,
        "height": height,
        "um": facts.mpp[0] * level0 if facts.mpp else None,
        "level0": level0,
        "tiles": tiles,
        "regions": _read_regions(slide_dir / "regions.geojson", level0) if mapped else [],
    }
    whole = {"slide": make_data_uri(path.read_bytes(), "jpeg"), "map": "", "labelled": False} | mapped
    return whole | {"view": view | mapped.get("view", {})}


def _read_map(slide_dir: Path, result: SlideResult) -> dict[str, Any]:
    """Return the parts of a slide that was mapped; empty if one is missing."""
    counts, area, path = result.px_at_threshold, result.tissue_mm2, slide_dir / "map.png"
    if not path.is_file() or len(counts) != len(THRESHOLDS):
        return {}
    highest = max(result.tissue_px, 1)
    return {
        "map": make_data_uri(path.read_bytes(), "png"),
        "labelled": result.against_label is not None and result.against_label.dice is not None,
        "mm2": area is not None,
        "curve": " ".join(f"{k / 5:g},{40 - 38 * count / highest:.1f}" for k, count in enumerate(counts)),
        "view": describe_map(result),
    }


def describe_map(result: SlideResult) -> dict[str, Any]:
    """Return what a script needs to colour a map at any threshold, and to give its areas there."""
    area = result.tissue_mm2
    return {
        "threshold": result.threshold,
        "counts": result.px_at_threshold,
        "tissue": result.tissue_px,
        "mm2": None if area is None or not result.tissue_px else area / result.tissue_px,
        "colours": _list_colours(result),
        "classes": [
            {
                "name": own.name,
                "colour": "#{:02x}{:02x}{:02x}".format(*find_class_colour(own.patterns)),
                "counts": own.px_at_threshold,
            }
            for own in result.classes
        ],
    }


def _list_colours(result: SlideResult) -> dict[str, list[str]]:
    """Return the colours of 256 probabilities as hexadecimal digits, by name: of all tumour, or of each class."""
    named: dict[str, list[str]] = {name: [colours.tobytes().hex()] for name, colours in COLOUR_MAPS.items()}
    tables = [make_class_table(find_class_colour(area.patterns), fades=True) for area in result.classes]
    return ({BY_CLASS: [table.tobytes().hex() for table in tables]} if tables else {}) | named


def _read_regions(path: Path, level0: float) -> list[dict[str, Any]]:
    """Return the outlines of the largest regions in px of the view, exact to half a px."""
    found: defaultdict[int, list[list[tuple[float, float]]]] = defaultdict(list)
    for rank, feature in enumerate(read_model(path, _REGIONS, _REMEDY).features, start=1):
        found[feature.find_region(rank)] += feature.geometry.rings
    regions = []
    for number, rings in islice(found.items(), MOST_REGIONS):
        corners = [np.array(ring, np.float32) / np.float32(level0) for ring in rings]
        outer = np.concatenate(corners)
        regions.append(
            {
                "id": number,
                "box": [round(float(v), 1) for v in (*outer.min(axis=0), *outer.max(axis=0))],
                "rings": [_simplify(ring) for ring in corners],
            }
        )
    return regions


def _simplify(ring: NDArray[np.float32]) -> list[float]:
    kept = cv2.approxPolyDP(ring[:, None], 0.5, True)[:, 0]
    tenths: list[float] = np.round(kept.astype(np.float64), 1).ravel().tolist()
    return tenths


def place_tiles(grade: GradeRecord, level0: float) -> list[list[float]]:
    """Return left, top and side of each graded tile in px of the view, and its attention over the highest."""
    most, side = max((tile.attention for tile in grade.tiles), default=0.0), grade.tile_side_px
    if side is None or most <= 0:
        return []
    places = [(tile.x / level0, tile.y / level0, side / level0, tile.attention / most) for tile in grade.tiles]
    return [[round(value, 2) for value in place] for place in places]
