"""The summary of an audit, `summary.json`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field

from panda.audit.duplicates import Duplicates
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
    """How often a kind of finding occurs.

    Attributes:
        severity: Severity of the finding.
        slides: Slides that have it.
        by_provider: The same for each provider.
    """

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
    """How the slides were inspected.

    Attributes:
        reader: See `SlideOptions`.
        mpp_override: See `SlideOptions`.
        deep: Every tile was decoded.
        inspection: Version of the rules of inspections.
        tissue: Version of the rules of tissue.
        hashes: Version of the rules of hashes.
    """

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
    crowded: list[str]
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
    data: str,
    table: Sequence[TableRow],
    findings: Sequence[Finding],
    duplicates: Duplicates | None,
    looked_with: InspectionSettings | None,
) -> AuditSummary:
    """Count what was found.

    Args:
        data: The folder of the data.
        table: All rows of the table.
        findings: All findings.
        duplicates: The duplicates; None if only the table was read.
        looked_with: How the slides were inspected; None if only the table was read.
    """
    first: dict[str, TableRow] = {}
    for row in table:
        first.setdefault(row.slide_id, row)
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
        slides=len(first),
        providers=_count_providers(first.values()),
        findings={
            name: FindingCount(
                severity=kind.severity,
                slides=len(slides[name]),
                by_provider=_count_providers(first[slide_id] for slide_id in slides[name]),
            )
            for name, kind in FINDINGS.items()
            if name in slides
        },
        worst={severity: worst[severity] for severity in get_args(Severity)},
        groups=None if duplicates is None else _count_groups(duplicates, first),
        crowded=[] if duplicates is None else list(duplicates.near.crowded),
        looked_with=looked_with,
    )


def find_worst_severity(findings: Iterable[Finding]) -> Severity | None:
    """Return the worst severity of the findings, or None if there are none."""
    severities = {found.severity for found in findings}
    return next((severity for severity in get_args(Severity) if severity in severities), None)


def _count_groups(duplicates: Duplicates, rows: dict[str, TableRow]) -> GroupCount:
    members = duplicates.members.values()
    return GroupCount(
        groups=len(members),
        slides=sum(map(len, members)),
        largest=max(map(len, members), default=0),
        with_conflicting_grades=sum(
            len({rows[slide_id].grade for slide_id in group} - {None}) > 1 for group in members
        ),
        pairs=len(duplicates.near.pairs),
    )


def _count_providers(rows: Iterable[TableRow]) -> dict[str, int]:
    """Return the number of rows of each provider, with unknown providers together at the end."""
    known = known_label_maps()
    counts = Counter(row.provider if row.provider in known else OTHER for row in rows)
    return {provider: counts[provider] for provider in (*known, OTHER) if counts[provider]}
