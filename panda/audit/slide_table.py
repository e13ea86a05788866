"""The rows of the table of slides, faulty ones too, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from panda.data.findings import Finding
from panda.data.manifest import COLUMNS, GRADES, check_row, find_table, locate_image, locate_mask
from panda.files import read_user_table
from panda.wsi.gleason import isup_grade_from_score


@dataclass(frozen=True)
class TableRow:
    """A row of the table of slides, correct or not.

    Attributes:
        number: Number of its line in the file; the header is line 1.
        slide_id: `image_id`.
        provider: `data_provider`.
        isup_grade: `isup_grade`, as text.
        gleason: `gleason_score`.
    """

    number: int
    slide_id: str
    provider: str
    isup_grade: str
    gleason: str

    @property
    def grade(self) -> int | None:
        """The ISUP grade; None if it is not an integer from 0 to 5."""
        return int(self.isup_grade) if self.isup_grade in map(str, GRADES) else None

    @property
    def faults(self) -> list[tuple[str, str]]:
        """The faults of the row by itself, see `panda.data.manifest.check_row`."""
        return check_row(dict(zip(COLUMNS, self._values, strict=True)))

    @property
    def has_file(self) -> bool:
        """Whether the id can name a file."""
        return all(name != "bad_id" for name, _ in self.faults)

    def image_path(self, root: Path) -> Path:
        """Return where the slide should be; only for rows with `has_file`."""
        return locate_image(root, self.slide_id)

    def mask_path(self, root: Path, suffix: str = "_mask") -> Path:
        """Return where the mask should be; only for rows with `has_file`."""
        return locate_mask(root, self.slide_id, suffix)

    @property
    def _values(self) -> tuple[str, str, str, str]:
        return self.slide_id, self.provider, self.isup_grade, self.gleason


def read_table(root: Path | str) -> list[TableRow]:
    """Read the table of slides of a folder in PANDA's layout, faulty rows too.

    Args:
        root: The folder that holds `train.csv`.

    Returns:
        The rows in their order.

    Raises:
        ManifestError: If the folder, the table or a column is missing, the table is not a CSV in UTF-8, or has no rows.
    """
    return [
        TableRow(number, *(row[column] for column in COLUMNS))
        for number, row in read_user_table(find_table(Path(root)), COLUMNS)
    ]


def check_table(rows: Iterable[TableRow]) -> list[Finding]:
    """Find faulty, contradicting and repeated rows.

    Args:
        rows: The rows of `read_table`.

    Returns:
        The findings in the order of the rows.
    """
    found: list[Finding] = []
    first: dict[str, TableRow] = {}
    for row in rows:
        faults = list(row.faults)
        if (fault := _check_score(row)) is not None:
            faults.append(fault)
        before = first.setdefault(row.slide_id, row)
        if before is not row:
            differing = [column for column, a, b in zip(COLUMNS, before._values, row._values, strict=True) if a != b]
            values = f"with another {', '.join(differing)}" if differing else "with the same values"
            faults.append(("duplicate_row", f"it is in row {before.number} already, {values}"))
        found += [Finding(row.slide_id, name, f"row {row.number}: {text}") for name, text in faults]
    return found


def _check_score(row: TableRow) -> tuple[str, str] | None:
    """Return what is wrong with the Gleason score of a row, or with the grade beside it."""
    try:
        by_score = isup_grade_from_score(row.gleason)
    except ValueError as error:
        return "bad_gleason", str(error)
    if row.grade is None or row.grade == by_score:
        return None
    return "contradicting_row", f"gleason_score {row.gleason} is ISUP {by_score}, isup_grade is {row.grade}"
