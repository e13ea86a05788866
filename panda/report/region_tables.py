"""Lay out the regions and the classes of cancer of one slide as tables."""

from __future__ import annotations

from collections.abc import Sequence

from panda.inference.class_colours import find_class_colour
from panda.inference.slide_result import SlideResult
from panda.report.table import Cell, Head, Table, format_value, make_cell
from panda.report.viewer import MOST_REGIONS

_REGION_HEADS = (
    ("Region", ""), ("Area", "mm²"), ("Area", "px of the map"), ("Length", "mm, greatest"), ("Mean probability", ""),
    ("Highest probability", ""), ("Centre", "x, y in level-0 px"), ("Box", "x0, y0, x1, y1 in level-0 px"),
)  # fmt: skip
_CLASS_HEADS = (
    ("Gleason pattern", ""), ("Area", "mm²"), ("Area", "px of the map"), ("Share of tumour", "%"),
    ("Share of tissue", "%"),
)  # fmt: skip


def tabulate_regions(result: SlideResult, has_viewer: bool) -> Table:
    """Return the table of the regions, largest first, each with a button that shows it if there is a viewer."""
    no_area = result.mm2_note or "µm/px of the slide is unknown"
    names = [area.name for area in result.classes]
    rows = [
        [
            Cell(format_value(region.id, "count"), sort=region.id, style="num", is_button=has_viewer),
            make_cell(region.area_mm2, "mm2", no_area),
            make_cell(region.area_px, "count"),
            make_cell(region.length_mm, "score", no_area),
            make_cell(region.mean_probability, "score"),
            make_cell(region.max_probability, "score"),
            _make_numbers_cell(region.centroid),
            _make_numbers_cell(region.bbox),
            *(make_cell(100 * px / region.area_px, "percent") for px in region.class_px),
        ]
        for region in result.regions[:MOST_REGIONS]
    ]
    more = len(result.regions) - len(rows)
    note = f"The {len(rows)} largest; {more} smaller ones are in regions.geojson." if more > 0 else ""
    heads = [*_REGION_HEADS, *((name, "% of region") for name in names)]
    return Table([Head(label, unit, figures=True) for label, unit in heads], rows, note=note)


def tabulate_classes(result: SlideResult) -> Table | None:
    """Return the table of the classes of cancer; None if there is one class."""
    no_area = result.mm2_note or "µm/px of the slide is unknown"
    rows = [
        [
            Cell(area.name, swatch="#{:02x}{:02x}{:02x}".format(*find_class_colour(area.patterns))),
            Cell(", ".join(map(str, area.patterns)), style="num"),
            make_cell(area.area_mm2, "mm2", no_area),
            make_cell(area.area_px, "count"),
            make_cell(area.percent_of_tumor, "percent", "there is no tumour"),
            make_cell(area.percent_of_tissue, "percent", "there is no tissue"),
        ]
        for area in result.classes
    ]
    if not rows:
        return None
    heads = [Head("Class"), *(Head(label, unit, figures=True) for label, unit in _CLASS_HEADS)]
    return Table(heads, rows, sortable=False)


def _make_numbers_cell(numbers: Sequence[float]) -> Cell:
    return Cell(", ".join(f"{v:.0f}" for v in numbers), sort=numbers[0], style="num")
