"""The summary of an audit, `summary.json`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field

from panda.audit.near_duplicates import Duplicates
from panda.audit.slide_table import TableRow
from panda.data.findings import FINDINGS, Finding, Severity
from panda.files import write_json
from panda.wsi.label_maps import known_label_maps

SUMMARY = "summary.json"
SCHEMA = 1
OTHER = "other"
"""In counts by provider: rows of an unknown provider."""


class _Summary(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class FindingCount(_Summary):
    """Number of slides that have a kind of finding, in all and for each provider."""

    severity: Severity
    slides: int
    by_provider: dict[str, int]


class GroupCount(_Summary):
    """Groups of near-duplicates, of two or more slides.

    Attributes:
        groups: Number of groups.
        slides: Number of their slides.
        largest: Slides of the largest group.
        with_conflicting_grades: Groups whose slides have different grades.
        pairs: Number of pairs that match.
    """

    groups: int
    slides: int
    largest: int
    with_conflicting_grades: int
    pairs: int


class InspectionSettings(_Summary):
    """How the slides were inspected: `SlideOptions`, `deep`, and the versions of the three kinds of rules."""

    reader: str
    mpp_override: float | None
    deep: bool
    inspection: int
    tissue: int
    hashes: int


class AuditSummary(_Summary):
    """The content of `summary.json`.

    Attributes:
        version: Version of this file, the key `schema`.
        data: The folder of the data.
        rows: Rows of the table.
        slides: Different slides of the table.
        providers: Slides of each provider.
        findings: The kinds of findings that occur, in the order of `FINDINGS`.
        worst: Slides by their worst severity.
        groups: Groups of near-duplicates; None if only the table was read.
        crowded: Slides that resemble so many others that their hashes are not reliable.
        looked_with: How the slides were inspected; None if only the table was read.
    """

    version: int = Field(alias="schema")
    data: str
    rows: int
    slides: int
    providers: dict[str, int]
    findings: dict[str, FindingCount]
    worst: dict[Severity, int]
    groups: GroupCount | None
    crowded: Sequence[str]
    looked_with: InspectionSettings | None = None

    @classmethod
    def read(cls, folder: Path) -> AuditSummary:
        """Read the summary of an audit's folder.

        Raises:
            OSError: If there is none.
            ValueError: If the file is not the summary of an audit.
        """
        return cls.model_validate_json((folder / SUMMARY).read_bytes())

    def write(self, folder: Path) -> None:
        """Write the summary into an audit's folder, whole or not at all."""
        absent = {"looked_with"} if self.looked_with is None else set()
        write_json(folder / SUMMARY, self.model_dump(mode="json", by_alias=True, exclude=absent))


def summarize(
    table: Sequence[TableRow],
    rows: Mapping[str, TableRow],
    findings: Sequence[Finding],
    duplicates: Duplicates | None,
    *,
    data: str,
    settings: InspectionSettings | None,
) -> AuditSummary:
    """Count the findings and the groups.

    `rows` has the first row of each slide, by its id. `duplicates` and `settings` are None if only the table was read.
    """
    slides: defaultdict[str, set[str]] = defaultdict(set)
    by_slide: defaultdict[str, list[Finding]] = defaultdict(list)
    for found in findings:
        slides[found.finding].add(found.slide_id)
        by_slide[found.slide_id].append(found)
    worst = Counter(find_worst_severity(own) for own in by_slide.values())
    return AuditSummary(
        schema=SCHEMA,
        data=data,
        rows=len(table),
        slides=len(rows),
        providers=_count_providers(rows.values()),
        findings={
            name: FindingCount(
                severity=kind.severity,
                slides=len(slides[name]),
                by_provider=_count_providers(rows[slide_id] for slide_id in slides[name]),
            )
            for name, kind in FINDINGS.items()
            if name in slides
        },
        worst={severity: worst[severity] for severity in get_args(Severity)},
        groups=None if duplicates is None else _count_groups(duplicates, rows),
        crowded=() if duplicates is None else duplicates.crowded,
        looked_with=settings,
    )


def find_worst_severity(findings: Iterable[Finding]) -> Severity | None:
    """Return the worst severity of the findings, or None if there are none."""
    return min((found.severity for found in findings), key=get_args(Severity).index, default=None)


def _count_groups(duplicates: Duplicates, rows: Mapping[str, TableRow]) -> GroupCount:
    members = duplicates.members.values()
    grades = [{rows[slide_id].grade for slide_id in group} - {None} for group in members]
    return GroupCount(
        groups=len(members),
        slides=sum(map(len, members)),
        largest=max(map(len, members), default=0),
        with_conflicting_grades=sum(len(own) > 1 for own in grades),
        pairs=len(duplicates.pairs),
    )


def _count_providers(rows: Iterable[TableRow]) -> dict[str, int]:
    """Return the number of rows of each provider, with unknown providers together at the end."""
    known = known_label_maps()
    counts = Counter(row.provider if row.provider in known else OTHER for row in rows)
    return {provider: counts[provider] for provider in (*known, OTHER) if counts[provider]}
