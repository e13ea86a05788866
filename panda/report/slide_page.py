"""The page of one slide: what was found on it, how much, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panda.files import read_output_table
from panda.report.page import need_folder, write_page
from panda.report.run_folder import (
    Picture,
    Row,
    inside,
    link,
    mapping,
    number,
    read_json,
    read_picture,
    sequence,
)
from panda.report.table import Cell, Head, Table, cell, figure_kind, head, show
from panda.report.viewer import MOST_REGIONS, read_viewer
from panda.wsi.gleason import class_names

PAGE = "slide.html"
THUMBNAIL_SIDE = 220
# Beyond these a page would weigh more than a browser carries with ease.
MOST_THUMBNAILS = 400
_PICTURE_SIDE = 1800
_FILES = (
    ("overlay.png", "the slide, the probability over it, and the outline of what counts as tumour"),
    ("heatmap.png", "the probability alone"),
    ("regions.geojson", "tumour regions for QuPath, in level-0 pixels"),
    ("probability.ome.tiff", "probability map as a pyramid, for QuPath or napari"),
    ("attention.png", "the slide and the attention that the grading network had for its tiles"),
    ("attention_tiles.png", "most attended tiles at full size"),
    ("quantification.json", "all figures of this page"),
)
# On one slide there is nothing to pool.
ONE_SLIDE = {"dice": "Dice", "isup_grade": "Given ISUP"}
_SEEN = {
    "training": "The network was trained on this slide: what it found here says little of slides new to it.",
    "validation": "The epoch and the threshold were chosen with this slide: what was found here flatters.",
}
GRADES = {"isup": "ISUP grade", "cancer": "Cancer"}


@dataclass(frozen=True)
class Card:
    """A figure that is read first.

    Args:
        label: What it is.
        text: The figure; a dash is shown where it is empty.
        unit: Behind the figure.
        under: A line below: its interval, or why there is none.
        big: Whether it is one of the most important.
    """

    label: str
    text: str
    unit: str = ""
    under: str = ""
    big: bool = False


def _regions(quantification: dict[str, Any], seen: bool) -> Table:
    """List the regions, largest first, each with a button that leads to it where a viewer shows them."""
    regions = [r for r in sequence(quantification.get("regions")) if isinstance(r, dict)]
    regions.sort(key=lambda r: number(r.get("area_px")) or 0.0, reverse=True)
    no_area = str(quantification.get("mm2_note") or "µm/px of the slide is unknown")
    rows = [
        [
            Cell(show(r.get("id"), "count"), sort=number(r.get("id")), style="num", goes=seen),
            cell(r.get("area_mm2"), "mm2", no_area),
            cell(r.get("area_px"), "count"),
            cell(r.get("length_mm"), "score", no_area),
            cell(r.get("mean_probability"), "score"),
            cell(r.get("max_probability"), "score"),
            _place(r.get("centroid")),
            _place(r.get("bbox")),
        ]
        for r in regions[:MOST_REGIONS]
    ]
    heads = [
        Head("Region", figures=True),
        Head("Area", "mm²", figures=True),
        Head("Area", "px of the map", figures=True),
        Head("Length", "mm, greatest", figures=True),
        Head("Mean probability", figures=True),
        Head("Highest probability", figures=True),
        Head("Centre", "x, y in level-0 px", figures=True),
        Head("Box", "x0, y0, x1, y1 in level-0 px", figures=True),
    ]
    more = len(regions) - len(rows)
    note = f"The {len(rows)} largest; {more} smaller ones are in regions.geojson." if more > 0 else ""
    return Table(heads, rows, note=note)


def _place(numbers: Any) -> Cell:
    values = [number(v) for v in sequence(numbers)]
    if not values or any(v is None for v in values):
        return Cell(style="num")
    return Cell(", ".join(f"{v:.0f}" for v in values if v is not None), sort=values[0], style="num")


def _cards(quantification: dict[str, Any], grade: str) -> list[Card]:
    why = "µm/px of the slide is unknown"
    tissue = show(quantification.get("tissue_mm2"), "mm2")
    tumor = show(quantification.get("tumor_mm2"), "mm2")
    share = show(quantification.get("tumor_percent_of_tissue"), "percent")
    cards = [
        Card("Tumour, share of tissue", share, "%", _nearby(quantification), big=True),
        Card("Tumour area", tumor, "mm²", "" if tumor else why, big=True),
        Card("Tissue area", tissue, "mm²", "" if tissue else why),
        Card("Tumour regions", show(quantification.get("num_regions"), "count")),
        Card("Threshold", show(quantification.get("threshold")), under="tumour where the probability reaches it"),
    ]
    mapped = "tumor_percent_of_tissue" in quantification
    return ([Card("Predicted grade", grade, big=True)] if grade else []) + (cards if mapped else [])


def _nearby(quantification: dict[str, Any]) -> str:
    """How far the share moves with the threshold, in a sentence."""
    near = [mapping(step) for step in sequence(quantification.get("nearby"))]
    steps = [(number(step.get("threshold")), number(step.get("tumor_percent_of_tissue"))) for step in near]
    known = sorted((at, share) for at, share in steps if at is not None and share is not None)
    if not known:
        return ""
    (low, most), (high, least) = known[0], known[-1]
    return (
        f"{show(least, 'percent')} to {show(most, 'percent')} % at thresholds {low:.2f} to {high:.2f}, before clean-up"
    )


@dataclass(frozen=True)
class _Bar:
    name: str
    share: float
    text: str
    top: bool


def _grade(quantification: dict[str, Any]) -> tuple[str, list[_Bar]]:
    """Name the predicted class and lay out the probabilities; empty where the slide was not graded."""
    grade = mapping(quantification.get("grade"))
    shares = [number(p) or 0.0 for p in sequence(grade.get("probabilities"))]
    predicted = number(grade.get("predicted"))
    if predicted is None:
        return "", []
    target = str(grade.get("target") or "isup")
    names = class_names(target, max(len(shares), int(predicted) + 1))
    bars = [_Bar(names[k], min(max(p, 0.0), 1.0), f"{p:.2f}", k == int(predicted)) for k, p in enumerate(shares)]
    return names[int(predicted)] if 0 <= int(predicted) < len(names) else f"{predicted:g}", bars


def table_of_slides(run_dir: Path) -> Path:
    """The table of a run's slides: of its test slides, or of others where it shows those."""
    test = run_dir / "test_slides.csv"
    return test if test.is_file() else run_dir / "slides.csv"


def _against_label(slide_dir: Path, slide_id: str) -> Table | None:
    """Find what the slide scored against its label, where a run left that."""
    table = table_of_slides(slide_dir.parent.parent)
    if slide_dir.parent.name != "slides" or not table.is_file():
        return None
    row = next((r for r in read_output_table(table) if r.get("slide_id") == slide_id), None)
    if row is None:
        return None
    hidden = {"slide_id", "group"} | ({"label"} if row.get("label") == row.get("isup_grade") else set())
    keys = [k for k in row if k not in hidden and show(row[k], "text") and not k[1:].isdecimal()]
    return Table(
        [head(k, ONE_SLIDE.get(k, "")) for k in keys], [[cell(row[k], figure_kind(k)) for k in keys]], sortable=False
    )


def _meta(quantification: dict[str, Any]) -> list[tuple[str, str]]:
    mpp = [v for v in map(number, sequence(quantification.get("mpp"))) if v is not None]
    downsample = number(quantification.get("downsample"))
    meta = [("Slide", " × ".join(f"{v:.4g}" for v in mpp) + " µm/px" if mpp else "")]
    if downsample is not None:
        spans = f"{' × '.join(f'{v * downsample:.3g}' for v in mpp)} µm, " if mpp else ""
        meta.append(("A pixel of the map spans", f"{spans}{downsample:.4g} level-0 px a side"))
    return [*meta, ("", str(quantification.get("mpp_note") or ""))]


def _overview(slide_dir: Path) -> str:
    """Address of the page of all slides: above `slides/` in a run, beside the slides' folders elsewhere."""
    return "../../report.html" if slide_dir.parent.name == "slides" else "../report.html"


def write_slide_page(slide_dir: Path) -> Path:
    """Make the page of one slide from its folder.

    Args:
        slide_dir: Folder with `quantification.json` and pictures; what is missing in it is said on the page.

    Returns:
        `slide.html` in that folder.

    Raises:
        PandaError: There is no such folder.
    """
    slide_dir = Path(slide_dir).absolute()
    need_folder(slide_dir)
    quantification, fault = read_json(slide_dir / "quantification.json")
    slide_id = str(quantification.get("slide_id") or slide_dir.name)
    grade, bars = _grade(quantification)
    notes = [fault] if fault else []
    if quantification.get("tissue_how") == "loose":
        notes.append(
            "Tissue was found with the loose rule only: the slide is pale or unusual, so check the tissue area."
        )
    if seen := _SEEN.get(str(quantification.get("in_sample"))):
        notes.append(seen)
    if quantification.get("grade_note"):
        notes.append(f"Not graded: {quantification['grade_note']}")
    if quantification.get("tissue_how") == "whole":
        notes.append(
            "No stained tissue was found, but structure: the whole slide counts as tissue, glass included, so areas of "
            "tissue and shares of it mean little. Is this slide stained with haematoxylin and eosin?"
        )
    if "tumor_mm2" in quantification and number(quantification["tumor_mm2"]) is None:
        why = quantification.get("mm2_note") or quantification.get("mpp_note") or "µm/px is unknown"
        notes.append(f"No areas in mm²: {why}")
    target = str(mapping(quantification.get("grade")).get("target") or "isup")
    viewer = read_viewer(slide_dir, quantification)
    return write_page(
        slide_dir / PAGE,
        "slide.html",
        ("page.js", "viewer.js") if viewer else ("page.js",),
        slide_id=slide_id,
        overview=_overview(slide_dir),
        notes=notes,
        cards=_cards(quantification, grade) if quantification else [],
        meta=_meta(quantification),
        viewer=viewer,
        # of results without what the viewer needs
        overlay=None if viewer else read_picture(slide_dir / "overlay.png", _PICTURE_SIDE),
        heatmap=None if viewer else read_picture(slide_dir / "heatmap.png", _PICTURE_SIDE),
        attention=read_picture(slide_dir / "attention_tiles.png", _PICTURE_SIDE),
        grade_name=GRADES.get(target, target),
        bars=bars,
        against=_against_label(slide_dir, slide_id),
        regions=_regions(quantification, viewer is not None),
        mapped="tumor_percent_of_tissue" in quantification,
        threshold=quantification.get("threshold"),
        files=[(link(name), name, what) for name, what in _FILES if (slide_dir / name).is_file()],
    )


def fresh_slide_page(slide_dir: Path) -> str:
    """Make the page of a slide unless it is newer than all that it shows.

    Args:
        slide_dir: Folder of the slide.

    Returns:
        The page's name in that folder.
    """
    page = slide_dir / PAGE
    parts = [slide_dir / name for name, _ in _FILES] + [table_of_slides(slide_dir.parent.parent)]
    newest = max((part.stat().st_mtime_ns for part in parts if part.is_file()), default=0)
    if not page.is_file() or page.stat().st_mtime_ns <= newest:
        write_slide_page(slide_dir)
    return PAGE


def slide_table(
    rows: Sequence[Row], keys: Sequence[str], folder: Path, names: dict[str, str], why: dict[str, str], *up: str
) -> Table:
    """Lay out slides as a table with thumbnails that lead to the slides' pages, and make those pages.

    Args:
        rows: One a slide, each with `slide_id`.
        keys: The columns, in order.
        folder: Where the slides' folders lie.
        names: For a column, a name other than its usual one.
        why: For a column, why a figure in it may be missing.
        up: Names of folders from the page to `folder`.
    """
    cells: list[list[Cell]] = []
    for index, row in enumerate(rows):
        name = str(row.get("slide_id") or "")
        slide_dir = inside(folder, name)
        href = link(*up, name, fresh_slide_page(slide_dir)) if slide_dir else ""
        thumbnail: Picture | None = None
        if slide_dir and index < MOST_THUMBNAILS:
            pictures = (slide_dir / name for name in ("overlay.png", "slide.jpg"))  # the slide where it was only graded
            found = (read_picture(path, THUMBNAIL_SIDE, quality=80) for path in pictures)
            thumbnail = next(filter(None, found), None)
        shown = Cell("slide", picture=thumbnail, href=href) if thumbnail else Cell(why="no picture was kept")
        cells.append(
            [shown, *(cell(row.get(k), figure_kind(k), why.get(k, ""), href if k == "slide_id" else "") for k in keys)]
        )
    more = len(rows) > MOST_THUMBNAILS
    note = f"Thumbnails are shown for the first {MOST_THUMBNAILS} slides." if more else ""
    heads = [Head(""), *(head(k, names.get(k, "")) for k in keys)]
    if not any(row[0].picture for row in cells):
        return Table(heads[1:], [row[1:] for row in cells])
    return Table(heads, cells, note=note)
