"""Read GeoJSON as QuPath exports it: a FeatureCollection, a list of features, or one feature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panda.errors import MaskError
from panda.wsi.annotations.file import AnnotationFile, Ring

_OTHER_OBJECTS = ("detection", "cell", "tile", "tmacore", "tma_core", "root")
"""Values of `objectType` that a program makes, and no person draws. QuPath 0.2 has `PathCellObject` in `id`."""
_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


def parse_geojson(path: Path) -> AnnotationFile:
    """Read a GeoJSON of QuPath, 0.2 or later.

    Annotations count if they have a class: `properties.classification.name`, `names` (joined with `": "`, as QuPath
    shows a derived class), or a text. Locked ones count too, and the ones inside `childObjects`. Detections, cells,
    tiles, points and lines are ignored. An ellipse has the corners that QuPath wrote. A smaller area is above a
    larger one, of two equal ones the later.

    Raises:
        MaskError: If the file cannot be read, or has no features.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MaskError(f"{path}: the annotations cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise MaskError(f"{path}: is no JSON ({error}): export it again, in QuPath File > Export objects") from error
    is_own = isinstance(content, dict) and "frame" in content
    file = AnnotationFile(path, "PANDA" if is_own else "QuPath", "slide")
    todo = _list_features(path, content)
    while todo:
        where, feature = todo.pop()
        todo += _add_feature(file, where, feature)[::-1]
    file.annotations.sort(key=lambda annotation: -annotation.polygon.area)
    return file


def _list_features(path: Path, content: Any) -> list[tuple[str, Any]]:
    """Return the features of a file, the first one last, each with its place."""
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "Feature":
        return [("feature", content)]
    features = content.get("features") if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise MaskError(
            f"{path}: has no list of features (its type is {kind!r}): export it again, in QuPath File > Export objects "
            "as GeoJSON"
        )
    return [(f"features[{number}]", feature) for number, feature in enumerate(features)][::-1]


def _add_feature(file: AnnotationFile, where: str, feature: Any) -> list[tuple[str, Any]]:
    """Add a feature, and return the objects inside it."""
    properties = feature.get("properties") or {} if isinstance(feature, dict) else None
    if not isinstance(properties, dict):
        file.faults.append(f"{where} is {str(feature)[:80]}: give a feature with properties, or delete it")
        return []
    children: Any = next((properties[key] for key in ("childObjects", "children") if key in properties), [])
    children = children if isinstance(children, list) else []
    inner = [(f"{where}.childObjects[{number}]", child) for number, child in enumerate(children)]
    if properties.get("name"):
        where = f"{where} {str(properties['name'])[:60]!r}"
    if (kind := _find_object_type(feature, properties)) in _OTHER_OBJECTS:
        file.ignore(f"of type {kind}")
        return inner
    geometry = feature.get("geometry") or {}
    shape = geometry.get("type") if isinstance(geometry, dict) else None
    if shape in _NO_AREA or (not geometry and inner):
        file.ignore("points or lines")
    elif shape not in ("Polygon", "MultiPolygon"):
        given = str(feature.get("geometry") if shape is None else shape)[:80]
        file.faults.append(f"{where}: its geometry is {given}: give a Polygon or a MultiPolygon, or delete it")
    else:
        coordinates = geometry.get("coordinates")
        polygons = _read_polygons(file, where, [coordinates] if shape == "Polygon" else coordinates)
        if polygons is not None:
            file.add(where, _read_class(file, where, properties), polygons)
    return inner


def _find_object_type(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    """Return the type of an object in lower case, `annotation` if it has none."""
    for key in ("objectType", "object_type", "type"):
        if isinstance(properties.get(key), str):
            return str(properties[key]).lower()
    legacy = str(feature.get("id"))
    if legacy.startswith("Path") and legacy.endswith("Object"):
        return legacy.removeprefix("Path").removesuffix("Object").lower()
    return "tmacore" if legacy == "TMACoreObject" else "annotation"


def _read_class(file: AnnotationFile, where: str, properties: dict[str, Any]) -> str | None:
    """Return the class of an object; None if it has none."""
    found = properties.get("classification")
    if isinstance(found, dict):
        names = found.get("names")
        found = ": ".join(map(str, names)) if isinstance(names, list) else found.get("name")
    if found is not None and not isinstance(found, str):
        file.faults.append(f"{where}: its classification is {str(found)[:80]}: give a name, or delete the area")
        return None
    return found


def _read_polygons(file: AnnotationFile, where: str, polygons: Any) -> list[list[Ring]] | None:
    """Return the rings of each polygon; None after a fault."""
    if not (
        isinstance(polygons, list)
        and all(isinstance(polygon, list) and polygon for polygon in polygons)
        and all(isinstance(ring, list) for polygon in polygons for ring in polygon)
    ):
        file.faults.append(f"{where}: its coordinates are {str(polygons)[:80]}: give lists of rings, or delete it")
        return None
    found = [[file.read_corners(where, ring) for ring in polygon] for polygon in polygons]
    complete = [[ring for ring in polygon if ring is not None] for polygon in found]
    return complete if list(map(len, complete)) == list(map(len, found)) else None
