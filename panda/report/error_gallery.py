"""The part of a page that shows the largest errors of all slides, with their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from panda.inference.error_pictures import (
    LABEL_COLOUR,
    PICTURED,
    PREDICTION_COLOUR,
    SIDE,
    name_picture,
)
from panda.inference.error_regions import KINDS, ErrorKind, ErrorRegion
from panda.inference.legends import Scale
from panda.report.error_table import ERROR_TABLE, CollectedErrors, ErrorSums, SlideError
from panda.report.run_folder import make_data_uri, make_link
from panda.report.slide_page import PAGE
from panda.report.table import Cell, Head, Table, format_value, make_cell

SHOWN = 12
"""Largest regions of a kind in a gallery."""
_TITLES: Mapping[ErrorKind, str] = {"missed": "Missed cancer", "false_alarm": "False alarms"}


@dataclass(frozen=True)
class ErrorFigure:
    """One picture of a gallery.

    Attributes:
        title: Size of the region.
        lines: Facts below it.
        slide_id: Name of the slide.
        href: Its place in the viewer of the slide; empty without such a page.
        uri: The picture; empty if it is absent.
        bar: Length of the scale bar, % of the width.
        bar_label: The length in words.
    """

    title: str
    lines: Sequence[str]
    slide_id: str
    href: str
    uri: str
    bar: float
    bar_label: str


@dataclass(frozen=True)
class ErrorGallery:
    """The section of a page.

    Attributes:
        groups: The errors by provider and grade.
        parts: Title and pictures of each kind.
        colours: Colours of the outlines of label and prediction, as `#rrggbb`.
        table: Name of the table of the largest regions.
        side: Side of a picture, px.
        notes: Why slides are not among them.
    """

    groups: Table
    parts: Sequence[tuple[str, Sequence[ErrorFigure]]]
    notes: Sequence[str]
    colours: tuple[str, str] = (
        "#{:02x}{:02x}{:02x}".format(*LABEL_COLOUR),
        "#{:02x}{:02x}{:02x}".format(*PREDICTION_COLOUR),
    )
    table: str = ERROR_TABLE
    per_slide: int = PICTURED
    side: int = SIDE


def lay_out_errors(home: Path, table: Path, *up: str) -> ErrorGallery | None:
    """Return the section of a page; None if no slide of it was scored.

    Args:
        home: Folder of the page and of `errors.csv`.
        table: The table of the slides.
        up: Names of the folders from the page to the folder of the slides' folders.
    """
    if not (home / ERROR_TABLE).is_file():
        return None
    found = CollectedErrors.read(table, home.joinpath(*up))
    parts = []
    for kind in KINDS:
        pictured = [one for one in found.largest[kind] if one.region.picture is not None]
        parts.append((_TITLES[kind], [_make_figure(one, up) for one in pictured[:SHOWN]]))
    return ErrorGallery(_tabulate_groups(found.groups), parts, found.notes)


def _make_figure(error: SlideError, up: Sequence[str]) -> ErrorFigure:
    region, home = error.region, error.home
    assert region.picture is not None
    try:
        uri = make_data_uri((home / name_picture(region.kind, region.number)).read_bytes(), "jpeg")
    except OSError:
        uri = ""
    per_px = region.picture[2] / SIDE
    length, label = Scale(per_px, error.mpp and error.mpp[0] * per_px).fit_bar(SIDE)
    href = make_link(*up, home.name, PAGE) if (home / PAGE).is_file() else ""
    return ErrorFigure(
        title=_describe_area(region),
        lines=_list_facts(error),
        slide_id=home.name,
        href=href and f"{href}#x={region.x}&y={region.y}&w={region.width}&h={region.height}",
        uri=uri,
        bar=100 * length / SIDE,
        bar_label=label,
    )


def _describe_area(region: ErrorRegion) -> str:
    area = format_value(region.area_mm2, "mm2")
    return f"{area} mm²" if area else f"{region.area_px:,} px of the map"


def _list_facts(error: SlideError) -> list[str]:
    region = error.region
    grade = "no grade" if error.isup_grade is None else f"ISUP {error.isup_grade}"
    score = f" ({error.gleason_score})" if error.gleason_score else ""
    centre = ""
    if (um := error.centre_um) is not None:
        centre = f"centre {um[0]:,.0f}, {um[1]:,.0f} µm"
    facts = [
        f"{error.provider}, {grade}{score}",
        f"x {region.x}, y {region.y}, {region.width} × {region.height} px",
        centre,
        f"mean probability {region.mean_probability:.2f}",
    ]
    assert region.picture is not None
    if region.picture[2] < max(region.width, region.height):
        facts.append("the picture shows a part")
    return [*filter(None, facts)]


def _tabulate_groups(groups: Mapping[tuple[str, int | None], ErrorSums]) -> Table:
    """Lay out the errors by provider and grade, with all slides in the last row."""
    unknown = "µm/px of a slide is unknown"
    rows = []
    for (provider, grade), sums in sorted(
        groups.items(), key=lambda one: (one[0][0], one[0][1] is None, one[0][1] or 0)
    ):
        cells = [
            Cell(provider),
            Cell("none" if grade is None else str(grade), style="num"),
            make_cell(sums.slides, "count"),
        ]
        for kind in KINDS:
            cells += [make_cell(sums.regions[kind], "count"), make_cell(sums.mm2[kind], "mm2", unknown)]
        rows.append(cells)
    heads = [Head("Provider"), Head("ISUP grade", figures=True), Head("Slides", figures=True)]
    for kind in KINDS:
        heads += [Head(_TITLES[kind], "regions", True), Head(_TITLES[kind], "mm²", True)]
    return Table(heads, rows)
