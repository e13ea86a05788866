"""The page of an audit: what was found, how much of it at which provider, and what the worst of it looks like."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from panda.audit.charts import distributions, provider_table, rows_by_provider
from panda.audit.dataset import RECORDS, SUMMARY
from panda.audit.records import file_stem
from panda.audit.tables import AUDIT, FINDINGS_TABLE, GROUPS, PAIRS
from panda.data.findings import FINDINGS, REFUSED_ROWS, Severity
from panda.files import read_output_table
from panda.report.page import need_folder, write_page
from panda.report.run_folder import Picture, link, mapping, number, read_json, read_picture, sequence
from panda.report.slide_page import Card
from panda.report.table import Cell, Head, Table, cell, show

WORST_SHOWN = 8
"""Slides that are shown of each finding, groups of all, and slides of a group."""
PAIRS_SHOWN = 10
"""Pairs that are shown of those whose grades differ, and of the others."""
LOOSEST_SHOWN = 4
_DUPLICATES = ("exact_duplicate", "near_duplicate")
"""Findings that are shown as pairs."""
_SIDE = 260
_QUALITY = 80
_WORST: Mapping[str, tuple[tuple[str, bool], ...]] = {
    "pen_marks": (("pen_fraction", True),),
    "blur": (("blurred", True), ("sharpness", False)),
    "cancer_mask_benign_grade": (("cancer_mm2", True), ("cancer_fraction", True)),
    "mask_geometry": (("labelled_on_tissue", False),),
    "no_tissue": (("pen_fraction", True),),
}
"""By which columns of `audit.csv` the slides of a finding are worst, and whether the largest is."""


@dataclass(frozen=True)
class Shown:
    """A slide as the page shows it.

    Attributes:
        slide_id: Its id.
        about: Provider, grade and score.
        value: What was found.
        picture: None where there is none.
        href: Where a click on it leads.
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
        name: Of the finding.
        severity: Of it.
        meaning: What is the case.
        remedy: What to do.
        count: Slides that have it.
        shown: The worst of them.
    """

    name: str
    severity: str
    meaning: str
    remedy: str
    count: int
    shown: Sequence[Shown]

    @property
    def pictured(self) -> bool:
        """Whether it is to be seen on a slide, and any can be."""
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
    """Pairs of one kind: what they are, how they are chosen, how many there are, and those that are shown."""

    title: str
    about: str
    count: int
    shown: Sequence[Pair]


@dataclass(frozen=True)
class Group:
    """Slides of the same tissue: how many, which grades they have, and some of them."""

    count: int
    grades: str
    conflict: bool
    shown: Sequence[Shown]


class _Folder:
    """What an audit left, read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary, self.fault = read_json(path / SUMMARY)
        self.rows = {row.get("slide_id", ""): row for row in read_output_table(path / AUDIT)}
        self.findings: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in read_output_table(path / FINDINGS_TABLE):
            if row.get("finding") in FINDINGS:
                self.findings[row["finding"]][row.get("slide_id", "")].append(row.get("value", ""))
        self.looked = mapping(self.summary.get("groups")) != {}

    def shown(self, slide_id: str, value: str = "") -> Shown:
        row = self.rows.get(slide_id, {})
        path = self.path / RECORDS / f"{file_stem(slide_id)}.jpg"
        plain = slide_id.isprintable() and path.parent == self.path / RECORDS
        picture = read_picture(path, _SIDE, _QUALITY) if plain and slide_id else None
        score = row.get("gleason_score", "")
        about = f"{row.get('provider', '')}, ISUP {row.get('isup_grade', '') or '–'}" + (f" ({score})" if score else "")
        return Shown(slide_id, about, value, picture, link(RECORDS, path.name) if picture else "")

    def gallery(self, name: str) -> Gallery:
        kind, slides = FINDINGS[name], self.findings[name]

        def place(slide_id: str) -> tuple[float, ...]:
            keys = []
            for column, largest in _WORST.get(name, ()):
                value = number(self.rows.get(slide_id, {}).get(column))
                keys.append(math.inf if value is None else -value if largest else value)
            return tuple(keys)

        worst = sorted(slides, key=place)[:WORST_SHOWN]
        shown = [self.shown(slide_id, "; ".join(slides[slide_id])) for slide_id in worst]
        return Gallery(name, kind.severity, kind.meaning, kind.remedy, len(slides), shown)


def _place(finding: str) -> tuple[int, int]:
    """Where a finding stands: by severity, then in the order of `FINDINGS`."""
    return get_args(Severity).index(FINDINGS[finding].severity), list(FINDINGS).index(finding)


def _findings_table(summary: Mapping[str, Any], providers: Sequence[str]) -> Table:
    rows = []
    found = mapping(summary.get("findings"))
    for name in sorted(FINDINGS.keys() & found.keys(), key=_place):
        own = mapping(found[name])
        kind, by = FINDINGS[name], mapping(own.get("by_provider"))
        rows.append(
            [
                Cell(kind.severity, style="bad" if kind.severity == "error" else ""),
                Cell(name, href="#near-duplicates" if name in _DUPLICATES else f"#{name}"),
                cell(own.get("slides"), "count"),
                *(cell(by.get(provider, 0), "count") for provider in providers),
                Cell(kind.meaning),
                Cell(kind.remedy),
            ]
        )
    heads = [Head("Severity"), Head("Finding"), Head("Slides", figures=True)]
    heads += [Head(provider, figures=True) for provider in providers]
    return Table([*heads, Head("What is the case"), Head("What to do")], rows)


def _pairs(folder: _Folder) -> list[Pairs]:
    """The closest pairs of each kind, and those that are only just alike enough."""
    rows = read_output_table(folder.path / PAIRS)
    conflict = [row for row in rows if row.get("grades_conflict") == "yes"]
    agree = [row for row in rows if row.get("grades_conflict") != "yes"]
    shown = [*conflict[:PAIRS_SHOWN], *agree[:PAIRS_SHOWN]]
    rest = [row for row in rows if row not in shown]

    def pair(row: Mapping[str, str]) -> Pair:
        same = row.get("same_file") == "yes"
        said = "the same file" if same else f"distance {show(row.get('distance'))}"
        slides = [folder.shown(row.get(side, "")) for side in ("slide_a", "slide_b")]
        return Pair(slides[0], slides[1], said, row.get("grades_conflict") == "yes")

    return [
        Pairs(title, about, len(of), [pair(row) for row in some])
        for title, about, of, some in (
            (
                "The same tissue under different grades",
                "closest first. Of the same tissue only one grade can be right; neighbouring sections of a core may "
                "truly differ, and a pair may be none: look.",
                conflict,
                conflict[:PAIRS_SHOWN],
            ),
            ("The same tissue, the same grade", "closest first.", agree, agree[:PAIRS_SHOWN]),
            (
                "Only just alike",
                "the least alike of all: if these are not the same tissue, the groups are too wide.",
                rows,
                rest[-LOOSEST_SHOWN:],
            ),
        )
        if some
    ]


def _groups(folder: _Folder) -> list[Group]:
    members: defaultdict[str, list[str]] = defaultdict(list)
    for row in read_output_table(folder.path / GROUPS):
        members[row.get("group", "")].append(row.get("image_id", ""))
    large = sorted((g for g in members.values() if len(g) > 2), key=lambda g: (-len(g), g[0]))[:WORST_SHOWN]
    shown = []
    for slides in large:
        grades = Counter(folder.rows.get(slide_id, {}).get("isup_grade", "") or "–" for slide_id in slides)
        words = ", ".join(f"{count} of ISUP {grade}" for grade, count in sorted(grades.items()))
        own = [folder.shown(slide_id) for slide_id in slides[:WORST_SHOWN]]
        shown.append(Group(len(slides), words, len(grades) > 1, own))
    return shown


def _cards(summary: Mapping[str, Any]) -> list[Card]:
    worst, groups = mapping(summary.get("worst")), mapping(summary.get("groups"))
    slides, found = int(number(summary.get("slides")) or 0), int(sum(number(v) or 0 for v in worst.values()))
    conflicts = int(number(groups.get("with_conflicting_grades")) or 0)
    refused = "training refuses them as they are" if number(worst.get("error")) else "training refuses none"
    cards = [
        Card("Slides in the table", show(slides, "count"), under=f"{slides - found:,} without any finding", big=True),
        Card("Slides with errors", show(worst.get("error"), "count"), under=refused, big=True),
        Card("At worst a warning", show(worst.get("warning"), "count"), under="would be used and may mislead"),
        Card("At worst a note", show(worst.get("note"), "count"), under="worth a look"),
    ]
    if groups:
        under = f"in {show(groups.get('groups'), 'count')} groups, {conflicts:,} of them with different grades"
        cards.append(Card("Slides with near-duplicates", show(groups.get("slides"), "count"), under=under))
    return cards


def write_audit_page(folder: Path, steps: Sequence[str] = ()) -> Path:
    """Make the page of an audit from its folder; its size is bounded whatever the number of slides.

    Args:
        folder: What `panda.audit.dataset.audit_folder` left; what is missing in it is said on the page.
        steps: What to do next, in sentences or commands.

    Returns:
        `report.html` in that folder.

    Raises:
        PandaError: There is no such folder.
    """
    path = Path(folder).absolute()
    need_folder(path)
    left = _Folder(path)
    providers = list(mapping(left.summary.get("providers")))
    by = rows_by_provider(list(left.rows.values()), providers)
    notes = [left.fault] if left.fault else []
    if crowded := sequence(left.summary.get("crowded")):
        notes.append(
            f"{len(crowded)} slides look like so many others that their hashes say little: of their matches only the "
            f"closest were believed ({', '.join(map(str, crowded[:5]))}{' …' * (len(crowded) > 5)})."
        )
    looked = mapping(left.summary.get("looked_with"))
    return write_page(
        path / "report.html",
        "audit.html",
        name=Path(str(left.summary.get("data") or path)).name,
        meta=[
            ("Data", str(left.summary.get("data") or "")),
            ("Rows", show(left.summary.get("rows"), "count")),
            ("Looked at", "slides and masks" if left.looked else "the table alone"),
            ("Reader", str(looked.get("reader") or "")),
            ("Every tile decoded", "yes" if looked.get("deep") else ""),
        ],
        notes=notes,
        steps=steps,
        cards=_cards(left.summary),
        findings=_findings_table(left.summary, providers),
        looked=left.looked,
        providers=provider_table(by) if left.looked else None,
        charts=distributions(by),
        galleries=[left.gallery(name) for name in sorted(left.findings, key=_place) if name not in _DUPLICATES],
        pairs=_pairs(left) if left.looked else [],
        alone=sum(bool(row.get("group")) and not row.get("tissue_how") for row in left.rows.values()),
        groups=_groups(left) if left.looked else [],
        files=[name for name in (FINDINGS_TABLE, AUDIT, GROUPS, PAIRS, SUMMARY) if (path / name).is_file()],
    )
