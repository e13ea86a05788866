"""The content of an annotation file: areas with a class, and all that is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from panda.errors import MaskError

Ring = NDArray[np.float64]
"""(n, 2) x, y corners of a ring in level-0 px, closed or not."""
Area: TypeAlias = shapely.Geometry
"""A polygon or a multipolygon."""

_AREAS = (shapely.Polygon, shapely.MultiPolygon)
_LARGEST = 2.0**31
_SHOWN = 20


@dataclass(frozen=True)
class Annotation:
    """An area with a class.

    Attributes:
        name: The name of the class, as in the file.
        polygon: The area with its holes, valid. In level-0 px of the file or of the slide, see `AnnotationFile.frame`.
        where: Its place in the file, for messages.
    """

    name: str
    polygon: Area
    where: str


@dataclass
class AnnotationFile:
    """The annotations of a file, which a parser adds one by one.

    Attributes:
        path: The file.
        tool: The program whose format it has; QuPath drops what makes a file PANDA's own.
        frame: `"slide"`: level-0 px from the corner of the slide's bounds, as in QuPath. `"file"`: level-0 px of the
            whole file, as in ASAP, ImageScope and HALO.
        annotations: The areas in the order in which they are drawn: a later one is above an earlier one.
        mpp: µm per level-0 px that the file states; None if it states none.
        faults: What is wrong with the file, one sentence each.
        notes: What was repaired or ignored, one sentence each.
    """

    path: Path
    tool: Literal["PANDA", "QuPath", "ASAP", "ImageScope or HALO"]
    frame: Literal["slide", "file"]
    annotations: list[Annotation] = field(default_factory=list)
    mpp: float | None = None
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _ignored: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, name: str | None, polygons: Sequence[Sequence[Ring]]) -> None:
        """Add an area.

        Args:
            where: Its place in the file.
            name: Its class; an area without one is ignored.
            polygons: Its polygons, each the outer ring and then the holes.
        """
        if not name or not name.strip():
            self.ignore("without a class")
            return
        if not polygons or any(_count_corners(ring) < 3 for polygon in polygons for ring in polygon):
            self.faults.append(f"{where}: a ring has fewer than 3 corners: draw it again, or delete it")
            return
        parts = [shapely.Polygon(polygon[0], polygon[1:]) for polygon in polygons]
        area: Area = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
        if not area.is_valid:
            reason = shapely.is_valid_reason(area)
            repaired = shapely.make_valid(area, method="structure", keep_collapsed=False)
            if not isinstance(repaired, _AREAS) or repaired.is_empty:
                self.faults.append(f"{where}: its outline has no area ({reason}): draw it again, or delete it")
                return
            self.notes.append(f"{where}: {reason}; repaired, its area is {repaired.area:.6g} px")
            area = repaired
        self.annotations.append(Annotation(name, area, where))

    def subtract(self, where: str, first: int, hole: Area) -> None:
        """Cut a hole out of all annotations from number `first` on; one that has no area left is removed."""
        kept = []
        for annotation in self.annotations[first:]:
            left = shapely.difference(annotation.polygon, hole)
            if isinstance(left, _AREAS) and not left.is_empty:
                kept.append(Annotation(annotation.name, left, annotation.where))
            else:
                self.notes.append(f"{annotation.where}: {where} covers all of it, so nothing of it is left")
        self.annotations[first:] = kept

    def ignore(self, what: str) -> None:
        """Count an object that is no labelled area, such as a point; `what` says what it is."""
        self._ignored[what] += 1

    def describe_ignored(self) -> str:
        """Return how many objects were ignored, by kind; empty if there are none."""
        return ", ".join(f"{count} {what}" for what, count in self._ignored.most_common())

    def read_corners(self, where: str, corners: Sequence[object]) -> Ring | None:
        """Return (n, 2) corners as numbers; None after a fault.

        Args:
            where: The place of the ring in the file.
            corners: Pairs of numbers or of texts; a number may follow, which is left out.
        """
        ring = _convert(corners)
        if ring is None:
            texts = [_replace_comma(corner) for corner in corners]
            if texts != list(corners) and (ring := _convert(texts)) is not None:
                self.notes.append(f"{where}: its numbers have a decimal comma, which is read as a point")
        if ring is not None and (np.abs(ring) < _LARGEST).all():
            return ring
        number, bad = next(
            (
                (number, corner)
                for number, corner in enumerate(corners)
                if (one := _convert([corner])) is None or not (np.abs(one) < _LARGEST).all()
            ),
            (0, "missing"),
        )
        self.faults.append(
            f"{where}: corner {number} is {str(bad)[:80]}: give two finite numbers in level-0 px, or delete the area"
        )
        return None

    def raise_faults(self) -> None:
        """Raise MaskError with all faults, if there are any."""
        if self.faults:
            shown = self.faults[:_SHOWN]
            more = [f"… and {len(self.faults) - _SHOWN} more"] if len(self.faults) > _SHOWN else []
            headline = f"{self.path}: {len(self.faults)} fault{'s' * (len(self.faults) > 1)} in the annotations:"
            raise MaskError("\n".join([headline, *(f"  - {line}" for line in [*shown, *more])]))


def _count_corners(ring: Ring) -> int:
    """Return how many corners a ring has; the last one does not count if it closes the ring."""
    return len(ring) - bool(len(ring) > 1 and (ring[0] == ring[-1]).all())


def _convert(corners: Sequence[object]) -> Ring | None:
    """Return corners as (n, 2) numbers, or None if they are none. Only tuples, of an XML file, may hold texts."""
    pairs = [corner[:2] for corner in corners if isinstance(corner, (list, tuple))]
    try:
        found: NDArray[Any] = np.asarray(pairs)
        if found.dtype.kind == "U" and isinstance(corners[0], tuple):
            found = found.astype(np.float64)
    except ValueError:
        return None
    if len(pairs) != len(corners) or found.dtype.kind not in "iuf" or found.ndim != 2 or found.shape[1] < 2:
        return None
    return np.asarray(found, np.float64)


def _replace_comma(corner: object) -> object:
    """Return a pair of texts with decimal points in place of commas, and anything else unchanged."""
    if isinstance(corner, tuple):
        return tuple(text.replace(",", ".") if isinstance(text, str) else text for text in corner)
    return corner
