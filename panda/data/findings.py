"""What can be wrong with a data set: every kind of finding, and those that the table of slides alone shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from panda.data.manifest import (
    COLUMNS,
    GRADES,
    SlideRecord,
    image_path,
    mask_path,
    row_faults,
    table_of,
)
from panda.files import read_user_table
from panda.wsi.gleason import isup_grade_from_score

Severity = Literal["error", "warning", "note"]
"""`error`: training refuses the table, the slide or its mask as it is. `warning`: it would be used and may mislead.
`note`: worth a look."""

_SHOWN = 3


@dataclass(frozen=True)
class FindingKind:
    """One kind of finding.

    Attributes:
        name: What `data.exclude` and the audit's tables call it.
        severity: See `Severity`.
        meaning: What is the case, in a sentence.
        remedy: What to do about it.
    """

    name: str
    severity: Severity
    meaning: str
    remedy: str


def _kinds(*kinds: tuple[str, Severity, str, str]) -> Mapping[str, FindingKind]:
    return MappingProxyType({kind[0]: FindingKind(*kind) for kind in kinds})


FINDINGS: Mapping[str, FindingKind] = _kinds(
    (
        "bad_id",
        "error",
        "The image_id is empty or no plain file name.",
        "Correct the row, or remove it from the table.",
    ),
    (
        "unknown_provider",
        "error",
        "The row's data_provider is none whose label codes are known.",
        "Correct data_provider, or remove the row from the table.",
    ),
    (
        "bad_grade",
        "error",
        "The row's isup_grade is no integer 0 to 5.",
        "Correct isup_grade, or remove the row from the table.",
    ),
    (
        "bad_gleason",
        "note",
        "The row's gleason_score is neither a score such as 3+4 nor negative nor 0+0.",
        "Correct gleason_score; the grade itself is taken from isup_grade.",
    ),
    (
        "duplicate_row",
        "error",
        "The image_id occurs in an earlier row already.",
        "Keep one row of each image_id; where they differ, ask whoever made the table which one holds.",
    ),
    (
        "contradicting_row",
        "warning",
        "The ISUP grade is not that of the Gleason score.",
        "Correct the row if you know which one holds, else leave the slide out of grading.",
    ),
    (
        "missing_slide",
        "error",
        "The table lists the slide, but its file is not there.",
        "Fetch the file, or leave the slide out.",
    ),
    (
        "unopenable",
        "error",
        "The slide's file is there, but no reader opens it.",
        "Fetch the file anew, or leave the slide out.",
    ),
    (
        "unreadable_region",
        "error",
        "The slide opens, or its tables can be read, but some of its pixels are not there or do not decode.",
        "Fetch the file anew, or leave the slide out.",
    ),
    (
        "no_tissue",
        "error",
        "Nothing but glass, ink, lines and specks is seen on the slide.",
        "Look at the slide; leave it out if it is blank.",
    ),
    (
        "missing_mask",
        "warning",
        "The slide has no label mask.",
        "Leave the slide out of segmentation; a missing mask is not a negative. Grading by isup_grade needs none.",
    ),
    (
        "unopenable_mask",
        "error",
        "The mask's file is there, but it cannot be opened or some of it does not decode.",
        "Fetch the mask anew, or leave the slide out of segmentation.",
    ),
    (
        "unknown_mask_code",
        "error",
        "The mask holds codes that its provider does not use.",
        "Check that data_provider is right and the mask was stored without loss, else leave the slide out.",
    ),
    (
        "mask_geometry",
        "error",
        "The mask has another shape than its slide, so it is no mask of it.",
        "Check the pairing of slide and mask, else leave the slide out of segmentation.",
    ),
    (
        "empty_mask_graded",
        "warning",
        "The slide has a grade of 1 or more, but its mask labels nothing at all.",
        "Leave the slide out of segmentation: its unlabelled cancer would be taught as none.",
    ),
    (
        "benign_mask_cancer_grade",
        "warning",
        "The slide has a grade of 1 or more, and its mask labels tissue but no cancer.",
        "Leave the slide out of segmentation, unless the table is wrong.",
    ),
    (
        "cancer_mask_benign_grade",
        "warning",
        "The slide has grade 0, but its mask labels cancer.",
        "Look at the slide: either the grade or the mask is wrong. Leave it out if you cannot tell.",
    ),
    (
        "mpp_missing",
        "warning",
        "The slide states no µm/px.",
        "Give data.mpp_override if you know it; else areas in mm² are unknown and data.mpp cannot be used.",
    ),
    (
        "mpp_nonsense",
        "warning",
        "The slide states µm/px that no scanner has.",
        "Give data.mpp_override if you know it; else areas in mm² are unknown and data.mpp cannot be used.",
    ),
    (
        "mpp_unlike_provider",
        "note",
        "The slide's µm/px is unlike that of nearly all other slides of its provider.",
        "Ask for patches by data.mpp rather than data.level; check the value if it is far off.",
    ),
    (
        "unusual_levels",
        "note",
        "The slide's pyramid is unlike that of nearly all others of its provider, or of little use.",
        "Ask for patches by data.mpp rather than data.level; expect slow reading where small levels are missing.",
    ),
    (
        "pen_marks",
        "note",
        "There is ink of a pen on the slide.",
        "Look at it: ink over tissue hides it, and ink beside cancer may be what a network learns.",
    ),
    (
        "blur",
        "warning",
        "The tissue is out of focus.",
        "Look at it; leave the slide out if nuclei cannot be told apart.",
    ),
    (
        "exact_duplicate",
        "warning",
        "Another slide has the very same file content.",
        "Keep one of them, or give data.groups so that they never straddle a split.",
    ),
    (
        "near_duplicate",
        "warning",
        "Another slide shows nearly the same tissue.",
        "Give data.groups, so that they never straddle a split; compare their grades.",
    ),
)
"""Every kind of finding by its name, in the order in which they are shown."""

REFUSED_ROWS = ("bad_id", "unknown_provider", "bad_grade", "duplicate_row")
"""Findings whose rows `panda.data.manifest.read_manifest` refuses: no filter helps, the table must be corrected."""

FILE_FINDINGS: Mapping[str, Callable[[SlideRecord], bool]] = MappingProxyType(
    {
        "missing_slide": lambda record: not record.image_path.is_file(),
        "missing_mask": lambda record: record.mask_path is None or not record.mask_path.is_file(),
    }
)
"""Those that a look at the folder shows, so that `data.exclude` needs no audit for them."""


@dataclass(frozen=True)
class Finding:
    """Something found about one slide.

    Attributes:
        slide_id: The slide, as the table writes it.
        finding: A name in `FINDINGS`.
        value: What was found, in words and numbers.
    """

    slide_id: str
    finding: str
    value: str

    def __post_init__(self) -> None:
        assert self.finding in FINDINGS, f"no finding is called {self.finding}"

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return FINDINGS[self.finding].severity

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return FINDINGS[self.finding].remedy


@dataclass(frozen=True)
class TableRow:
    """A row of the table of slides as it is, right or wrong.

    Attributes:
        number: Of its line in the file, the header being 1.
        slide_id: `image_id`.
        provider: `data_provider`.
        isup_grade: As written.
        gleason: `gleason_score`.
    """

    number: int
    slide_id: str
    provider: str
    isup_grade: str
    gleason: str

    @property
    def grade(self) -> int | None:
        """The ISUP grade; None where it is no integer 0..5."""
        return int(self.isup_grade) if self.isup_grade in map(str, GRADES) else None

    @property
    def faults(self) -> list[tuple[str, str]]:
        """What makes it no record, see `panda.data.manifest.row_faults`."""
        return row_faults(dict(zip(COLUMNS, self._values, strict=True)))

    @property
    def has_file(self) -> bool:
        """Whether its id names a file."""
        return all(name != "bad_id" for name, _ in self.faults)

    def image_path(self, root: Path) -> Path:
        """Where the slide should lie; only for rows that `has_file`."""
        return image_path(root, self.slide_id)

    def mask_path(self, root: Path, suffix: str = "_mask") -> Path:
        """Where the mask should lie; only for rows that `has_file`."""
        return mask_path(root, self.slide_id, suffix)

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
        ManifestError: The folder, the table or a column is missing, it is no CSV in UTF-8, or it has no rows.
    """
    return [
        TableRow(number, *(row[column] for column in COLUMNS))
        for number, row in read_user_table(table_of(Path(root)), COLUMNS)
    ]


def table_findings(rows: Iterable[TableRow]) -> list[Finding]:
    """Find what the table alone shows: faulty, contradicting and repeated rows.

    Args:
        rows: Of `read_table`.

    Returns:
        The findings in the order of the rows.
    """
    found: list[Finding] = []
    first: dict[str, TableRow] = {}
    for row in rows:
        said = list(row.faults)
        if (about_score := _score_fault(row)) is not None:
            said.append(about_score)
        before = first.setdefault(row.slide_id, row)
        if before is not row:
            differing = [column for column, a, b in zip(COLUMNS, before._values, row._values, strict=True) if a != b]
            how = f"with another {', '.join(differing)}" if differing else "with the same values"
            said.append(("duplicate_row", f"it is in row {before.number} already, {how}"))
        found += [Finding(row.slide_id, name, f"row {row.number}: {text}") for name, text in said]
    return found


def _score_fault(row: TableRow) -> tuple[str, str] | None:
    """What is wrong with the Gleason score of a row, or with the grade beside it."""
    try:
        by_score = isup_grade_from_score(row.gleason)
    except ValueError as error:
        return "bad_gleason", str(error)
    if row.grade is None or row.grade == by_score:
        return None
    return "contradicting_row", f"gleason_score {row.gleason} is ISUP {by_score}, isup_grade is {row.grade}"


def group_findings(
    finding: Literal["exact_duplicate", "near_duplicate"], groups: Iterable[Sequence[str]]
) -> list[Finding]:
    """Make a finding of each slide of groups of slides that are one another's duplicates.

    Args:
        finding: Which kind of duplicates they are.
        groups: Ids of the slides of each group; groups of one are passed over.
    """
    found = []
    for group in groups:
        for slide_id in group if len(group) > 1 else ():
            others = [other for other in group if other != slide_id]
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            found.append(Finding(slide_id, finding, f"{', '.join(others[:_SHOWN])}{more}"))
    return found
