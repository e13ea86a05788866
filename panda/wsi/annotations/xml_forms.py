"""Read the XML files of ASAP, and those of ImageScope and HALO, which share one form."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

import numpy as np

from panda.errors import MaskError
from panda.wsi.annotations.file import AnnotationFile, Ring

Attributes = dict[str, str]

_ELLIPSE_CORNERS = 360
_FREEHAND, _OPEN_PX = 20, 30.0
"""An outline of at least so many corners is drawn by hand, and is open if its ends are so many px apart, as in ASAP."""
_ASAP_AREAS = ("polygon", "spline", "rectangle")
_ASAP_OTHERS = ("dot", "pointset", "measurement", "none")
_REGION_AREAS = {"0": "polygon", "1": "rectangle", "2": "ellipse"}
"""The types of ImageScope; HALO writes the words."""
_REGION_OTHERS = ("3", "4", "5", "arrow", "ruler", "pin", "line", "text", "counter")


class _DoctypeError(Exception):
    """A file declares a document type, and could define entities that grow without end. No program writes one."""


class _Form(ABC):
    """A form of XML, read element by element."""

    def __init__(self, file: AnnotationFile) -> None:
        self.file = file

    @abstractmethod
    def start(self, tag: str, attributes: Attributes) -> None:
        """Read the beginning of an element."""

    @abstractmethod
    def end(self, tag: str) -> None:
        """Read the end of an element."""

    def finish(self) -> AnnotationFile:
        """Return the file after its last element."""
        return self.file


def parse_xml(path: Path) -> AnnotationFile:
    """Read an XML file with annotations, see `_Asap` and `_Regions` for the rules of each form.

    Raises:
        MaskError: If the file cannot be read, declares a document type, or has neither form.
    """
    parser = expat.ParserCreate()
    form: _Form | None = None

    def start(tag: str, attributes: Attributes) -> None:
        nonlocal form
        if form is None:
            form = _choose_form(path, tag, attributes)
        else:
            form.start(tag, attributes)

    def end(tag: str) -> None:
        if form is not None:
            form.end(tag)

    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        with path.open("rb") as stream:
            parser.ParseFile(stream)
    except OSError as error:
        raise MaskError(f"{path}: the annotations cannot be read: {error}") from error
    except _DoctypeError as error:
        raise MaskError(f"{path}: declares a DOCTYPE, which is refused: remove that line, or export again") from error
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise MaskError(f"{path}: is no XML ({error}): export the annotations again") from error
    assert form is not None, "a document without a root is an error of the parser"
    return form.finish()


def _refuse_doctype(*_: object) -> NoReturn:
    raise _DoctypeError


def _choose_form(path: Path, tag: str, attributes: Attributes) -> _Form:
    if tag == "ASAP_Annotations":
        return _Asap(AnnotationFile(path, "ASAP", "file"))
    if tag == "Annotations":
        return _Regions(AnnotationFile(path, "ImageScope or HALO", "file"), attributes)
    raise MaskError(
        f"{path}: its root is {tag!r}; known are ASAP_Annotations (ASAP) and Annotations (ImageScope, HALO)"
    )


class _Asap(_Form):
    """ASAP's form: the class is `PartOfGroup`, the name of a group.

    Polygons, splines (with straight edges, as in ASAP's own masks) and rectangles count. The groups are drawn in the
    order of `AnnotationGroups`, a later one above an earlier one; inside a group the order is that of the file.
    """

    def __init__(self, file: AnnotationFile) -> None:
        super().__init__(file)
        self._groups: list[str] = []
        self._count = 0
        self._current: Attributes = {}
        self._corners: list[tuple[str, str, str]] = []

    def start(self, tag: str, attributes: Attributes) -> None:
        if tag == "Group":
            self._groups.append(attributes.get("Name", ""))
        elif tag == "Annotation":
            self._current, self._corners = attributes, []
        elif tag == "Coordinate":
            self._corners.append(tuple(attributes.get(key, "") for key in ("X", "Y", "Order")))  # type: ignore[arg-type]

    def end(self, tag: str) -> None:
        if tag == "Annotation":
            self._add(f"Annotation {self._count} {self._current.get('Name', '')[:60]!r}")
            self._count += 1

    def _add(self, where: str) -> None:
        kind, group = self._current.get("Type", ""), self._current.get("PartOfGroup", "None")
        if kind.lower() in _ASAP_OTHERS:
            self.file.ignore("points or lines")
            return
        if kind.lower() not in _ASAP_AREAS:
            self.file.faults.append(f"{where}: its Type is {kind!r}: known are {', '.join(_ASAP_AREAS)}; draw it again")
            return
        if all(order.isdecimal() for _, _, order in self._corners):
            self._corners.sort(key=lambda corner: int(corner[2]))
        ring = self.file.read_corners(where, [(x, y) for x, y, _ in self._corners])
        if ring is not None:
            self.file.add(where, None if group == "None" else group, [[ring]])

    def finish(self) -> AnnotationFile:
        file, groups = self.file, self._groups
        lacking = sorted({found.name for found in file.annotations} - set(groups))
        file.faults += [f"PartOfGroup {name!r} is not among the groups {groups}: add it in ASAP" for name in lacking]
        if not lacking:
            file.annotations.sort(key=lambda annotation: groups.index(annotation.name))
        return file


class _Regions(_Form):
    """The form of ImageScope and HALO: layers of regions.

    The class is the layer's name; ImageScope may have it in the layer's attribute `Description` instead. Polygons,
    rectangles and ellipses (two corners of their box) count. Regions with `NegativeROA="1"` are cut out of all other
    regions of their layer. A later layer is above an earlier one.
    """

    def __init__(self, file: AnnotationFile, attributes: Attributes) -> None:
        super().__init__(file)
        stated = attributes.get("MicronsPerPixel", "")
        file.mpp = float(stated) if re.fullmatch(r"\d*\.?\d+", stated) and float(stated) else None
        self._layers = 0
        self._name = ""
        self._regions: list[tuple[Attributes, list[tuple[str, str]]]] = []

    def start(self, tag: str, attributes: Attributes) -> None:
        if tag == "Annotation":
            self._name, self._regions = attributes.get("Name", ""), []
        elif tag == "Attribute" and attributes.get("Name") == "Description" and not self._regions:
            self._name = self._name or attributes.get("Value", "")
        elif tag == "Region":
            self._regions.append((attributes, []))
        elif tag in ("V", "Vertex") and self._regions:
            self._regions[-1][1].append((attributes.get("X", ""), attributes.get("Y", "")))

    def end(self, tag: str) -> None:
        if tag != "Annotation":
            return
        where = f"layer {self._layers} {self._name!r}"
        self._layers += 1
        first = len(self.file.annotations)
        holes = AnnotationFile(self.file.path, self.file.tool, self.file.frame)
        for number, (attributes, corners) in enumerate(self._regions):
            target = holes if attributes.get("NegativeROA", "0").lower() in ("1", "true") else self.file
            _add_region(target, f"{where}, Region {number}", self._name, attributes, corners)
        self._regions = []
        self.file.faults += holes.faults
        self.file.notes += holes.notes
        for hole in holes.annotations:
            self.file.subtract(hole.where, first, hole.polygon)


def _add_region(
    file: AnnotationFile, where: str, name: str, attributes: Attributes, corners: list[tuple[str, str]]
) -> None:
    stated = attributes.get("Type", "0").lower()
    shape = _REGION_AREAS.get(stated, stated)
    if shape in _REGION_OTHERS:
        file.ignore("points or lines")
        return
    if shape not in _REGION_AREAS.values():
        known = ", ".join(_REGION_AREAS.values())
        file.faults.append(f"{where}: its Type is {stated!r}: known are {known}; draw it again")
        return
    ring = file.read_corners(where, corners)
    if ring is None:
        return
    if stated == "0" and len(ring) >= _FREEHAND and (gap := math.dist(ring[0], ring[-1])) > _find_widest_gap(ring):
        file.notes.append(f"{where}: its ends are {gap:.0f} px apart; closed by a straight line")
    if len(ring) > 1 and (shape == "ellipse" or (shape == "rectangle" and len(ring) == 2)):
        ring = _fill_box(ring, shape)
    file.add(where, name, [[ring]])


def _find_widest_gap(ring: Ring) -> float:
    """Return how far the ends of an outline of ImageScope may be apart, which stores open strokes of a pen as well."""
    steps = np.hypot(*np.diff(ring, axis=0).T)
    return max(_OPEN_PX, 10 * float(np.median(steps)))


def _fill_box(ring: Ring, shape: str) -> Ring:
    """Return the corners of a rectangle or an ellipse that fills the box around some points."""
    (x0, y0), (x1, y1) = ring.min(axis=0), ring.max(axis=0)
    if shape == "rectangle":
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    angle = np.arange(_ELLIPSE_CORNERS) * (2 * math.pi / _ELLIPSE_CORNERS)
    middle, radius = np.array([x0 + x1, y0 + y1]) / 2, np.array([x1 - x0, y1 - y0]) / 2
    return np.asarray(middle + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1), np.float64)
