"""Collect the wrong regions of all scored slides: their sums by provider and grade, and `errors.csv`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from panda.errors import PandaError
from panda.inference.error_regions import ERRORS_FILE, KINDS, ErrorKind, ErrorRegion, ErrorTotal, SlideErrors
from panda.report.run_folder import find_subfolder
from panda.stored import read_model
from panda.tables import OutputTable, write_table

ERROR_TABLE = "errors.csv"
MOST_ROWS = 1_000
"""Largest regions of a kind in the table."""
_COLUMNS = (
    "kind", "slide_id", "region", "provider", "isup_grade", "gleason_score", "x", "y", "width", "height", "area_mm2",
    "area_px", "mean_probability", "centre_x_um", "centre_y_um",
)  # fmt: skip
_REMEDY = "it was edited or written by another version: map the slide again"


@dataclass(frozen=True)
class SlideError:
    """A wrong region with its slide.

    Attributes:
        home: Folder of the slide.
        provider: Its provider.
        isup_grade: Its grade, None without one.
        gleason_score: Its Gleason score as in the table of labels.
        mpp: µm/px at level 0 as (x, y), None if unknown.
        region: The region.
    """

    home: Path
    provider: str
    isup_grade: int | None
    gleason_score: str
    mpp: tuple[float, float] | None
    region: ErrorRegion

    @property
    def order(self) -> tuple[bool, float, str, int]:
        """What sorts regions of one kind: the largest first, those of unknown area last."""
        area = self.region.area_mm2
        return area is None, -(self.region.area_px if area is None else area), self.home.name, self.region.number

    @property
    def centre_um(self) -> tuple[float, float] | None:
        """Centre of the box from the corner of the slide, µm; None if µm/px is unknown."""
        box = self.region
        if self.mpp is None:
            return None
        return (box.x + box.width / 2) * self.mpp[0], (box.y + box.height / 2) * self.mpp[1]

    def to_row(self) -> dict[str, Any]:
        """Return the row of `errors.csv`."""
        centre = self.centre_um or (None, None)
        return {
            **self.region.model_dump(include=set(_COLUMNS)),
            "slide_id": self.home.name,
            "region": self.region.number,
            "provider": self.provider,
            "isup_grade": self.isup_grade,
            "gleason_score": self.gleason_score,
            "centre_x_um": None if centre[0] is None else round(centre[0], 1),
            "centre_y_um": None if centre[1] is None else round(centre[1], 1),
        }


@dataclass
class ErrorSums:
    """The errors of a group of slides: their number, and regions and mm² by kind; None if an area is unknown."""

    slides: int = 0
    regions: dict[ErrorKind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    mm2: dict[ErrorKind, float | None] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))

    def add(self, errors: SlideErrors) -> None:
        """Add a slide."""
        self.slides += 1
        for kind in KINDS:
            total: ErrorTotal = getattr(errors, kind)
            before = self.mm2[kind]
            self.regions[kind] += total.regions
            self.mm2[kind] = None if before is None or total.area_mm2 is None else before + total.area_mm2


@dataclass
class CollectedErrors:
    """The errors of many slides.

    Attributes:
        groups: Their sums by provider and ISUP grade.
        largest: The largest regions by kind, the largest first.
        notes: Why slides are not among them.
    """

    groups: dict[tuple[str, int | None], ErrorSums] = field(default_factory=dict)
    largest: dict[ErrorKind, list[SlideError]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, table: Path, folder: Path) -> CollectedErrors:
        """Read the errors of the slides of a table whose folders are in `folder`; slides without labels have none."""
        found = cls()
        for home in _list_homes(table, folder):
            try:
                found._add(home, read_model(home / ERRORS_FILE, _ERRORS, _REMEDY))
            except FileNotFoundError:
                continue
            except (OSError, PandaError) as error:
                found.notes.append(f"Not among the errors: {error}")
        found._cut()
        return found

    def _add(self, home: Path, errors: SlideErrors) -> None:
        self.groups.setdefault((errors.provider, errors.isup_grade), ErrorSums()).add(errors)
        for region in errors.regions:
            facts = errors.provider, errors.isup_grade, errors.gleason_score, errors.mpp
            self.largest[region.kind].append(SlideError(home, *facts, region))
        if max(map(len, self.largest.values())) > 2 * MOST_ROWS:  # memory does not grow with the slides
            self._cut()

    def _cut(self) -> None:
        for regions in self.largest.values():
            regions.sort(key=lambda one: one.order)
            del regions[MOST_ROWS:]

    def write(self, path: Path) -> None:
        """Write the table of the largest regions, missed ones first."""
        write_table(path, [one.to_row() for kind in KINDS for one in self.largest[kind]], _COLUMNS)


_ERRORS = TypeAdapter(SlideErrors)


def _list_homes(table: Path, folder: Path) -> Iterator[Path]:
    for row in OutputTable(table):
        if home := find_subfolder(folder, row.get("slide_id", "")):
            yield home
