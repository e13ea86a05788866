"""The table of the slides of graded patients."""

from __future__ import annotations

from pathlib import Path

from panda.report.slide_page import make_slide_table
from panda.report.table import Table
from panda.tables import read_output_table

PATIENTS_TABLE = "patients.csv"
"""Table with a row for each slide of a graded patient: patient, slide_id, tiles, and their share of the attention."""
_COLUMNS = ("slide_id", "patient", "tiles", "attention")


def lay_out_patients(run_dir: Path, *up: str) -> Table:
    """Lay out the slides of the patients of a run, with links to their pages; without rows if bags are slides."""
    rows = read_output_table(run_dir / PATIENTS_TABLE)
    why = {"attention": "the coordinates of the tiles are unknown"}
    return make_slide_table(rows, _COLUMNS, run_dir / "slides", why, *up)
