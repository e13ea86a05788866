"""The faults of the rows of the table of slides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from panda.data.findings import Finding
from panda.data.slide_rows import SlideRow

COLUMNS = ("image_id", "data_provider", "isup_grade", "gleason_score")
"""The columns whose values are compared and shown."""


def list_values(row: SlideRow) -> tuple[str, str, str, str]:
    """Return the values of `COLUMNS`."""
    return row.slide_id, row.provider, row.isup_grade, row.gleason


def index_by_slide(table: Iterable[SlideRow]) -> dict[str, SlideRow]:
    """Return the first row of each slide, by its id, in the order of the table."""
    first: dict[str, SlideRow] = {}
    for row in table:
        first.setdefault(row.slide_id, row)
    return first


def check_table(table: Sequence[SlideRow]) -> list[Finding]:
    """Find faulty, contradicting and repeated rows, in the order of the rows."""
    found: list[Finding] = []
    by_id = index_by_slide(table)
    for row in table:
        missing = [] if row.isup_grade else [("missing_grade", "isup_grade is empty")]
        faults = list(dict.fromkeys([*row.faults, *missing, *row.check_score()]))
        if (before := by_id[row.slide_id]) is not row:
            pairs = zip(COLUMNS, list_values(row), list_values(before), strict=True)
            differing = [column for column, value, other in pairs if value != other]
            values = f"with another {', '.join(differing)}" if differing else "with the same values"
            faults.append(("duplicate_row", f"it is in row {before.number} already, {values}"))
        found += [Finding(row.slide_id, name, f"row {row.number}: {text}") for name, text in faults]
    return found
