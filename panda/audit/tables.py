"""The tables of an audit, made from the table of slides and the records of the slides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from panda.audit.inspection import Inspection, dataset_findings, same_files
from panda.audit.near_duplicates import NearDuplicates, group_near_duplicates
from panda.audit.slide_table import TableRow
from panda.data.findings import FINDINGS, Finding, Severity
from panda.files import write_table
from panda.wsi.label_maps import known_label_maps

AUDIT, FINDINGS_TABLE, GROUPS, PAIRS = "audit.csv", "findings.csv", "groups.csv", "pairs.csv"
OTHER = "other"
"""In counts by provider: rows of a provider that is not known."""

_ROW = ("slide_id", "provider", "isup_grade", "gleason_score", "findings", "worst")
_SEEN = (
    *("group", "group_slides", "width", "height", "downsamples", "mpp_x", "mpp_y", "mpp_source", "reader", "vendor"),
    *("file_bytes", "tissue_how", "tissue_fraction", "tissue_mm2", "pen_fraction", "sharpness", "blurred"),
    *("mask_width", "mask_height", "mask_level", "mask_codes", "cancer_fraction", "cancer_mm2", "labelled_on_tissue"),
)
_SHOWN = 3
_DIGITS = 6  # significant, of figures in the tables


@dataclass(frozen=True)
class Duplicates:
    """Which slides show the same tissue.

    Attributes:
        groups: Slide id → group, of every slide whose id names a file.
        near: What their hashes say.
        twins: Ids of slides whose files are the same to the byte.
    """

    groups: Mapping[str, str]
    near: NearDuplicates
    twins: Sequence[Sequence[str]]

    @property
    def members(self) -> dict[str, list[str]]:
        """Group → its slides, of groups of two or more."""
        members: defaultdict[str, list[str]] = defaultdict(list)
        for slide_id, group in self.groups.items():
            members[group].append(slide_id)
        return {group: slides for group, slides in members.items() if len(slides) > 1}

    def findings(self) -> list[Finding]:
        """Exact duplicates, and near-duplicates that are more than that."""
        exact = {slide_id: number for number, same in enumerate(self.twins) for slide_id in same}
        near = [
            slides
            for slides in self.members.values()
            if len({exact.get(slide_id, slide_id) for slide_id in slides}) > 1
        ]
        return [*group_findings("exact_duplicate", self.twins), *group_findings("near_duplicate", near)]


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


def find_duplicates(seen: Callable[[], Iterable[Inspection]], path_of: Callable[[str], Path]) -> Duplicates:
    """Group slides of the same tissue, by their files and by the hashes of their tissue.

    Args:
        seen: Gives the inspections of all slides whose id names a file, each time it is called.
        path_of: Slide id → its file.

    Raises:
        OSError: A file cannot be read any more.
    """
    near = group_near_duplicates({inspection.slide_id: inspection.hashes for inspection in seen()})
    twins = same_files(seen(), path_of)
    groups = dict(near.groups)
    for same in twins:  # of files without tissue, or whose hashes are a crowd's
        names = {groups[slide_id] for slide_id in same}
        if len(names) > 1:
            groups = {slide_id: min(names) if group in names else group for slide_id, group in groups.items()}
    return Duplicates(groups, near, twins)


def all_findings(
    rows: Sequence[TableRow],
    found: Iterable[Finding],
    seen: Callable[[], Iterable[Inspection]],
    duplicates: Duplicates | None,
) -> list[Finding]:
    """Everything found, by the order of the slides in the table, then of the kinds in `FINDINGS`.

    Args:
        rows: Of the table.
        found: In the table alone.
        seen: Gives the inspections, each time it is called; none where the slides were not looked at.
        duplicates: Of the slides; None where they were not looked at.
    """
    every = [*found, *(finding for inspection in seen() for finding in inspection.findings)]
    every += dataset_findings(seen())
    if duplicates is not None:
        every += duplicates.findings()
    place: dict[str, int] = {}
    for row in rows:
        place.setdefault(row.slide_id, row.number)
    order = {name: number for number, name in enumerate(FINDINGS)}
    return sorted(every, key=lambda finding: (place[finding.slide_id], order[finding.finding]))


def write_findings(path: Path, findings: Iterable[Finding]) -> None:
    """Write `findings.csv`: a row a finding, with what to do about it."""
    rows = ((found.slide_id, found.finding, found.severity, found.value, found.remedy) for found in findings)
    write_table(path, rows, ("slide_id", "finding", "severity", "value", "what_to_do"))


def write_groups(path: Path, rows: Iterable[TableRow], groups: Mapping[str, str]) -> None:
    """Write `groups.csv`, as `panda.data.manifest.read_groups` reads it: a row a slide whose id names a file."""
    write_table(path, ((row.slide_id, groups[row.slide_id]) for row in rows if row.has_file), ("image_id", "group"))


def write_pairs(path: Path, rows: Iterable[TableRow], duplicates: Duplicates) -> None:
    """Write `pairs.csv`: slides that match, closest first.

    A pair can lie in two groups: where most of the slides of these do not match.
    """
    of = {row.slide_id: row for row in rows}
    exact = {slide_id: number for number, same in enumerate(duplicates.twins) for slide_id in same}
    matches = {(pair.a, pair.b): pair.distance for pair in duplicates.near.pairs}
    for same in duplicates.twins:
        matches.update(((same[0], other), 0.0) for other in same[1:])
    lines = []
    for (a, b), distance in sorted(matches.items(), key=lambda match: (match[1], match[0])):
        one, other = of[a], of[b]
        lines.append(
            (
                *(a, b, round(distance, _DIGITS)),
                "yes" if exact.get(a, a) == exact.get(b, b) else "no",
                "yes" if duplicates.groups[a] == duplicates.groups[b] else "no",
                "yes" if len({one.grade, other.grade} - {None}) > 1 else "no",
                *(one.provider, other.provider, one.isup_grade, other.isup_grade, one.gleason, other.gleason),
            )
        )
    columns = ("slide_a", "slide_b", "distance", "same_file", "same_group", "grades_conflict")
    each = tuple(f"{name}_{side}" for name in ("provider", "isup_grade", "gleason_score") for side in "ab")
    write_table(path, lines, columns + each)


def write_audit(
    path: Path,
    rows: Iterable[TableRow],
    findings: Iterable[Finding],
    read: Callable[[TableRow], Inspection] | None,
    duplicates: Duplicates | None,
) -> None:
    """Write `audit.csv`: a row a slide, one after the other.

    Args:
        path: The file.
        rows: One a slide.
        findings: About all of them.
        read: What was seen of a slide; None where the slides were not looked at.
        duplicates: Of the slides; None where they were not looked at.
    """
    about: defaultdict[str, list[Finding]] = defaultdict(list)
    for found in findings:
        about[found.slide_id].append(found)
    sizes = {} if duplicates is None else Counter(duplicates.groups.values())

    def lines() -> Iterator[Sequence[Any]]:
        for row in rows:
            own = about[row.slide_id]
            names = " ".join(dict.fromkeys(found.finding for found in own))
            line = (row.slide_id, row.provider, row.isup_grade, row.gleason, names, worst(own) or "")
            if read is None or duplicates is None:
                yield line
            else:
                group = duplicates.groups.get(row.slide_id, "")
                yield (*line, group, sizes.get(group, ""), *_values(read(row)))

    write_table(path, lines(), _ROW if read is None else _ROW + _SEEN)


def summary(rows: Sequence[TableRow], findings: Sequence[Finding], duplicates: Duplicates | None) -> dict[str, Any]:
    """Count of what was found.

    Args:
        rows: One a slide.
        findings: About all of them.
        duplicates: Of the slides; None where they were not looked at.

    Returns:
        `slides`; `findings`: those that were made, in the order of `FINDINGS`, each with its severity and the
        slides it was made of, in all and by provider; `worst`: slides by their worst finding; `groups`: of two
        slides and more, None without duplicates; `crowded`: slides whose hashes say little.
    """
    of = {row.slide_id: row for row in rows}
    slides: defaultdict[str, set[str]] = defaultdict(set)
    severities: defaultdict[str, list[Finding]] = defaultdict(list)
    for found in findings:
        slides[found.finding].add(found.slide_id)
        severities[found.slide_id].append(found)
    groups = None
    if duplicates is not None:
        members = duplicates.members
        groups = {
            "groups": len(members),
            "slides": sum(map(len, members.values())),
            "largest": max(map(len, members.values()), default=0),
            "with_conflicting_grades": sum(
                len({of[slide_id].grade for slide_id in group} - {None}) > 1 for group in members.values()
            ),
            "pairs": len(duplicates.near.pairs),
        }
    return {
        "slides": len(rows),
        "providers": _by_provider(rows),
        "findings": {
            name: {
                "severity": kind.severity,
                "slides": len(slides[name]),
                "by_provider": _by_provider(of[slide_id] for slide_id in slides[name]),
            }
            for name, kind in FINDINGS.items()
            if name in slides
        },
        "worst": {
            severity: sum(worst(own) == severity for own in severities.values()) for severity in get_args(Severity)
        },
        "groups": groups,
        "crowded": [] if duplicates is None else list(duplicates.near.crowded),
    }


def worst(findings: Iterable[Finding]) -> Severity | None:
    """The worst severity of findings, None of none."""
    severities = {found.severity for found in findings}
    return next((severity for severity in get_args(Severity) if severity in severities), None)


def _by_provider(rows: Iterable[TableRow]) -> dict[str, int]:
    """Return the number of rows of each provider, those of unknown ones together at the end."""
    known = known_label_maps()
    counts = Counter(row.provider if row.provider in known else OTHER for row in rows)
    return {provider: counts[provider] for provider in (*known, OTHER) if counts[provider]}


def _values(seen: Inspection) -> list[Any]:
    """What was seen, in the order of the columns of `audit.csv`."""
    width, height = seen.level_dimensions[0] if seen.level_dimensions else (None, None)
    values = (
        *(width, height, " ".join(map(_short, seen.downsamples)), *(seen.mpp or (None, None)), seen.mpp_source),
        *(seen.reader, seen.vendor, seen.file_bytes, seen.tissue_how, seen.tissue_fraction, seen.tissue_mm2),
        *(seen.pen_fraction, seen.sharpness, seen.blurred, *(seen.mask_dimensions or (None, None)), seen.mask_level),
        " ".join(f"{code}:{count}" for code, count in seen.mask_codes.items()),
        *(seen.cancer_fraction, seen.cancer_mm2, seen.labelled_on_tissue),
    )
    return [_short(value) if isinstance(value, float) else value for value in values]


def _short(value: float) -> str:
    return f"{value:.{_DIGITS}g}"
