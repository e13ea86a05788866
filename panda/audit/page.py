"""The HTML page of an audit: findings by provider, and pictures of the worst slides."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from panda.audit.charts import group_rows, make_charts, make_provider_table
from panda.audit.dataset import RECORDS
from panda.audit.records import make_file_stem
from panda.audit.summary import SUMMARY, AuditSummary
from panda.audit.tables import AUDIT, FINDINGS_TABLE, GROUPS, PAIRS
from panda.data.findings import FINDINGS, REFUSED_ROWS, Severity
from panda.files import read_output_table
from panda.report.page import require_folder, write_page
from panda.report.run_folder import Picture, link, number, read_picture
from panda.report.slide_page import Card
from panda.report.table import Cell, Head, Table, cell, show

WORST_SHOWN = 8
"""Most slides on the page for each finding, most groups, and most slides of a group."""
PAIRS_SHOWN = 10
"""Most pairs on the page with different grades, and most others."""
LOOSEST_SHOWN = 4
_DUPLICATES = {"exact_duplicate", "near_duplicate"}
"""Findings that the page shows as pairs."""
_SIDE = 260
_QUALITY = 80
_WORST: Mapping[str, tuple[tuple[str, bool], ...]] = {
    "pen_marks": (("pen_fraction", True),),
    "blur": (("blurred", True), ("sharpness", False)),
    "cancer_mask_benign_grade": (("cancer_mm2", True), ("cancer_fraction", True)),
    "mask_geometry": (("labelled_on_tissue", False),),
    "no_tissue": (("pen_fraction", True),),
}
"""Columns of `audit.csv` that rank the slides of a finding, and whether the largest value is the worst."""


@dataclass(frozen=True)
class Shown:
    """A slide on the page.

    Attributes:
        slide_id: Its id.
        about: Provider, grade and score.
        value: The details of its finding.
        picture: Its picture, or None.
        href: Link to the picture.
    """

    slide_id: str
    about: str
    value: str
    picture: Picture | None
    href: str


@dataclass(frozen=True)
class Gallery:
    """The slides of a finding.

    Attributes:
        name: Name of the finding.
        severity: Severity of the finding.
        meaning: What is wrong.
        remedy: What to do.
        count: Number of slides that have it.
        shown: The worst of these slides.
    """

    name: str
    severity: str
    meaning: str
    remedy: str
    count: int
    shown: Sequence[Shown]

    @property
    def pictured(self) -> bool:
        """Whether the finding can be seen on a slide, and there is a picture of one."""
        return self.name not in REFUSED_ROWS and any(slide.picture for slide in self.shown)


@dataclass(frozen=True)
class Pair:
    """Two slides of the same tissue, the distance of their hashes, and whether their grades differ."""

    a: Shown
    b: Shown
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
    shown: Sequence[Shown]


class _Folder:
    """The files of an audit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary: AuditSummary | None = None
        self.fault = ""
        try:
            self.summary = AuditSummary.read(path)
        except FileNotFoundError:
            self.fault = f"{SUMMARY} is not in the folder."
        except (OSError, ValueError) as error:
            self.fault = f"{SUMMARY} could not be read: {error}"
        self.rows = {row.get("slide_id", ""): row for row in read_output_table(path / AUDIT)}
        self.findings: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in read_output_table(path / FINDINGS_TABLE):
            if row.get("finding") in FINDINGS:
                self.findings[row["finding"]][row.get("slide_id", "")].append(row.get("value", ""))
        self.inspected = self.summary is not None and self.summary.groups is not None

    def show_slide(self, slide_id: str, value: str = "") -> Shown:
        row = self.rows.get(slide_id, {})
        path = self.path / RECORDS / f"{make_file_stem(slide_id)}.jpg"
        plain = slide_id.isprintable() and path.parent == self.path / RECORDS
        picture = read_picture(path, _SIDE, _QUALITY) if plain and slide_id else None
        score = row.get("gleason_score", "")
        about = f"{row.get('provider', '')}, ISUP {row.get('isup_grade', '') or '–'}" + (f" ({score})" if score else "")
        return Shown(slide_id, about, value, picture, link(RECORDS, path.name) if picture else "")

    def make_gallery(self, name: str) -> Gallery:
        kind, slides = FINDINGS[name], self.findings[name]

        def rank(slide_id: str) -> tuple[float, ...]:
            keys = []
            for column, largest in _WORST.get(name, ()):
                value = number(self.rows.get(slide_id, {}).get(column))
                keys.append(math.inf if value is None else -value if largest else value)
            return tuple(keys)

        worst = sorted(slides, key=rank)[:WORST_SHOWN]
        shown = [self.show_slide(slide_id, "; ".join(slides[slide_id])) for slide_id in worst]
        return Gallery(name, kind.severity, kind.meaning, kind.remedy, len(slides), shown)


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
                cell(count.slides, "count"),
                *(cell(count.by_provider.get(provider, 0), "count") for provider in summary.providers),
                Cell(kind.meaning),
                Cell(kind.remedy),
            ]
        )
    heads = [Head("Severity"), Head("Finding"), Head("Slides", figures=True)]
    heads += [Head(provider, figures=True) for provider in summary.providers]
    return Table([*heads, Head("What is wrong"), Head("What to do")], rows)


def _choose_pairs(folder: _Folder) -> list[Pairs]:
    """Return the closest pairs of each kind, and the least similar ones."""
    rows = read_output_table(folder.path / PAIRS)
    conflict = [row for row in rows if row.get("grades_conflict") == "yes"]
    agree = [row for row in rows if row.get("grades_conflict") != "yes"]
    shown = [*conflict[:PAIRS_SHOWN], *agree[:PAIRS_SHOWN]]
    rest = [row for row in rows if row not in shown]

    def pair(row: Mapping[str, str]) -> Pair:
        same = row.get("same_file") == "yes"
        distance = "the same file" if same else f"distance {show(row.get('distance'))}"
        slides = [folder.show_slide(row.get(side, "")) for side in ("slide_a", "slide_b")]
        return Pair(slides[0], slides[1], distance, row.get("grades_conflict") == "yes")

    return [
        Pairs(title, about, len(every), [pair(row) for row in some])
        for title, about, every, some in (
            (
                "The same tissue under different grades",
                "closest first. Only one grade can be right for the same tissue. But neighboring sections of a core "
                "can differ, and a match can be wrong: look at the pairs.",
                conflict,
                conflict[:PAIRS_SHOWN],
            ),
            ("The same tissue, the same grade", "closest first.", agree, agree[:PAIRS_SHOWN]),
            (
                "The least similar pairs",
                "if these do not show the same tissue, the groups are too wide.",
                rows,
                rest[-LOOSEST_SHOWN:],
            ),
        )
        if some
    ]


def _make_groups(folder: _Folder) -> list[Group]:
    members: defaultdict[str, list[str]] = defaultdict(list)
    for row in read_output_table(folder.path / GROUPS):
        members[row.get("group", "")].append(row.get("image_id", ""))
    large = sorted((g for g in members.values() if len(g) > 2), key=lambda g: (-len(g), g[0]))[:WORST_SHOWN]
    shown = []
    for slides in large:
        grades = Counter(folder.rows.get(slide_id, {}).get("isup_grade", "") or "–" for slide_id in slides)
        words = ", ".join(f"{count} of ISUP {grade}" for grade, count in sorted(grades.items()))
        own = [folder.show_slide(slide_id) for slide_id in slides[:WORST_SHOWN]]
        shown.append(Group(len(slides), words, len(grades) > 1, own))
    return shown


def _make_cards(summary: AuditSummary) -> list[Card]:
    worst = summary.worst
    clean = f"{summary.slides - sum(worst.values()):,} without any finding"
    refused = "training refuses them" if worst["error"] else "training refuses none"
    cards = [
        Card("Slides in the table", show(summary.slides, "count"), under=clean, big=True),
        Card("Slides with errors", show(worst["error"], "count"), under=refused, big=True),
        Card("At worst a warning", show(worst["warning"], "count"), under="training would use them; they may mislead"),
        Card("At worst a note", show(worst["note"], "count"), under="worth a look"),
    ]
    if (groups := summary.groups) is not None:
        conflicts = f"{groups.with_conflicting_grades:,} of them with different grades"
        under = f"in {show(groups.groups, 'count')} groups, {conflicts}"
        cards.append(Card("Slides with near-duplicates", show(groups.slides, "count"), under=under))
    return cards


def write_audit_page(folder: Path, steps: Sequence[str] = ()) -> Path:
    """Make the page of an audit from its folder; its size has a limit for any number of slides.

    Args:
        folder: The folder of `panda.audit.dataset.audit_folder`; the page names missing files.
        steps: What to do next, in sentences or commands.

    Returns:
        `report.html` in that folder.

    Raises:
        PandaError: If there is no such folder.
    """
    path = Path(folder).absolute()
    require_folder(path)
    left = _Folder(path)
    summary = left.summary
    by_provider = group_rows(list(left.rows.values()), list(summary.providers) if summary else [])
    notes = [left.fault] if left.fault else []
    if summary and (crowded := summary.crowded):
        notes.append(
            f"{len(crowded)} slides resemble so many others that their hashes are not reliable. Only their closest "
            f"matches count ({', '.join(crowded[:5])}{' …' * (len(crowded) > 5)})."
        )
    data = summary.data if summary else ""
    how = summary.looked_with if summary else None
    return write_page(
        path / "report.html",
        "audit.html",
        name=Path(data or path).name,
        meta=[
            ("Data", data),
            ("Rows", show(summary.rows if summary else None, "count")),
            ("Inspected", "slides and masks" if left.inspected else "only the table"),
            ("Reader", how.reader if how else ""),
            ("Every tile decoded", "yes" if how and how.deep else ""),
        ],
        notes=notes,
        steps=steps,
        cards=_make_cards(summary) if summary else [],
        findings=_make_findings_table(summary) if summary else None,
        inspected=left.inspected,
        providers=make_provider_table(by_provider) if left.inspected else None,
        charts=make_charts(by_provider),
        galleries=[
            left.make_gallery(name) for name in sorted(left.findings, key=_rank_finding) if name not in _DUPLICATES
        ],
        pairs=_choose_pairs(left) if left.inspected else [],
        alone=sum(bool(row.get("group")) and not row.get("tissue_how") for row in left.rows.values()),
        groups=_make_groups(left) if left.inspected else [],
        files=[name for name in (FINDINGS_TABLE, AUDIT, GROUPS, PAIRS, SUMMARY) if (path / name).is_file()],
    )
