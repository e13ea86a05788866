"""Write the regions of a mapped slide as GeoJSON."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from panda.files import write_beside
from panda.inference.class_colours import TUMOR_COLOUR, Colour, find_class_colour
from panda.inference.polygons import Polygon, Ring, trace
from panda.inference.quantify import Quantification
from panda.inference.regions import Px, Region, convert_px
from panda.wsi.geometry import Resolution
from panda.wsi.levels import describe_frame
from panda.wsi.runs import Runs, connect_runs
from panda.wsi.slide import Slide

Features = Literal["regions", "pieces"]
"""What a feature is: a region, with all its pieces; or a piece, which is always a Polygon."""

ID_SPACE = uuid.UUID("7d2cf0a4-5a3e-4c7e-9d52-1d1b6f3a0c11")
"""Namespace of the ids of features and maps."""


def write_geojson(
    quantification: Quantification,
    slide: Slide,
    resolution: Resolution,
    path: Path | str,
    features: Features = "regions",
) -> None:
    """Write the tumour regions as a GeoJSON that QuPath (0.4 and later) opens as annotations.

    The collection's member `frame` says what its level-0 px are. Polygons run along the edges of the working pixels and
    of the slide and have holes, so a feature has the area of its region. Exterior rings are anticlockwise in the axes
    as written, x to the right and y upwards (RFC 7946, section 3.1.6); with y downwards they look clockwise.

    A region whose pixels touch only at corners has several pieces. It becomes a MultiPolygon, or one Polygon for each
    piece, which readers without MultiPolygons need. A slide's ids are always the same. With several classes of cancer,
    a region is one feature for each of its classes.
    """
    # A foreign member (RFC 7946, section 6.1), which QuPath ignores.
    frame = _write_json(describe_frame(slide.bounds))
    writer = _FeatureWriter(slide, resolution)
    with write_beside(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(f'{{"type":"FeatureCollection","frame":{frame},"features":[')
        separator = ""
        for part in _list_parts(quantification):
            for own in _split(part, resolution) if features == "pieces" else (part,):
                file.write(separator + writer.describe(own))
                separator = ","
        file.write("]}")


@dataclass(frozen=True)
class _Part:
    """The px of one class in a region.

    `mark` is the end of its id, `name` the class, and `polygons` are in working px.
    """

    mark: str
    name: str
    colour: Colour
    region: Region
    polygons: Sequence[Polygon]
    measurements: dict[str, float]


def _list_parts(quantification: Quantification) -> Iterator[_Part]:
    """Yield the parts of each region in turn: one for each class, or the whole region if there is one class."""
    # By the first px of a region: their order differs if px at the edge count in part.
    if not quantification.classes:
        polygons = quantification.outlines.regions
        for region in quantification.regions:
            yield _Part(
                f"{region.id}", "Tumor", TUMOR_COLOUR, region, polygons[region.start_px], _list_measurements(region)
            )
        return
    traced = _trace_classes(quantification)
    for region in quantification.regions:
        for held, polygons, area in zip(quantification.classes, traced, region.class_px, strict=True):
            if area:
                mark, colour = f"{region.id}/{held.name}", find_class_colour(held.patterns)
                measurements = _list_part_measurements(region, area)
                yield _Part(mark, held.name, colour, region, polygons[region.start_px], measurements)


def _trace_classes(quantification: Quantification) -> list[dict[tuple[int, int], list[Polygon]]]:
    """Return for each class its polygons in each region, by `Region.start_px`."""
    connectivity = quantification.settings.connectivity
    objects = connect_runs(Runs.from_mask(quantification.mask_clean), connectivity)
    starts = objects.runs.number_places(objects.runs.left)
    first = [(int(x), int(y)) for x, y in objects.start]
    found = []
    for number in range(1, len(quantification.classes) + 1):
        polygons: defaultdict[tuple[int, int], list[Polygon]] = defaultdict(list)
        for (x, y), pieces in trace(quantification.class_map, connectivity, number).regions.items():
            run = np.searchsorted(starts, y * (objects.runs.shape[1] + 1) + x, side="right") - 1
            polygons[first[objects.number[run]]] += pieces
        found.append(dict(polygons))
    return found


def _split(part: _Part, resolution: Resolution) -> Iterator[_Part]:
    """Yield the pieces of a part, each with its own area, so that no figure is counted twice."""
    for number, polygon in enumerate(part.polygons, start=1):
        area = convert_px(sum(_measure_area(ring, resolution) for ring in polygon))
        measurements = _list_part_measurements(part.region, area)
        yield replace(part, mark=f"{part.mark}/{number}", polygons=[polygon], measurements=measurements)


def _measure_area(ring: Ring, resolution: Resolution) -> float:
    """Return the area inside a ring in working px, cut at the edge of the slide; negative for a hole."""
    x, y = np.minimum(ring, resolution.extent).T
    return float(np.sum(np.roll(x, -1) * y - x * np.roll(y, -1)) / 2)


class _FeatureWriter:
    """Writes parts as features. Corners are many and lists of them are slow, so they become text without lists."""

    def __init__(self, slide: Slide, resolution: Resolution) -> None:
        self._slide_id = slide.slide_id
        self._x, self._y = (
            _list_numbers(np.minimum(np.arange(side + 1), extent) * resolution.downsample)
            for side, extent in zip(resolution.size, resolution.extent, strict=True)
        )

    def describe(self, part: _Part) -> str:
        """Return the feature of a part as JSON."""
        polygons = [f"[{','.join(map(self._describe_ring, polygon))}]" for polygon in part.polygons]
        several = len(polygons) > 1
        kind, coordinates = ("MultiPolygon", f"[{','.join(polygons)}]") if several else ("Polygon", polygons[0])
        mark = _write_json(str(uuid.uuid5(ID_SPACE, f"{self._slide_id}/{part.mark}")))
        properties = {
            "objectType": "annotation",
            "name": f"{part.name} {part.region.id}",
            "classification": {"name": part.name, "color": list(part.colour)},
            "measurements": part.measurements,
        }
        geometry = f'{{"type":"{kind}","coordinates":{coordinates}}}'
        return f'{{"type":"Feature","id":{mark},"geometry":{geometry},"properties":{_write_json(properties)}}}'

    def _describe_ring(self, ring: Ring) -> str:
        """Return a ring from its first corner, in the opposite direction, which has the mask at its right."""
        x, y = self._x, self._y
        corners = [f"[{x[column]},{y[row]}]" for column, row in zip(*ring.T.tolist(), strict=True)]
        return f"[{','.join([corners[0], *corners[::-1]])}]"


def _list_numbers(values: NDArray[np.floating[Any]]) -> list[str]:
    """Return numbers as JSON has them, rounded to 3 digits."""
    return [repr(value) for value in np.round(values, 3).tolist()]


def _write_json(content: Any) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def _list_measurements(region: Region) -> dict[str, float]:
    """Return the figures of a region under the names that QuPath lists; area and diameter need µm/px."""
    known = {}
    if region.area_mm2 is not None and region.length_mm is not None:
        known = {"Area µm^2": region.area_mm2 * 1e6, "Max diameter µm": region.length_mm * 1e3}
    return known | {
        "Area working px": region.area_px,
        "Mean tumor probability": region.mean_probability,
        "Max tumor probability": region.max_probability,
    }


def _list_part_measurements(region: Region, area: Px) -> dict[str, float]:
    """Return the figures of a part of a region, and the number of the region."""
    known = {} if region.area_mm2 is None else {"Area µm^2": region.area_mm2 * 1e6 * area / region.area_px}
    return known | {
        "Area working px": area,
        "Region": region.id,
        "% of region": 100 * area / region.area_px,
        "Mean tumor probability of region": region.mean_probability,
    }
