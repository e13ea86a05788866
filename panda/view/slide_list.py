"""The slides that the viewer shows: those of an output folder with their figures, or those of a folder of slides."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panda.data.manifest import SlideRecord, read_labels
from panda.data.mapped_slide import RESULT_FILE
from panda.data.slide_files import SLIDE_SUFFIXES, sort_slide_files
from panda.data.slide_rows import IMAGES, TABLE
from panda.errors import PandaError
from panda.files import find_paths
from panda.inference.slide_result import read_slide_facts
from panda.report.run_folder import make_natural_key
from panda.report.table import Head, find_format, make_cell, make_head
from panda.tables import OutputTable
from panda.wsi.label_maps import LabelMap

_TABLES = ("quantification.csv", "grades.csv", "test_slides.csv", "slides.csv")
_COLUMNS = {
    "tumor_percent_of_tissue": "Tumour",
    "tumor_mm2": "Tumour",
    "isup_predicted": "ISUP",
    "cancer_predicted": "Cancer",
    "predicted_class": "Predicted",
    "rule_score": "Gleason",
    "isup_grade": "Given ISUP",
    "dice": "Dice",
}
"""Figures of the list, if the table has them, with short names."""


@dataclass(frozen=True)
class ListedSlide:
    """A slide that can be shown.

    Attributes:
        slide_id: Its name.
        folder: Its folder in an output; None if it was not mapped or graded.
        path: Its file; None if its folder knows it.
        figures: Its row in the table of the output.
    """

    slide_id: str
    folder: Path | None = None
    path: Path | None = None
    figures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SlideList:
    """The slides in a fixed order; their numbers are their names in addresses.

    Attributes:
        title: Name of the folder or file that was given.
        slides: The slides.
        columns: Keys of the figures to show.
        labels: Rows of a table of labels by the name of the slide.
    """

    title: str
    slides: tuple[ListedSlide, ...]
    columns: tuple[str, ...] = ()
    labels: Mapping[str, SlideRecord] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the list as the page reads it: heads of columns, and rows of texts and sort keys."""
        heads: list[Head] = [make_head(key, _COLUMNS[key]) for key in self.columns]
        rows = []
        for slide in self.slides:
            cells = [make_cell(slide.figures.get(key), find_format(key)) for key in self.columns]
            rows.append({"name": slide.slide_id, "cells": [[cell.text, cell.sort] for cell in cells]})
        return {
            "title": self.title,
            "heads": [{"label": head.label, "unit": head.unit, "figures": head.figures} for head in heads],
            "slides": rows,
        }


def find_slides(given: Path, labels: Path | None = None, provider: str | None = None) -> SlideList:
    """Find the slides of an output folder, of a run, of a folder of slides, or one slide.

    Args:
        given: The folder or file.
        labels: A folder in PANDA's layout or a table with labels; None for that of a given folder in PANDA's layout.
        provider: Provider of slides whose table names none.

    Raises:
        PandaError: If there are no slides, or the table of labels is faulty.
    """
    if labels is None and (given / TABLE).is_file():
        labels = given
    folders = _find_results(given)
    records = read_labels(labels, _read_label_maps(folders), provider, needs_slides=False) if labels else []
    known = {record.slide_id: record for record in records}
    title = given.absolute().name
    if folders:
        rows = _read_figures(given)
        slides = tuple(ListedSlide(path.name, path, None, rows.get(path.name, {})) for path in folders)
        present = {key for row in rows.values() for key, value in row.items() if value}
        return SlideList(title, slides, tuple(key for key in _COLUMNS if key in present), known)
    paths = _find_files(given)
    return SlideList(title, tuple(ListedSlide(path.stem, None, path) for path in paths), labels=known)


def _find_results(given: Path) -> list[Path]:
    """Return the folders of slides in an output or a run, or the folder itself if it is one.

    Raises:
        OSError: If one of several folders cannot be read.
    """
    if (given / RESULT_FILE).is_file():
        return [given]
    for home in (given, given / "slides"):
        if any(home.glob(f"*/{RESULT_FILE}")):
            found = find_paths(f"{glob.escape(str(home))}/*/{RESULT_FILE}")
            return sorted((file.parent for file in found), key=lambda folder: make_natural_key(folder.name))
    return []


def _list_jobs(given: Path) -> list[str]:
    """Return the folders of the jobs of a multirun of `infer.py`; none in another folder."""
    found = {file.parent.parent.name for file in find_paths(f"{glob.escape(str(given))}/*/*/{RESULT_FILE}")}
    return sorted(found, key=make_natural_key)


def _read_label_maps(folders: Sequence[Path]) -> Mapping[str, LabelMap]:
    """Return the label maps of the checkpoint that made the results: of the first one that can be read."""
    for folder in folders:
        with contextlib.suppress(PandaError, OSError):  # they are named when the slide is opened
            return read_slide_facts(folder).label_maps
    return {}


def _read_figures(given: Path) -> dict[str, dict[str, str]]:
    """Return the rows of the table of an output by slide; none without a table."""
    tables = [folder / name for folder in (given, given.parent) for name in _TABLES]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        return {}
    return {row.get("slide_id", ""): row for row in OutputTable(table)}


def _find_files(given: Path) -> Sequence[Path]:
    """Return the slides of a folder, or one slide."""
    if given.is_file():
        return (given,)
    if not given.is_dir():
        raise PandaError(f"{given}: there is no such folder or file; give the output of infer.py, a run, or slides")
    home = given / IMAGES if (given / IMAGES).is_dir() else given
    files = sort_slide_files(home.iterdir())
    if not files.slides:
        if jobs := _list_jobs(given):
            raise PandaError(f"{given}: it holds jobs of a multirun; give the folder of one job: {', '.join(jobs)}")
        passed_over = files.describe_passed_over()
        raise PandaError(
            f"{given}: it has no folder with {RESULT_FILE}, and no slide"
            f"{passed_over and f' (passed over: {passed_over})'}; give the output of infer.py, the folder of a run, or "
            f"slides such as {', '.join(SLIDE_SUFFIXES[:3])}"
        )
    return files.slides
