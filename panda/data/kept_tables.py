"""Keep the table of slides that other settings made, when a run in the same folder writes its own."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from panda.data.slide_records import RECORDS_FOLDER
from panda.files import write_whole
from panda.tables import PARQUET

log = logging.getLogger(__name__)

KEPT_TABLES = "earlier_tables"
"""Folder in an output with the last table of each earlier settings."""

_HEX, _DIGITS = re.compile("[0-9a-f]+"), 12
"""Form of a fingerprint, and how many of its digits are in a name."""


def keep_table(table: Path, made_with: str) -> None:
    """Move the table of other settings into `KEPT_TABLES`, before one that was made with these settings is written.

    Without a note of what made the table, as in an output of an older version, it counts as one of these settings. The
    caller holds the lock of the table.

    Args:
        table: The path of the table as CSV, absent or not.
        made_with: Fingerprint of the settings.
    """
    note, kept = table.parent / RECORDS_FOLDER / "table", table.parent / KEPT_TABLES
    before = note.read_text(encoding="utf-8", errors="replace") if note.is_file() else None
    if before == made_with:
        return
    if before is None:
        write_whole(note, made_with)
        return
    other = before if _HEX.fullmatch(before) else "unknown"
    own, name = (f"{table.stem}_{digits[:_DIGITS]}" for digits in (made_with, other))
    for path in (table, table.with_suffix(PARQUET)):
        if path.is_file():
            kept.mkdir(exist_ok=True)
            path.replace(kept / f"{name}{path.suffix}")
            log.info("%s of other settings is kept as %s", path.name, kept / f"{name}{path.suffix}")
        (kept / f"{own}{path.suffix}").unlink(missing_ok=True)
    write_whole(note, made_with)
