"""The state of the files of a slide, by which a change is noticed without reading them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from panda.files import walk

FOLDER_FILE = "zarr.json"
"""File by which a folder is a canvas."""


def read_state(folder: Path, result: str, pages: Collection[str] = ()) -> str:
    """Return a hash of names, sizes in bytes and times of change of the files in a folder; empty without a result.

    Hidden files do not count. A canvas counts by all its files, another folder by name only. Pages count by name only,
    because they are written again without a change.

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
                is_folder = entry.is_dir()
                if is_folder and os.path.exists(f"{entry.path}/{FOLDER_FILE}"):
                    files = (one for one in walk(entry.path) if not one.is_dir())
                    found += [_describe(one, one.path.removeprefix(f"{folder}/")) for one in files]
                elif is_folder or entry.name in pages:
                    found.append(entry.name)
                else:
                    found.append(_describe(entry, entry.name))
    except OSError:
        return ""  # a file that vanishes belongs to a slide that is being written
    if not any(text.startswith(f"{result}/") for text in found):
        return ""
    return hashlib.sha256("\n".join(sorted(found)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _describe(file: os.DirEntry[str], name: str) -> str:
    status = file.stat()
    return f"{name}/{status.st_size}/{status.st_mtime_ns}"


def make_text(slide_id: str) -> str:
    """Return the id of a slide as text; bytes of a file name that are no text become escapes."""
    return slide_id.encode("utf-8", "backslashreplace").decode()
