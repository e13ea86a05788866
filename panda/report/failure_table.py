"""Lay out the table of failures of a page."""

from __future__ import annotations

from pathlib import Path

from panda.report.agreement import MOST_SHOWN
from panda.report.table import Cell, Head, Table
from panda.tables import OutputTable


def make_failure_table(path: Path) -> Table:
    """Read `failures.csv`: slide, stage, error and message. A long table is cut, with a note."""
    styles = {"slide_id": "id", "stage": "", "error": "bad", "message": "pre"}
    found, count = OutputTable(path), 0
    rows = []
    for count, row in enumerate(found, 1):
        if count <= MOST_SHOWN:
            rows.append([Cell(row.get(key, ""), style=styles[key]) for key in styles])
    note = f"The first {MOST_SHOWN:,} of {count:,}." if count > MOST_SHOWN else ""
    return Table([Head("Slide"), Head("Stage"), Head("Error"), Head("Message")], rows, note=note)
