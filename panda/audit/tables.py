"""The tables and the summary of an audit, from the table of slides and the records of the slides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, TypeAdapter, field_validator
from pydantic_core import PydanticCustomError

from panda.audit.inspection import Inspection, find_outliers
from panda.audit.near_duplicates import Duplicates
from panda.audit.slide_table import list_values
from panda.data.findings import FINDINGS, Finding, Severity
from panda.data.slide_rows import SlideRow
from panda.files import write_json
from panda.stored import PathText, Plain, read_model
from panda.tables import write_table
from panda.wsi.geometry import mean_mpp
from panda.wsi.label_maps import get_label_maps
from panda.wsi.mpp import SlideMpp, describe_level, is_mixed
from panda.wsi.readers import ReaderName

AUDIT, FINDINGS_TABLE, GROUPS, PAIRS = "audit.csv", "findings.csv", "groups.csv", "pairs.csv"
SUMMARY = "summary.json"
SCHEMA: Literal[1] = 1
OTHER = "other"
"""In counts by provider: rows of an unknown provider."""

_ROW = ("slide_id", "provider", "isup_grade", "gleason_score", "findings", "worst")
_INSPECTED = (
    *("group", "group_slides", "width", "height", "downsamples", "mpp_x", "mpp_y", "mpp_source", "reader", "vendor"),
    *("file_bytes", "tissue_how", "tissue_fraction", "tissue_mm2", "pen_fraction", "sharpness", "blurred"),
    *("mask_width", "mask_height", "mask_level", "mask_codes", "cancer_fraction", "cancer_mm2", "labelled_on_tissue"),
)
_DIGITS = 6  # significant digits of the figures


def collect_findings(
    rows: Mapping[str, SlideRow],
    table_findings: Iterable[Finding],
    read_inspections: Callable[[], Iterable[Inspection]],
    duplicates: Duplicates | None,
) -> list[Finding]:
    """Return all findings, in the order of the slides in the table, then of the kinds in `FINDINGS`.

    `rows` has the first row of each slide, by its id. `read_inspections` gives the inspections at each call.
    """
    every = [*table_findings, *(finding for inspection in read_inspections() for finding in inspection.findings)]
    every += find_outliers(read_inspections())
    if duplicates is not None:
        every += duplicates.list_findings()
    order = {name: number for number, name in enumerate(FINDINGS)}
    return sorted(every, key=lambda finding: (rows[finding.slide_id].number, order[finding.finding]))


def write_findings(path: Path, findings: Iterable[Finding]) -> None:
    """Write `findings.csv`: a row for each finding, with its remedy."""
    rows = ((found.slide_id, found.finding, found.kind.severity, found.value, found.kind.remedy) for found in findings)
    write_table(path, rows, ("slide_id", "finding", "severity", "value", "what_to_do"))


def write_pairs(path: Path, duplicates: Duplicates, rows: Mapping[str, SlideRow]) -> None:
    """Write `pairs.csv`: slides that match, closest first.

    The slides of a pair can be in two groups, if most slides of these groups do not match.
    """
    files, groups = duplicates.file_numbers, duplicates.groups
    matches = {(pair.a, pair.b): pair.distance for pair in duplicates.pairs}
    matches.update(((same[0], other), 0.0) for same in duplicates.identical for other in same[1:])
    lines = []
    for (a, b), distance in sorted(matches.items(), key=lambda match: (match[1], match[0])):
        one, other = rows[a], rows[b]
        grades = {one.grade, other.grade} - {None}
        answers = (files.get(a, a) == files.get(b, b), groups[a] == groups[b], len(grades) > 1)
        lines.append(
            (
                *(a, b, round(distance, _DIGITS), *("yes" if answer else "no" for answer in answers)),
                *(one.provider, other.provider, one.isup_grade, other.isup_grade, one.gleason, other.gleason),
            )
        )
    columns = ("slide_a", "slide_b", "distance", "same_file", "same_group", "grades_conflict")
    each = tuple(f"{name}_{side}" for name in ("provider", "isup_grade", "gleason_score") for side in "ab")
    write_table(path, lines, columns + each)


def write_audit(
    path: Path,
    rows: Iterable[SlideRow],
    findings: Iterable[Finding],
    read: Callable[[SlideRow], Inspection] | None,
    duplicates: Duplicates | None,
) -> None:
    """Write `audit.csv`: a row for each slide.

    `read` gives the inspection of a slide; it and the duplicates are None if only the table was read.
    """
    by_slide: defaultdict[str, list[Finding]] = defaultdict(list)
    for found in findings:
        by_slide[found.slide_id].append(found)
    sizes = {} if duplicates is None else Counter(duplicates.groups.values())

    def lines() -> Iterator[Sequence[Any]]:
        for row in rows:
            own = by_slide[row.slide_id]
            names = " ".join(dict.fromkeys(found.finding for found in own))
            line = (*list_values(row), names, find_worst_severity(own) or "")
            if read is None or duplicates is None:
                yield line
            else:
                group = duplicates.groups.get(row.slide_id, "")
                yield (*line, group, sizes.get(group, ""), *_list_values(read(row)))

    write_table(path, lines(), _ROW if read is None else _ROW + _INSPECTED)


def _list_values(seen: Inspection) -> list[Any]:
    """Return the values of an inspection in the order of `_INSPECTED`, without the group."""
    width, height = seen.level_dimensions[0] if seen.level_dimensions else (None, None)
    values = (
        *(width, height, " ".join(map(_format, seen.downsamples)), *(seen.mpp or (None, None)), seen.mpp_source),
        *(seen.reader, seen.vendor, seen.file_bytes, seen.tissue_how, seen.tissue_fraction, seen.tissue_mm2),
        *(seen.pen_fraction, seen.sharpness, seen.blurred, *(seen.mask_dimensions or (None, None)), seen.mask_level),
        " ".join(f"{code}:{count}" for code, count in seen.mask_codes.items()),
        *(seen.cancer_fraction, seen.cancer_mm2, seen.labelled_on_tissue),
    )
    return [_format(value) if isinstance(value, float) else value for value in values]


def _format(value: float) -> str:
    return f"{value:.{_DIGITS}g}"


_REMEDY = "it was edited or written by another version: run the audit again"


class FindingCount(Plain, frozen=True):
    """Number of slides that have a kind of finding, in all and for each provider."""

    severity: Severity
    slides: NonNegativeInt
    by_provider: dict[str, NonNegativeInt]


class GroupCount(Plain, frozen=True):
    """Numbers of groups of near-duplicates with two or more slides, of their slides, and of pairs that match."""

    groups: NonNegativeInt
    slides: NonNegativeInt
    largest: NonNegativeInt
    with_conflicting_grades: NonNegativeInt
    pairs: NonNegativeInt


class InspectionSettings(Plain, frozen=True):
    """How the slides were inspected: `SlideOptions`, `deep`, and the versions of the three kinds of rules."""

    reader: ReaderName
    mpp_override: SlideMpp | None
    deep: bool
    inspection: NonNegativeInt
    tissue: NonNegativeInt
    hashes: NonNegativeInt


class LevelScale(Plain, frozen=True):
    """Lowest and highest µm/px (mean of x and y) of a pyramid level over the slides that have it and state µm/px."""

    level: NonNegativeInt
    slides: NonNegativeInt
    lowest_mpp: PositiveFloat
    highest_mpp: PositiveFloat

    @property
    def is_mixed(self) -> bool:
        """Whether the scales of the slides differ clearly."""
        return is_mixed(self.lowest_mpp, self.highest_mpp)

    def describe(self) -> str:
        """Return the range in a sentence."""
        return describe_level(self.level, self.lowest_mpp, self.highest_mpp, f"{self.slides:,} slides")


class AuditSummary(Plain, frozen=True):
    """The content of `summary.json`.

    Attributes:
        data: The folder or the table of the data.
        rows: Number of rows of the table.
        slides: Number of different slides of the table.
        providers: Number of slides of each provider.
        findings: The kinds of findings that occur, in the order of `FINDINGS`.
        worst: Number of slides by their worst severity.
        groups: Groups of near-duplicates; None if only the table was read.
        levels: The scale of each pyramid level; empty if only the table was read.
        crowded: Slides that resemble so many others that their hashes are not reliable.
        settings: How the slides were inspected, `looked_with` in the file; None if only the table was read.
    """

    version: Literal[1] = Field(alias="schema")
    data: PathText
    rows: NonNegativeInt
    slides: NonNegativeInt
    providers: dict[str, NonNegativeInt]
    findings: dict[str, FindingCount]
    worst: dict[Severity, NonNegativeInt]
    groups: GroupCount | None
    crowded: tuple[str, ...]
    levels: tuple[LevelScale, ...] = ()
    settings: InspectionSettings | None = Field(default=None, alias="looked_with")

    @field_validator("findings")
    @classmethod
    def _check_names(cls, findings: dict[str, FindingCount]) -> dict[str, FindingCount]:
        if unknown := sorted(set(findings) - set(FINDINGS)):
            raise PydanticCustomError("findings", "{name} is no kind of finding", {"name": unknown[0]})
        return findings

    @classmethod
    def read(cls, folder: Path) -> AuditSummary:
        """Read the summary of an audit's folder, or raise a `PandaError` if the file is another one."""
        return read_model(folder / SUMMARY, TypeAdapter(cls), "run the audit again")

    def write(self, folder: Path) -> None:
        """Write the summary into an audit's folder, whole or not at all."""
        absent = {"settings"} if self.settings is None else set()
        write_json(folder / SUMMARY, self.model_dump(mode="json", by_alias=True, exclude=absent))


def summarize(
    table: Sequence[SlideRow],
    rows: Mapping[str, SlideRow],
    findings: Sequence[Finding],
    duplicates: Duplicates | None,
    *,
    data: str,
    settings: InspectionSettings | None,
    levels: Sequence[LevelScale] = (),
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
        levels=tuple(levels),
        crowded=() if duplicates is None else tuple(duplicates.crowded),
        looked_with=settings,
    )


def measure_levels(inspections: Iterable[Inspection]) -> list[LevelScale]:
    """Return the range of µm/px of each pyramid level over all slides that have it."""
    scales: defaultdict[int, list[float]] = defaultdict(list)
    for seen in inspections:
        if seen.mpp is not None:
            for level, downsample in enumerate(seen.downsamples):
                scales[level].append(mean_mpp(seen.mpp) * downsample)
    return [
        LevelScale(level=level, slides=len(own), lowest_mpp=min(own), highest_mpp=max(own))
        for level, own in sorted(scales.items())
    ]


def find_worst_severity(findings: Iterable[Finding]) -> Severity | None:
    """Return the worst severity of the findings, or None if there are none."""
    return min((found.kind.severity for found in findings), key=get_args(Severity).index, default=None)


def _count_groups(duplicates: Duplicates, rows: Mapping[str, SlideRow]) -> GroupCount:
    members = duplicates.members.values()
    grades = [{rows[slide_id].grade for slide_id in group} - {None} for group in members]
    return GroupCount(
        groups=len(members),
        slides=sum(map(len, members)),
        largest=max(map(len, members), default=0),
        with_conflicting_grades=sum(len(own) > 1 for own in grades),
        pairs=len(duplicates.pairs),
    )


def _count_providers(rows: Iterable[SlideRow]) -> dict[str, int]:
    """Return the number of rows of each provider, with unknown providers together at the end."""
    known = get_label_maps()
    counts = Counter(row.provider if row.provider in known else OTHER for row in rows)
    return {provider: counts[provider] for provider in (*known, OTHER) if counts[provider]}
