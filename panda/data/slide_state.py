"""The state of the files of a slide, by which a change is noticed without reading them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

FOLDER_FILE = "zarr.json"
"""File of a canvas by which it counts."""


def read_state(folder: Path, result: str, pages: Collection[str] = ()) -> str:
    """Return a hash of names, sizes in bytes and times of change of the files in a folder; empty without a result.

    Hidden files do not count. A folder counts by its file `FOLDER_FILE`, or by name only without one. Pages count by
    name only, because they are written again without a change.

    Args:
        folder: Folder of a slide.
        result: Name of the file that is written last and removed first.
        pages: Names of pages.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{entry.path}/{FOLDER_FILE}" if entry.is_dir() else entry.path
                if entry.name in pages or (entry.is_dir() and not os.path.exists(path)):
                    found.append(entry.name)
                    continue
                status = os.stat(path)
                found.append(f"{entry.name}/{status.st_size}/{status.st_mtime_ns}")
    except OSError:
        return ""  # a file that vanishes belongs to a slide that is being written
    if not any(text.startswith(f"{result}/") for text in found):
        return ""
    return hashlib.sha256("\n".join(sorted(found)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def make_text(slide_id: str) -> str:
    """Return the id of a slide as text; bytes of a file name that are no text become escapes."""
    return slide_id.encode("utf-8", "backslashreplace").decode()
