"""The HTML page of an audit: findings by provider, and pictures of the worst slides."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from panda.audit.audit_run import RUN_FILE, AuditRun
from panda.audit.charts import group_rows, make_charts, make_provider_table
from panda.audit.dataset import RECORDS
from panda.audit.records import make_file_stem
from panda.audit.tables import AUDIT, FINDINGS_TABLE, GROUPS, PAIRS, SUMMARY, AuditSummary, LevelScale
from panda.data.findings import FINDINGS, REFUSED_ROWS, FindingKind, Severity
from panda.report.head import PageHead
from panda.report.page import require_folder, write_page
from panda.report.page_facts import keep_known, write_command
from panda.report.run_folder import Picture, make_link, parse_number, read_picture, try_read
from panda.report.slide_page import Card
from panda.report.table import Cell, Head, Table, format_value, make_cell
from panda.settings import format_override
from panda.tables import read_output_table

WORST_SHOWN = 8
"""Most slides on the page for each finding, most groups, and most slides of a group."""

_PAIRS_SHOWN, _LOOSEST_SHOWN = 10, 4
_DUPLICATES = {"exact_duplicate", "near_duplicate"}  # shown as pairs
_SIDE, _QUALITY = 260, 80  # of a picture, px and JPEG quality
_WORST: Mapping[str, tuple[tuple[str, int], ...]] = {
    "pen_marks": (("pen_fraction", -1),),
    "blur": (("blurred", -1), ("sharpness", 1)),
    "cancer_mask_benign_grade": (("cancer_mm2", -1), ("cancer_fraction", -1)),
    "mask_geometry": (("labelled_on_tissue", 1),),
    "no_tissue": (("pen_fraction", -1),),
}
"""Columns of `audit.csv` that rank the slides of a finding, with -1 if the largest value is the worst."""


@dataclass(frozen=True)
class ShownSlide:
    """A slide on the page; `about` has its provider, grade and score, and `value` the details of its finding."""

    slide_id: str
    about: str
    value: str
    picture: Picture | None
    href: str


@dataclass(frozen=True)
class Gallery:
    """The number of slides that have a finding, and the worst of them."""

    name: str
    kind: FindingKind
    count: int
    shown: Sequence[ShownSlide]

    @property
    def has_pictures(self) -> bool:
        """Whether the finding can be seen on a slide, and there is a picture of one."""
        return self.name not in REFUSED_ROWS and any(slide.picture for slide in self.shown)


@dataclass(frozen=True)
class Pair:
    """Two slides of the same tissue, the distance of their hashes, and whether their grades differ."""

    a: ShownSlide
    b: ShownSlide
    distance: str
    conflict: bool


@dataclass(frozen=True)
class Pairs:
    """Pairs of one kind: their title, how they are chosen, their number, and those on the page."""

    title: str
    about: str
    count: int
    shown: Sequence[Pair]


@dataclass(frozen=True)
class Group:
    """Slides of the same tissue: their number, their grades, and some of them."""

    count: int
    grades: str
    conflict: bool
    shown: Sequence[ShownSlide]


class _Folder:
    """The files of an audit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary, self.fault = try_read(AuditSummary.read, path, SUMMARY)
        self.rows = {row.get("slide_id", ""): row for row in read_output_table(path / AUDIT)}
        self.findings: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in read_output_table(path / FINDINGS_TABLE):
            if row.get("finding") in FINDINGS:
                self.findings[row["finding"]][row.get("slide_id", "")].append(row.get("value", ""))
        self.inspected = self.summary is not None and self.summary.groups is not None

    def show_slide(self, slide_id: str, value: str = "") -> ShownSlide:
        row = self.rows.get(slide_id, {})
        path = self.path / RECORDS / f"{make_file_stem(slide_id)}.jpg"
        plain = slide_id.isprintable() and path.parent == self.path / RECORDS
        picture = read_picture(path, _SIDE, _QUALITY) if plain and slide_id else None
        score = row.get("gleason_score", "")
        about = f"{row.get('provider', '')}, ISUP {row.get('isup_grade', '') or '–'}" + (f" ({score})" if score else "")
        return ShownSlide(slide_id, about, value, picture, make_link(RECORDS, path.name) if picture else "")

    def make_gallery(self, name: str) -> Gallery:
        slides = self.findings[name]

        def rank(slide_id: str) -> list[float]:
            values = [
                (parse_number(self.rows.get(slide_id, {}).get(column)), sign) for column, sign in _WORST.get(name, ())
            ]
            return [math.inf if value is None else sign * value for value, sign in values]

        worst = sorted(slides, key=rank)[:WORST_SHOWN]
        shown = [self.show_slide(slide_id, "; ".join(slides[slide_id])) for slide_id in worst]
        return Gallery(name, FINDINGS[name], len(slides), shown)


def _rank_finding(finding: str) -> tuple[int, int]:
    """Return the sort key of a finding: by severity, then in the order of `FINDINGS`."""
    return get_args(Severity).index(FINDINGS[finding].severity), list(FINDINGS).index(finding)


def _make_findings_table(summary: AuditSummary) -> Table:
    rows = []
    for name in sorted(FINDINGS.keys() & summary.findings.keys(), key=_rank_finding):
        kind, count = FINDINGS[name], summary.findings[name]
        rows.append(
            [
                Cell(kind.severity, style="bad" if kind.severity == "error" else ""),
                Cell(name, href="#near-duplicates" if name in _DUPLICATES else f"#{name}"),
                make_cell(count.slides, "count"),
                *(make_cell(count.by_provider.get(provider, 0), "count") for provider in summary.providers),
                Cell(kind.meaning),
                Cell(kind.remedy),
            ]
        )
    heads = [Head("Severity"), Head("Finding"), Head("Slides", figures=True)]
    heads += [Head(provider, figures=True) for provider in summary.providers]
    return Table([*heads, Head("Meaning"), Head("Remedy")], rows)


def _choose_pairs(folder: _Folder) -> list[Pairs]:
    """Return the closest pairs of each kind, and the least similar ones."""
    rows = read_output_table(folder.path / PAIRS)
    conflict = [row for row in rows if row.get("grades_conflict") == "yes"]
    agree = [row for row in rows if row.get("grades_conflict") != "yes"]
    closest = conflict[:_PAIRS_SHOWN], agree[:_PAIRS_SHOWN]
    loosest = [row for row in rows if row not in closest[0] and row not in closest[1]][-_LOOSEST_SHOWN:]

    def pair(row: Mapping[str, str]) -> Pair:
        distance = "the same file" if row.get("same_file") == "yes" else f"distance {format_value(row.get('distance'))}"
        one, other = (folder.show_slide(row.get(side, "")) for side in ("slide_a", "slide_b"))
        return Pair(one, other, distance, row.get("grades_conflict") == "yes")

    section = "closest first. Only one grade can be right for the same tissue. But neighbouring sections of a core can "
    section += "differ, and a match can be wrong: look at the pairs."
    wide = "if these do not show the same tissue, the groups are too wide."
    return [
        Pairs(title, about, len(every), [pair(row) for row in some])
        for title, about, every, some in (
            ("The same tissue under different grades", section, conflict, closest[0]),
            ("The same tissue, the same grade", "closest first.", agree, closest[1]),
            ("The least similar pairs", wide, rows, loosest),
        )
        if some
    ]


def _make_groups(folder: _Folder) -> list[Group]:
    """Return the largest groups of three or more slides."""
    members: defaultdict[str, list[str]] = defaultdict(list)
    for row in read_output_table(folder.path / GROUPS):
        members[row.get("group", "")].append(row.get("image_id", ""))
    large = sorted((g for g in members.values() if len(g) > 2), key=lambda g: (-len(g), g[0]))[:WORST_SHOWN]
    shown = []
    for slides in large:
        grades = Counter(folder.rows.get(slide_id, {}).get("isup_grade", "") or "–" for slide_id in slides)
        text = ", ".join(f"{count} of ISUP {grade}" for grade, count in sorted(grades.items()))
        own = [folder.show_slide(slide_id) for slide_id in slides[:WORST_SHOWN]]
        shown.append(Group(len(slides), text, len(grades) > 1, own))
    return shown


def _make_cards(summary: AuditSummary) -> list[Card]:
    worst = summary.worst
    clean = f"{summary.slides - sum(worst.values()):,} without any finding"
    refused = "training refuses them" if worst["error"] else "training refuses none"
    cards = [
        Card("Slides in the table", format_value(summary.slides, "count"), under=clean, big=True),
        Card("Slides with errors", format_value(worst["error"], "count"), under=refused, big=True),
        Card(
            "At worst a warning",
            format_value(worst["warning"], "count"),
            under="training would use them; they may mislead",
        ),
        Card("At worst a note", format_value(worst["note"], "count"), under="worth a look"),
    ]
    if (groups := summary.groups) is not None:
        conflicts = f"{groups.with_conflicting_grades:,} of them with different grades"
        under = f"in {format_value(groups.groups, 'count')} groups, {conflicts}"
        cards.append(Card("Slides with near-duplicates", format_value(groups.slides, "count"), under=under))
    return cards


def _format_scale(level: LevelScale) -> str:
    low, high = format_value(level.lowest_mpp), format_value(level.highest_mpp)
    return f"{level.level}: {low if low == high else f'{low} to {high}'}"


def _describe(path: Path, audit: _Folder, steps: Sequence[str]) -> PageHead:
    """Return the head of the page: the data, how they were inspected, the command, and the next steps."""
    summary = audit.summary
    if summary is None:
        return PageHead("Audit of a data set", path.name)
    how = summary.settings
    facts = [
        ("Data", summary.data),
        ("Slides", ", ".join(f"{count:,} {provider}" for provider, count in summary.providers.items())),
        ("Rows", format_value(summary.rows, "count")),
        ("Inspected", "slides and masks" if audit.inspected else "only the table"),
        ("Reader", how.reader if how else ""),
        ("µm/px by level", ", ".join(map(_format_scale, summary.levels))),
        ("Every tile decoded", "yes" if how and how.deep else ""),
    ]
    run, _ = try_read(AuditRun.read, path, RUN_FILE)
    command = ""
    if run is not None:
        deep = ["audit.deep=true"] if run.deep else []
        choices = run.choices or [f"data.root={run.data}"]
        command = f"{write_command('audit', [*choices, *deep])} {format_override(f'output={path}')}"
    return PageHead(
        "Audit of a data set",
        Path(summary.data).name,
        facts,
        keep_known([("Made by", command), *(("Next", step) for step in steps)]),
    )


def write_audit_page(folder: Path, steps: Sequence[str] = ()) -> Path:
    """Write `report.html` into the folder of an audit, and return its path.

    The size of the page has a limit for any number of slides. The page names missing files, and shows the next `steps`
    of the user, which are sentences or commands.
    """
    path = Path(folder).absolute()
    require_folder(path)
    audit = _Folder(path)
    summary = audit.summary
    by_provider = group_rows(list(audit.rows.values()), list(summary.providers) if summary else [])
    notes = [audit.fault] if audit.fault else []
    if summary:
        notes += [level.describe() for level in summary.levels if level.is_mixed]
    if summary and (crowded := summary.crowded):
        notes.append(
            f"{len(crowded)} slides resemble so many others that their hashes are not reliable. Only their closest "
            f"matches count ({', '.join(crowded[:5])}{' …' * (len(crowded) > 5)})."
        )
    return write_page(
        path / "report.html",
        "audit.html",
        head=_describe(Path(folder), audit, steps),
        notes=notes,
        cards=_make_cards(summary) if summary else [],
        findings=_make_findings_table(summary) if summary else None,
        inspected=audit.inspected,
        providers=make_provider_table(by_provider) if audit.inspected else None,
        charts=make_charts(by_provider),
        galleries=[
            audit.make_gallery(name) for name in sorted(audit.findings, key=_rank_finding) if name not in _DUPLICATES
        ],
        pairs=_choose_pairs(audit) if audit.inspected else [],
        alone=sum(bool(row.get("group")) and not row.get("tissue_how") for row in audit.rows.values()),
        groups=_make_groups(audit) if audit.inspected else [],
        files=[name for name in (FINDINGS_TABLE, AUDIT, GROUPS, PAIRS, SUMMARY) if (path / name).is_file()],
    )
