"""The rows of the table of slides, faulty ones too, and their faults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from panda.data.findings import Finding
from panda.data.manifest import COLUMNS, NEEDED, check_row, find_table, parse_grade
from panda.tables import read_user_table
from panda.wsi.gleason import isup_grade_from_score


@dataclass(frozen=True)
class TableRow:
    """A row of the table of slides, correct or not, as text.

    `number` is the number of its line in the file; the header is line 1.
    """

    number: int
    slide_id: str
    provider: str
    isup_grade: str
    gleason: str

    @property
    def grade(self) -> int | None:
        """The ISUP grade; None if there is none, or it is no whole number from 0 to 5."""
        try:
            return parse_grade(self.isup_grade)
        except ValueError:
            return None

    @property
    def faults(self) -> list[tuple[str, str]]:
        """The faults of the row by itself, see `panda.data.manifest.check_row`."""
        return check_row(self.values)

    @property
    def has_file(self) -> bool:
        """Whether the id can name a file."""
        return all(name != "bad_id" for name, _ in self.faults)

    @property
    def values(self) -> dict[str, str]:
        """The values by column."""
        values = (self.slide_id, self.provider, self.isup_grade, self.gleason)
        return dict(zip(COLUMNS, values, strict=True))


def read_table(root: Path | str) -> list[TableRow]:
    """Read the table of slides of a folder in PANDA's layout, faulty rows too.

    Raises:
        ManifestError: If the folder, the table or a column is missing, the table is not a CSV in UTF-8, or has no rows.
    """
    rows = read_user_table(find_table(Path(root)), NEEDED)
    table = [TableRow(number, *(row.get(column, "") for column in COLUMNS)) for number, row in rows]
    # a grade is spelled in one way, because tables and pages compare its text
    return [row if row.grade is None else replace(row, isup_grade=str(row.grade)) for row in table]


def index_by_slide(table: Iterable[TableRow]) -> dict[str, TableRow]:
    """Return the first row of each slide, by its id, in the order of the table."""
    first: dict[str, TableRow] = {}
    for row in table:
        first.setdefault(row.slide_id, row)
    return first


def check_table(table: Sequence[TableRow]) -> list[Finding]:
    """Find faulty, contradicting and repeated rows, in the order of the rows."""
    found: list[Finding] = []
    by_id = index_by_slide(table)
    for row in table:
        faults = [*row.faults, *_check_score(row)]
        if (before := by_id[row.slide_id]) is not row:
            differing = [column for column, value in row.values.items() if value != before.values[column]]
            values = f"with another {', '.join(differing)}" if differing else "with the same values"
            faults.append(("duplicate_row", f"it is in row {before.number} already, {values}"))
        found += [Finding(row.slide_id, name, f"row {row.number}: {text}") for name, text in faults]
    return found


def _check_score(row: TableRow) -> list[tuple[str, str]]:
    """Return the fault of the Gleason score of a row, or of the grade beside it."""
    missing = [] if row.isup_grade else [("missing_grade", "isup_grade is empty")]
    if not row.gleason:
        return missing
    try:
        by_score = isup_grade_from_score(row.gleason)
    except ValueError as error:
        return [*missing, ("bad_gleason", str(error))]
    if row.grade is None or row.grade == by_score:
        return missing
    return [("contradicting_row", f"gleason_score {row.gleason} is ISUP {by_score}, isup_grade is {row.grade}")]
