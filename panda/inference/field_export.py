"""Describe the fields of a slide, with the predicted regions in them, as a GeoJSON to correct in QuPath."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import shapely
from shapely.geometry.polygon import orient

from panda.inference.class_colours import TUMOR_COLOUR, Colour, find_class_colour
from panda.inference.field_grid import FieldBox
from panda.inference.geojson import ID_SPACE
from panda.wsi.annotations.file import Annotation
from panda.wsi.annotations.source import TO_CORRECT, is_field
from panda.wsi.classes import ClassSet
from panda.wsi.geometry import Resolution
from panda.wsi.levels import describe_frame
from panda.wsi.slide import Slide

FIELD_COLOUR: Colour = (0, 90, 255)


def outline_field(field: FieldBox, resolution: Resolution) -> tuple[float, float, float, float]:
    """Return the left, top, right and bottom edge of a field in level-0 px, as regions have edges of px."""
    ends = field.x, field.y, field.x + field.width, field.y + field.height
    left, top, right, bottom = (
        round(min(end, extent) * resolution.downsample, 3)
        for end, extent in zip(ends, 2 * resolution.extent, strict=True)
    )
    return left, top, right, bottom


def describe_fields(
    slide: Slide,
    resolution: Resolution,
    fields: Mapping[str, FieldBox],
    regions: Sequence[Annotation],
    classes: ClassSet,
) -> str:
    """Return a GeoJSON of fields, locked and of the class `TO_CORRECT`, and of the regions in them to be edited.

    A region is cut at the edges of a field and has one Polygon for each piece. Its class is that of the region, so the
    file can be read as a correction once its fields have the class `CORRECTED`.

    Args:
        slide: The slide.
        resolution: The resolution of the map.
        fields: The fields by their names.
        regions: The predicted regions in level-0 px of the slide.
        classes: The classes of the map, for colours.
    """
    regions = [region for region in regions if not is_field(region)]
    features = []
    for name, field in fields.items():
        box = shapely.box(*outline_field(field, resolution))
        features.append(_describe(slide.slide_id, name, TO_CORRECT, FIELD_COLOUR, box))
        features[-1]["properties"]["isLocked"] = True
        for number, (of_class, piece) in enumerate(_cut(regions, box), start=1):
            colour = find_class_colour(patterns) if (patterns := classes.patterns.get(of_class)) else TUMOR_COLOUR
            features.append(_describe(slide.slide_id, f"{name}, region {number}", of_class, colour, piece))
    collection = {"type": "FeatureCollection", "frame": describe_frame(slide.bounds), "features": features}
    return json.dumps(collection, ensure_ascii=False, allow_nan=False)


def _cut(regions: Sequence[Annotation], box: shapely.Polygon) -> Iterator[tuple[str, shapely.Polygon]]:
    """Yield the pieces of regions in a box, each with its class."""
    for region in regions:
        for piece in shapely.get_parts(shapely.intersection(region.polygon, box)).tolist():
            if isinstance(piece, shapely.Polygon) and piece.area > 0:
                yield region.name, piece


def _describe(slide_id: str, name: str, of_class: str, colour: Colour, area: shapely.Polygon) -> dict[str, Any]:
    """Return an area as a feature; the exterior is anticlockwise as written (RFC 7946, section 3.1.6)."""
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(ID_SPACE, f"{slide_id}/{name}")),
        "geometry": shapely.geometry.mapping(orient(area)),
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": of_class, "color": list(colour)},
        },
    }
