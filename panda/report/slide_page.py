"""Write the page of one slide: its tumour area, regions and grade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from panda.data.mapped_slide import RESULT_FILE
from panda.inference.grade import GradeRecord, RuleGrade
from panda.inference.slide_result import SlideFacts, SlideResult, read_slide_facts
from panda.report.grade_notes import describe_band, describe_disagreement, describe_mark
from panda.report.page import require_folder, write_page
from panda.report.page_facts import describe_slide
from panda.report.region_tables import tabulate_classes, tabulate_regions
from panda.report.run_folder import Picture, Row, find_subfolder, make_link, read_picture, try_read
from panda.report.table import Cell, Head, Table, find_format, format_value, make_cell, make_head
from panda.report.viewer import read_viewer
from panda.tables import read_output_table

PAGE = "slide.html"
THUMBNAIL_SIDE = 220
# More would make the page too large for a browser.
MOST_THUMBNAILS = 400
SAMPLE_THUMBNAILS = 100
"""Thumbnails in a sample of slides, so that the page of a large folder stays small."""
_PICTURE_SIDE = 1800
_FILES = (
    ("overlay.png", "the slide with the probability and the outline of the tumour"),
    ("heatmap.png", "the probability"),
    ("regions.geojson", "tumour regions for QuPath, in level-0 pixels"),
    ("probability.ome.tiff", "probability map as a pyramid, for QuPath or napari"),
    ("attention.png", "the slide with the attention of the grading network"),
    ("attention_tiles.png", "most attended tiles at full size"),
    ("quantification.json", "all figures of this page"),
)
# The figures of one slide are not pooled.
ONE_SLIDE = {"dice": "Dice", "isup_grade": "Given ISUP"}
_RISK = "it only orders slides: a higher one means an earlier event"
_SEEN = {
    "training": "The network was trained on this slide, so the result says little about new slides.",
    "validation": "The epoch and the threshold were chosen with this slide, so the result is too good.",
}


@dataclass(frozen=True)
class Card:
    """A figure that is read first, with its unit and a line below: its interval, or why there is none.

    An empty text is shown as a dash. The most important cards are big.
    """

    label: str
    text: str
    unit: str = ""
    under: str = ""
    big: bool = False


def make_cards(facts: SlideFacts) -> list[Card]:
    """Return the figures of a slide that are read first."""
    rule, grade = facts.rule_grade if isinstance(facts, SlideResult) else None, facts.grade
    cards = []
    if grade:
        title = "Predicted grade" if grade.target.is_grade else f"Predicted {grade.target.title}"
        under = "by the grading network" if rule else _RISK if grade.target.kind == "survival" else ""
        cards.append(Card(title, grade.describe(), under=describe_mark(grade) or under, big=True))
    if rule:
        cards.append(_make_rule_card(rule))
    if not isinstance(facts, SlideResult):
        return cards
    why = "µm/px of the slide is unknown"
    tissue, tumor = format_value(facts.tissue_mm2, "mm2"), format_value(facts.tumor_mm2, "mm2")
    share = format_value(facts.tumor_percent_of_tissue, "percent")
    return [
        *cards,
        Card("Tumour, share of tissue", share, "%", _describe_nearby(facts), big=True),
        Card("Tumour area", tumor, "mm²", "" if tumor else why, big=True),
        Card("Tissue area", tissue, "mm²", "" if tissue else why),
        Card("Tumour regions", format_value(facts.num_regions, "count")),
        Card("Threshold", format_value(facts.threshold), under="a pixel is tumour from this probability"),
    ]


def _make_rule_card(rule: RuleGrade) -> Card:
    """Return the card of the grade by areas, with its interval or why there is none."""
    if rule.score is None or rule.isup_interval is None:
        return Card("Gleason by areas", "", under=rule.note, big=True)
    low, high = rule.band
    return Card(
        "Gleason by areas",
        rule.score if rule.isup else "no cancer",
        f"ISUP {rule.isup}" if rule.isup else "",
        under=f"ISUP {describe_band(*rule.isup_interval)} at thresholds {low:.2f} to {high:.2f}",
        big=True,
    )


def _describe_nearby(result: SlideResult) -> str:
    """Return in a sentence how much the tumour share changes with the threshold."""
    known = [(near.threshold, near.tumor_percent_of_tissue) for near in result.nearby]
    if not known or None in dict(known).values():
        return ""
    (low, most), (high, least) = known[0], known[-1]
    share = f"{format_value(least, 'percent')} to {format_value(most, 'percent')} %"
    return f"{share} at thresholds {low:.2f} to {high:.2f}, before clean-up"


@dataclass(frozen=True)
class _Bar:
    name: str
    share: float
    text: str
    top: bool


def _make_bars(grade: GradeRecord) -> list[_Bar]:
    """Return the bars of the class probabilities."""
    shares = zip(grade.class_names, grade.probabilities, strict=False)
    return [_Bar(name, min(max(p, 0.0), 1.0), f"{p:.2f}", k == grade.predicted) for k, (name, p) in enumerate(shares)]


def find_slide_table(run_dir: Path) -> Path:
    """Return the table of a run's test slides, or of the slides that it shows as examples."""
    test = run_dir / "test_slides.csv"
    return test if test.is_file() else run_dir / "slides.csv"


def _tabulate_label_metrics(slide_dir: Path, slide_id: str) -> Table | None:
    """Lay out the scores of the slide against its label; None without such a table."""
    table = find_slide_table(slide_dir.parent.parent)
    if slide_dir.parent.name != "slides" or not table.is_file():
        return None
    row = next((r for r in read_output_table(table) if r.get("slide_id") == slide_id), None)
    if row is None:
        return None
    hidden = {"slide_id", "group"} | ({"label"} if row.get("label") == row.get("isup_grade") else set())
    hidden |= {"label", "predicted"} if "given_class" in row else set()
    keys = [k for k in row if k not in hidden and format_value(row[k], "text") and not k[1:].isdecimal()]
    return Table(
        [make_head(k, ONE_SLIDE.get(k, "")) for k in keys],
        [[make_cell(row[k], find_format(k)) for k in keys]],
        sortable=False,
    )


def list_notes(facts: SlideFacts) -> list[str]:
    """Return what a reader of the page has to know about the slide."""
    notes = list(facts.notes)
    if facts.tissue_how == "loose":
        notes.append("Tissue was found only with the loose rule. The slide is pale or unusual: check the tissue area.")
    if facts.grade and facts.grade.patient is not None:
        share = f", and {sum(facts.grade.attention):.0%} of the attention is on this one" if facts.grade.tiles else ""
        notes.append(f"The grade is that of patient {facts.grade.patient}, from the tiles of all slides{share}.")
    if facts.grade and facts.grade.mark:
        notes.append(f"This slide is {describe_mark(facts.grade)}. The grade below is the most probable one.")
    result = facts if isinstance(facts, SlideResult) else None
    if result and result.in_sample:
        notes.append(_SEEN[result.in_sample])
    if result and (differ := describe_disagreement(result)):
        notes.append(differ)
    if result and result.grade_note:
        notes.append(f"Not graded: {result.grade_note}")
    if facts.tissue_how == "whole":
        notes.append(
            "No stained tissue was found, but structure: the whole slide counts as tissue, glass included, so areas of "
            "tissue and shares of it mean little. Is this slide stained with haematoxylin and eosin?"
        )
    if result and result.tumor_mm2 is None:
        notes.append(f"No areas in mm²: {result.mm2_note or result.mpp_note or 'µm/px is unknown'}")
    return notes


def _find_overview(slide_dir: Path) -> str:
    """Return the address of the page of all slides: above `slides/` in a run, next to the slides' folders elsewhere."""
    return "../../report.html" if slide_dir.parent.name == "slides" else "../report.html"


def write_slide_page(slide_dir: Path) -> Path:
    """Write `slide.html` of one slide from its folder, with `quantification.json` and pictures.

    The page names missing files.
    """
    slide_dir = Path(slide_dir).absolute()
    require_folder(slide_dir)
    facts, fault = try_read(read_slide_facts, slide_dir, RESULT_FILE)
    facts = facts or SlideFacts(slide_id=slide_dir.name)
    result, grade = facts if isinstance(facts, SlideResult) else None, facts.grade
    known = facts
    viewer, broken = try_read(lambda folder: read_viewer(folder, known), slide_dir, "regions.geojson")
    return write_page(
        slide_dir / PAGE,
        "slide.html",
        ("page.js", "viewer.js") if viewer else ("page.js",),
        head=describe_slide(facts, _find_overview(slide_dir)),
        notes=[text for text in (fault, broken) if text] + list_notes(facts),
        cards=make_cards(facts),
        viewer=viewer,
        # without the parts of a viewer the pictures are shown
        overlay=None if viewer else read_picture(slide_dir / "overlay.png", _PICTURE_SIDE),
        heatmap=None if viewer else read_picture(slide_dir / "heatmap.png", _PICTURE_SIDE),
        places=None if viewer else read_picture(slide_dir / "attention.png", _PICTURE_SIDE),
        attention=read_picture(slide_dir / "attention_tiles.png", _PICTURE_SIDE),
        grade_name=grade.target.title if grade else "",
        contribution=f"the log odds of the predicted {'grade' if not grade or grade.target.is_grade else 'class'}"
        if not grade or grade.target.has_classes
        else grade.target.title,
        bars=_make_bars(grade) if grade else [],
        against=_tabulate_label_metrics(slide_dir, facts.slide_id),
        classes=tabulate_classes(result) if result else None,
        regions=tabulate_regions(result, viewer is not None) if result else None,
        mapped=result is not None,
        threshold=result.threshold if result else None,
        files=[(make_link(name), name, what) for name, what in _FILES if (slide_dir / name).is_file()],
    )


def update_slide_page(slide_dir: Path) -> str:
    """Write the page of a slide unless it is newer than its sources, and return the name of the page."""
    page = slide_dir / PAGE
    parts = [slide_dir / name for name, _ in _FILES] + [find_slide_table(slide_dir.parent.parent)]
    newest = max((part.stat().st_mtime_ns for part in parts if part.is_file()), default=0)
    if not page.is_file() or page.stat().st_mtime_ns <= newest:
        write_slide_page(slide_dir)
    return PAGE


def describe_sample(shown: int, count: int, table: str) -> str:
    """Return the note on a page that shows a part of the slides in a table."""
    return f"A random sample of {shown:,} of {count:,} slides; the table of all is {table}."


def make_slide_table(
    rows: Sequence[Row],
    keys: Sequence[str],
    folder: Path,
    why: Mapping[str, str],
    *up: str,
    thumbnails: int = MOST_THUMBNAILS,
) -> Table:
    """Lay out slides as a table with thumbnails that link to the slides' pages, and write those pages.

    Args:
        rows: One for each slide, with `slide_id`.
        keys: The columns, in order.
        folder: Folder of the slides' folders.
        why: Column to the reason why a figure in it may be missing.
        up: Names of the folders from the page to `folder`.
        thumbnails: Number of slides with a thumbnail.
    """
    cells: list[list[Cell]] = []
    for index, row in enumerate(rows):
        name = str(row.get("slide_id") or "")
        slide_dir = find_subfolder(folder, name)
        href = make_link(*up, name, update_slide_page(slide_dir)) if slide_dir else ""
        thumbnail: Picture | None = None
        if slide_dir and index < thumbnails:
            # A slide that was only graded has no overlay, and one graded from features perhaps no picture of its own.
            pictures = (slide_dir / name for name in ("overlay.png", "slide.jpg", "attention.png"))
            found = (read_picture(path, THUMBNAIL_SIDE, quality=80, bare=True) for path in pictures)
            thumbnail = next(filter(None, found), None)
        shown = Cell("slide", picture=thumbnail, href=href) if thumbnail else Cell(why="there is no picture")
        cells.append(
            [
                shown,
                *(make_cell(row.get(k), find_format(k), why.get(k, ""), href if k == "slide_id" else "") for k in keys),
            ]
        )
    more = len(rows) > thumbnails
    note = f"Thumbnails are shown for the first {thumbnails} slides." if more else ""
    heads = [Head(""), *(make_head(k, ONE_SLIDE.get(k, "")) for k in keys)]
    if not any(row[0].picture for row in cells):
        return Table(heads[1:], [row[1:] for row in cells])
    return Table(heads, cells, note=note)
