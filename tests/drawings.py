"""Write annotation files as QuPath, ASAP, ImageScope and HALO write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Corners = Sequence[tuple[float, float]]


def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """Return the corners of a rectangle, not closed."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def feature(of_class: str | None, *rings: Corners, **properties: Any) -> dict[str, Any]:
    """Return a polygon with holes as QuPath 0.4 and later write it; `properties` come on top."""
    own: dict[str, Any] = {"objectType": "annotation"}
    if of_class is not None:
        own["classification"] = {"name": of_class, "color": [200, 0, 0]}
    closed = [[list(corner) for corner in [*ring, ring[0]]] for ring in rings]
    geometry = {"type": "Polygon", "coordinates": closed}
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": own | properties}


def write_json(path: Path, features: Sequence[dict[str, Any]]) -> Path:
    """Write a FeatureCollection."""
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


def write_asap(path: Path, groups: Sequence[str], annotations: Sequence[tuple[str, str, Corners]]) -> Path:
    """Write an XML of ASAP; annotations are type, group and corners."""
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "\t<Annotations>"]
    for number, (kind, group, corners) in enumerate(annotations):
        lines.append(f'<Annotation Name="Annotation {number}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">')
        at = [f'<Coordinate Order="{order}" X="{x}" Y="{y}" />' for order, (x, y) in enumerate(corners)]
        lines += ["<Coordinates>", *reversed(at), "</Coordinates></Annotation>"]
    lines += ["\t</Annotations>", "\t<AnnotationGroups>"]
    lines += [f'<Group Name="{name}" PartOfGroup="None" Color="#00ff00"><Attributes /></Group>' for name in groups]
    path.write_text("\n".join([*lines, "</AnnotationGroups>", "</ASAP_Annotations>"]), encoding="utf-8")
    return path


def write_halo(path: Path, layers: Sequence[tuple[str, Sequence[tuple[str, bool, Corners]]]]) -> Path:
    """Write a file of HALO; layers are a name and regions of type, whether it is a hole, and corners."""
    lines = ["<Annotations>"]
    for name, regions in layers:
        lines.append(f'<Annotation LineColor="65280" Name="{name}" Visible="True"><Regions>')
        for kind, is_hole, corners in regions:
            at = "".join(f'<V X="{x}" Y="{y}" />' for x, y in corners)
            lines.append(f'<Region Type="{kind}" HasEndcaps="0" NegativeROA="{int(is_hole)}"><Vertices>{at}</Vertices>')
            lines.append("<Comments/></Region>")
        lines.append("</Regions></Annotation>")
    path.write_text("\n".join([*lines, "</Annotations>"]), encoding="utf-8")
    return path


def write_imagescope(path: Path, name: str, regions: Sequence[tuple[int, bool, Corners]], mpp: float) -> Path:
    """Write an XML of ImageScope with one layer, whose name is in its description."""
    lines = [f'<Annotations MicronsPerPixel="{mpp}"><Annotation Id="1" Name="" Type="4">']
    lines.append(f'<Attributes><Attribute Name="Description" Id="0" Value="{name}" /></Attributes><Regions>')
    for kind, is_hole, corners in regions:
        at = "".join(f'<Vertex X="{x}" Y="{y}" Z="0" />' for x, y in corners)
        lines.append(f'<Region Id="1" Type="{kind}" NegativeROA="{int(is_hole)}"><Vertices>{at}</Vertices></Region>')
    path.write_text("\n".join([*lines, "</Regions></Annotation></Annotations>"]), encoding="utf-8")
    return path
