"""Write the page of an extraction of features: all slides with their tiles, failures, and the settings."""

from __future__ import annotations

from pathlib import Path

from panda.inference.feature_output import RECORDS, SUMMARY, FeatureSummary, read_summary
from panda.inference.feature_tables import FAILURES, TABLE
from panda.report.failure_table import make_failure_table
from panda.report.page import require_folder, write_page
from panda.report.run_folder import Row, make_link, parse_number, read_picture, try_read
from panda.report.slide_page import MOST_THUMBNAILS, THUMBNAIL_SIDE, Card
from panda.report.table import Cell, Head, Table, format_value, make_cell
from panda.settings import format_value as write_value
from panda.tables import read_output_table

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
    """Write `report.html` of an extraction from its folder, and return its path. The page names missing files."""
    path = Path(folder).absolute()
    require_folder(path)
    summary, fault = try_read(read_summary, path, SUMMARY)
    rows = read_output_table(path / TABLE)
    failures = make_failure_table(path / FAILURES)
    return write_page(
        path / "report.html",
        "features.html",
        name=path.name,
        encoder=summary.origin.encoder if summary else "",
        date=summary.date.replace("T", " ") if summary else "",
        notes=summary.notes if summary else [fault],
        cards=_make_cards(rows, len(failures.rows)),
        slides=_make_table(rows, path),
        failures=failures,
        facts=_list_facts(summary) if summary else [],
    )


def _make_cards(rows: list[dict[str, str]], failed: int) -> list[Card]:
    tiles = [count for row in rows if (count := parse_number(row.get("tiles"))) is not None]
    dims = sorted({row.get("dim", "") for row in rows})
    under = f"{min(tiles):,.0f} to {max(tiles):,.0f} a slide" if tiles else ""
    return [
        Card(
            "Slides encoded",
            format_value(len(rows), "count"),
            under=f"{failed} failed" if failed else "none failed",
            big=True,
        ),
        Card("Tiles", format_value(sum(tiles), "count"), under=under, big=True),
        Card("Features of a tile", ", ".join(dims)),
    ]


def _make_table(rows: list[dict[str, str]], folder: Path) -> Table:
    keys = [column for column in _COLUMNS if any(row.get(column[0]) for row in rows)]
    cells = [
        [_show_picture(row, folder, number), *(make_cell(row.get(key), kind) for key, _, _, kind in keys)]
        for number, row in enumerate(rows)
    ]
    heads = [Head(""), *(Head(label, unit, kind not in ("id", "text")) for _, label, unit, kind in keys)]
    if not any(row[0].picture for row in cells):
        return Table(heads[1:], [row[1:] for row in cells])
    return Table(heads, cells)


def _show_picture(row: Row, folder: Path, number: int) -> Cell:
    name = f"{row.get('slide_id')}.jpg"
    path = folder / RECORDS / name
    # The table may have been edited, and a name in it lead to another folder.
    plain = Path(name).name == name and number < MOST_THUMBNAILS
    picture = read_picture(path, THUMBNAIL_SIDE, quality=80) if plain else None
    return Cell("tiles", picture=picture, href=make_link(RECORDS, name)) if picture else Cell(why="there is no picture")


def _list_facts(summary: FeatureSummary) -> list[tuple[str, str]]:
    values = summary.list_values() | {"device": summary.device}
    return [(key.replace("_", " "), write_value(value)) for key, value in values.items() if value is not None]
