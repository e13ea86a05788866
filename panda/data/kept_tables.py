"""Keep the table of slides that other settings made, when a run in the same folder writes its own."""

from __future__ import annotations

import filecmp
import itertools
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from panda.data.run_records import RECORDS_FOLDER
from panda.files import write_whole
from panda.tables import PARQUET

log = logging.getLogger(__name__)

KEPT_TABLES = "earlier_tables"
"""Folder in an output with the tables of earlier settings."""

_HEX, _DIGITS = re.compile("[0-9a-f]+"), 12
"""Form of a fingerprint, and how many of its digits are in a name."""


def keep_table(table: Path, made_with: str, beside: Iterable[str] = ()) -> None:
    """Move the table of other settings into `KEPT_TABLES`, before one that was made with these settings is written.

    No table that is kept is removed or replaced. Later ones of the same settings get a number.

    Without a note of what made the table, as in an output of an older version, it counts as one of these settings. The
    caller holds the lock of the table.

    Args:
        table: The path of the table as CSV, absent or not.
        made_with: Fingerprint of the settings.
        beside: Names of files beside the table that are moved with it.
    """
    note = table.parent / RECORDS_FOLDER / "table"
    before = note.read_text(encoding="utf-8", errors="replace") if note.is_file() else None
    if before == made_with:
        return
    if before is None:
        write_whole(note, made_with)
        return
    other = before if _HEX.fullmatch(before) else "unknown"
    keep_files((table, table.with_suffix(PARQUET), *map(table.with_name, beside)), other)
    write_whole(note, made_with)


def keep_files(paths: Iterable[Path], made_with: str) -> None:
    """Move the files of an output that exist into its `KEPT_TABLES`, under the fingerprint of their settings."""
    for path in paths:
        if path.is_file():
            kept = path.parent / KEPT_TABLES
            kept.mkdir(exist_ok=True)
            place = _find_place(path, kept / f"{path.stem}_{made_with[:_DIGITS]}")
            path.replace(place)
            log.info("%s of before is kept as %s", path.name, place)


def _find_place(path: Path, base: Path) -> Path:
    """Return the first place for a file that is free, or has the same content."""
    names = itertools.chain([base.name], (f"{base.name}-{number}" for number in itertools.count(2)))
    places = (base.with_name(f"{name}{path.suffix}") for name in names)
    return next(place for place in places if not place.exists() or filecmp.cmp(path, place, shallow=False))
