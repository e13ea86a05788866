"""The page of the fields to correct next: a picture of each field with the outlines of all maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.inference.field_grid import FieldBox
from panda.inference.field_scores import SlideMaps
from panda.inference.outline_drawing import draw_rings
from panda.inference.polygons import trace
from panda.inference.truth import read_truth
from panda.report.head import PageHead
from panda.report.page import write_page
from panda.report.run_folder import Picture, make_address, make_data_uri, make_link
from panda.report.sheet import SERIES
from panda.report.slide_page import PAGE as SLIDE_PAGE
from panda.report.table import Cell, Head, Table, format_value, make_cell, make_head
from panda.wsi.annotations.source import CORRECTED, TO_CORRECT
from panda.wsi.geometry import round_px
from panda.wsi.slide import Slide

PAGE = "fields.html"
_SIDE = 640
"""Longest side of the picture of a field, px."""
_LEAST = 1000
"""Part of a field below which an object or a hole has no outline, because lines around specks would hide the tissue."""
_LABEL = "#111111"
_NAMES = {
    "errors": "errors against the labels",
    "disagreement": "disagreement of the maps",
    "confidence": "low confidence",
}
_UNITS = {
    "errors": "missed cancer and false alarms",
    "disagreement": "tissue on which two maps differ, the mean over all pairs",
    "confidence": "tissue whose probability is near the threshold",
}
_COLUMNS = {
    "score_mm2": "Score",
    "missed_mm2": "Missed",
    "false_alarm_mm2": "False alarms",
    "disagreement_mm2": "Maps differ",
    "uncertain_mm2": "Uncertain",
    "tissue_mm2": "Tissue",
}
_WHY = {
    "missed_mm2": "there is no label",
    "false_alarm_mm2": "there is no label",
    "disagreement_mm2": "there is one map",
    "score_percent_of_tissue": "there is no tissue",
    "grade_confidence": "the slide was not graded",
}


def draw_field(slide: Slide, maps: SlideMaps, field: FieldBox) -> Picture:
    """Draw a field of a slide with the outline of the tumour of each map, and of the labelled cancer if there is any.

    Outlines are those of the thresholded maps, before the clean-up, without specks. The first map is above the others.
    """
    own, least = maps.resolution, field.width * field.height / _LEAST
    finest = max(field.width, field.height) * own.downsample / _SIDE
    view = slide.choose_resolution(downsample=max(1.0, finest))
    scale = own.downsample / view.downsample
    size = max(1, round_px(field.width * scale)), max(1, round_px(field.height * scale))
    corner = round_px(field.x * own.downsample), round_px(field.y * own.downsample)
    image = slide.read(view, corner, size, keep=False)
    masks: list[tuple[str, NDArray[np.bool_]]] = [
        (_choose_colour(number), maps.read_class_map(number, field) > 0) for number in range(len(maps.canvases))
    ]
    if maps.label is not None:
        masks.append((_LABEL, read_truth(maps.canvases[0], maps.label, maps.tissue, field).truth))
    for colour, mask in masks[::-1]:
        rings = [ring * scale for ring in trace(mask).rings if cv2.contourArea(ring.astype(np.int32)) >= least]
        red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
        draw_rings(image, rings, (red, green, blue), (2, 4))
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 85))
    return Picture(make_data_uri(data.tobytes(), "jpeg"), *size)


def _choose_colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def write_fields_page(
    output: Path,
    fields: Sequence[Mapping[str, Any]],
    slides: Sequence[Mapping[str, Any]],
    pictures: Sequence[Picture],
    *,
    folders: Sequence[Path],
    commands: Sequence[tuple[str, str]],
    left_out: Mapping[str, str],
) -> Path:
    """Write the page.

    Args:
        output: Gets the page.
        fields: The rows of `fields.csv`.
        slides: The rows of `slides.csv`.
        pictures: The picture of each field.
        folders: The folders of the maps.
        commands: What each command does, and the command.
        left_out: Why slides were left out, by their names.
    """
    reason = str(fields[0]["reason"])
    has_labels = any(row["missed_mm2"] is not None for row in slides)
    facts = [("Maps", ", ".join(map(str, folders))), ("Slides", str(len(slides))), ("Fields", str(len(fields)))]
    legend = [(str(folder), _choose_colour(number)) for number, folder in enumerate(folders)]
    return write_page(
        output / PAGE,
        "fields.html",
        head=PageHead("Corrections", f"Fields to correct next, by {_NAMES[reason]}", facts, commands),
        lead=_write_lead(fields, slides, reason),
        legend=[*legend, *([("label", _LABEL)] if has_labels else [])],
        figures=[
            (picture, _find_address(folders[0], output, row), _write_caption(row))
            for row, picture in zip(fields, pictures, strict=True)
        ],
        slides=_make_slide_table(slides),
        has_labels=has_labels,
        left_out=[f"{name} is left out: {why}" for name, why in left_out.items()],
        classes=(TO_CORRECT, CORRECTED),
    )


def _find_address(folder: Path, output: Path, row: Mapping[str, Any]) -> str:
    """Return the address of the place in the viewer of the first map, or of the GeoJSON if the map has no page."""
    page = folder / str(row["slide_id"]) / SLIDE_PAGE
    if not page.is_file():
        return make_link(str(row["slide_id"]), "fields.geojson")
    return f"{make_address(page, output)}#x={row['x']}&y={row['y']}&w={row['width']}&h={row['height']}"


def _write_lead(fields: Sequence[Mapping[str, Any]], slides: Sequence[Mapping[str, Any]], reason: str) -> str:
    """Write in a sentence how much of the score of all slides the fields hold."""
    held, whole = (sum(row["score_mm2"] for row in rows) for rows in (fields, slides))
    count = f"{len(fields)} field{'s hold' if len(fields) > 1 else ' holds'}"
    return (
        f"{count} {format_value(held, 'mm2')} mm² of {_UNITS[reason]}: {held / whole:.0%} of the "
        f"{format_value(whole, 'mm2')} mm² on {len(slides)} slide{'s' * (len(slides) > 1)}."
    )


def _write_caption(row: Mapping[str, Any]) -> str:
    parts = [
        f"{name.lower()} {format_value(row[key], 'mm2')} mm²"
        for key, name in _COLUMNS.items()
        if row[key] is not None and key != "score_mm2"
    ]
    return f"Field {row['rank']}: {row['slide_id']}, x {row['x']}, y {row['y']}. {', '.join(parts).capitalize()}."


def _make_slide_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    given = [key for key in _COLUMNS if any(row[key] is not None for row in rows)]
    more = {"score_percent_of_tissue": "Share of tissue"}
    if any(row["grade_confidence"] is not None for row in rows):
        more["grade_confidence"] = "Confidence of grade"
    heads = [Head("Slide"), *(make_head(key, _COLUMNS[key]) for key in given)]
    heads += [*(make_head(key, name) for key, name in more.items()), Head("Fields", figures=True)]
    body = []
    for row in rows:
        line = [make_cell(row["slide_id"], "id")]
        line += [make_cell(row[key], "mm2", _WHY.get(key, "")) for key in given]
        line += [make_cell(row[key], "percent" if "percent" in key else "headline", _WHY[key]) for key in more]
        body.append([*line, Cell(str(row["fields"]), sort=row["fields"], style="num")])
    return Table(heads, body)
