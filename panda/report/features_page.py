"""Write the page of an extraction of features: all slides with their tiles, failures, and the settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from panda.inference.feature_output import RECORDS, SUMMARY, TABLE, FeatureSummary, read_summary
from panda.report.agreement import take_sample
from panda.report.failure_table import make_failure_table
from panda.report.head import PageHead
from panda.report.page import require_folder, write_page
from panda.report.page_facts import describe_resolution, format_date, keep_known, write_command, write_own_command
from panda.report.run_folder import Row, make_link, parse_number, read_picture, try_read
from panda.report.slide_page import MOST_THUMBNAILS, SAMPLE_THUMBNAILS, THUMBNAIL_SIDE, Card, describe_sample
from panda.report.table import Cell, Head, Table, format_value, make_cell
from panda.settings import format_value as write_value
from panda.tables import OutputTable

_COLUMNS = (
    ("slide_id", "Slide", "", "id"),
    ("tiles", "Tiles", "", "count"),
    ("mpp", "Scale", "µm/px", "score"),
    ("tile_um", "Side of a tile", "µm", "count"),
    ("tissue_how", "Tissue found as", "", "text"),
    ("seconds", "Time", "", "seconds"),
    ("notes", "Notes", "", "text"),
)


def write_features_page(folder: Path) -> Path:
    """Write `report.html` of an extraction from its folder, and return its path. The page names missing files.

    Of a long table it shows a sample, and its figures are of all slides.
    """
    path = Path(folder).absolute()
    require_folder(path)
    summary, fault = try_read(read_summary, path, SUMMARY)
    table, failures, counts = OutputTable(path / TABLE), path / "failures.csv", _Counts()
    failed = sum(1 for _ in OutputTable(failures))
    rows = take_sample(map(counts.add, table))
    is_sample = len(rows) < counts.slides
    slides = _make_table(rows, path, SAMPLE_THUMBNAILS if is_sample else MOST_THUMBNAILS)
    if is_sample:
        slides = replace(slides, note=describe_sample(len(rows), counts.slides, table.path.name))
    return write_page(
        path / "report.html",
        "features.html",
        head=_describe(path, summary, counts.slides),
        notes=summary.notes if summary else [fault],
        cards=counts.make_cards(failed),
        slides=slides,
        table=table.path.name,
        failures=make_failure_table(failures),
        facts=_list_facts(summary) if summary else [],
    )


def _describe(folder: Path, summary: FeatureSummary | None, slides: int) -> PageHead:
    """Return the head of the page: encoder and tiles, and the command that trains with the features."""
    if summary is None:
        return PageHead("Features", folder.name)
    plan = summary.plan
    facts = [
        ("Encoder", summary.origin.encoder or ""),
        ("Slides", f"{slides:,}"),
        ("Tile", f"{plan.tile_size} px, {describe_resolution(plan.model_dump())}"),
        ("Colours", plan.normalize or ""),
        ("Format", summary.format),
        ("Device", summary.device),
        ("Made", format_date(summary.date)),
        ("Commit", summary.commit or ""),
    ]
    train = write_own_command("train", "task=grading", "tiles=features", f"tiles.features={folder}", "data.root=DATA")
    commands = [("Made by", write_command("features", summary.overrides)), ("Train with them", train)]
    return PageHead("Features", folder.name, facts, keep_known(commands))


@dataclass
class _Counts:
    """Counts over all slides of a table, whose rows are added in turn."""

    slides: int = 0
    tiles: float = 0
    fewest: float = math.inf
    most: float = 0
    dims: set[str] = field(default_factory=set)

    def add(self, row: dict[str, str]) -> dict[str, str]:
        """Add a slide, and return its row."""
        self.slides += 1
        self.dims.add(row.get("dim", ""))
        if (tiles := parse_number(row.get("tiles"))) is not None:
            self.tiles += tiles
            self.fewest, self.most = min(self.fewest, tiles), max(self.most, tiles)
        return row

    def make_cards(self, failed: int) -> list[Card]:
        """Return the figures that are read first."""
        under = f"{self.fewest:,.0f} to {self.most:,.0f} a slide" if self.tiles else ""
        faults = f"{failed} failed" if failed else "none failed"
        return [
            Card("Slides encoded", format_value(self.slides, "count"), under=faults, big=True),
            Card("Tiles", format_value(self.tiles, "count"), under=under, big=True),
            Card("Features of a tile", ", ".join(sorted(self.dims))),
        ]


def _make_table(rows: list[dict[str, str]], folder: Path, pictures: int) -> Table:
    keys = [column for column in _COLUMNS if any(row.get(column[0]) for row in rows)]
    cells = [
        [_show_picture(row, folder, number < pictures), *(make_cell(row.get(key), kind) for key, _, _, kind in keys)]
        for number, row in enumerate(rows)
    ]
    heads = [Head(""), *(Head(label, unit, kind not in ("id", "text")) for _, label, unit, kind in keys)]
    if not any(row[0].picture for row in cells):
        return Table(heads[1:], [row[1:] for row in cells])
    return Table(heads, cells)


def _show_picture(row: Row, folder: Path, is_shown: bool) -> Cell:
    name = f"{row.get('slide_id')}.jpg"
    path = folder / RECORDS / name
    # The table may have been edited, and a name in it lead to another folder.
    plain = Path(name).name == name and is_shown
    picture = read_picture(path, THUMBNAIL_SIDE, quality=80) if plain else None
    return Cell("tiles", picture=picture, href=make_link(RECORDS, name)) if picture else Cell(why="there is no picture")


def _list_facts(summary: FeatureSummary) -> list[tuple[str, str]]:
    values = summary.list_values() | {"device": summary.device}
    return [(key.replace("_", " "), write_value(value)) for key, value in values.items() if value is not None]
