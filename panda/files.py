"""Files are whole or absent: write beside, fsync, rename.

A reader never meets half a file: what bears the final name was complete when it got that name, and a process
that is killed leaves at worst a hidden temporary name beside it.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from panda.errors import ManifestError

log = logging.getLogger(__name__)

CONF = Path(__file__).resolve().parents[1] / "conf"
"""The folder of choices, beside the package."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_SYNCS = 8  # files brought to the disk at the same time


def remove(path: Path) -> None:
    """Remove a file or a whole folder; nothing happens where nothing is.

    Args:
        path: What to remove. A symbolic link is removed, never what it points to.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or a folder with all that lies in it, to the disk.

    Args:
        path: An existing file or folder.
    """
    if not path.is_dir():
        _sync_entry(path)
        return
    folders = [path, *(entry for entry in path.rglob("*") if entry.is_dir() and not entry.is_symlink())]
    files = [entry for folder in folders for entry in folder.iterdir() if entry.is_file() and not entry.is_symlink()]
    # Side by side, so that the file system can bring many to the disk in one go.
    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(_sync_entry, files))
    for folder in reversed(folders):
        _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    """Bring one file, or a folder's own list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(source: Path, target: Path) -> None:
    """Give a finished file or folder its final name, in place of what bore that name before.

    A file replaces a file in one step. A folder cannot replace a folder that has content in one step, so the
    old one is first moved aside and moved back should the second step fail; a process killed between the two
    steps leaves the name absent, never half-filled.

    Args:
        source: The finished, already synced file or folder; in the same folder as `target`.
        target: The final name.

    Raises:
        IsADirectoryError: A file would take the place of a folder.
    """
    if target.is_dir() and not target.is_symlink() and source.is_file():
        raise IsADirectoryError(errno.EISDIR, "a folder bears the name of a file to be written; move it", str(target))
    if target.is_dir() and not target.is_symlink():
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
        os.rename(target, aside)
        try:
            os.replace(source, target)
        except BaseException:
            os.rename(aside, target)
            raise
        remove(aside)
    else:
        os.replace(source, target)
    _sync_entry(target.parent)  # else a power cut could undo the rename


@contextlib.contextmanager
def whole_path(path: Path | str) -> Iterator[Path]:
    """Lend a temporary name beside `path`; what lies there takes the final name when the block succeeds.

    The temporary name keeps the suffixes of `path` (writers choose their format by it), and the missing
    parent folders are made. Where the block raises, what was written is removed and the old file stays.

    Args:
        path: The final name of a file or folder.

    Yields:
        The temporary path, not yet existing: The block creates a file or a folder there.

    Raises:
        FileNotFoundError: The block ended well but created nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex[:12]}.partial.{path.name}")
    try:
        yield partial
        sync(partial)
        replace(partial, path)
    except BaseException:
        remove(partial)
        raise


@contextlib.contextmanager
def locked(path: Path | str, *, wait: bool = True) -> Iterator[None]:
    """Hold a name against other processes and threads that ask for it here.

    The system frees the lock of a process that was killed. The lock is a hidden empty file beside `path`,
    which stays: taking it away would let two in.

    Args:
        path: A file or folder, existing or to be made; its missing parent folders are made.
        wait: Until whoever holds it lets go.

    Raises:
        BlockingIOError: Another process or thread holds it, and this one does not wait.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            log.warning("%s: another run is at work on it; waiting", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("%s: this file system has no locks; let one run at a time work on it", path)
        yield


def write_whole(path: Path | str, data: bytes | str) -> None:
    """Write a small file whole or not at all.

    Args:
        path: The final name; missing parent folders are made.
        data: The content; text is written as UTF-8 with its line ends as they are.
    """
    with whole_path(path) as partial:
        partial.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def fingerprint(data: Mapping[str, Any]) -> str:
    """Name a set of plain values by their content.

    Args:
        data: Values that JSON can hold; the order of the keys does not matter, NaN and infinity are refused.

    Returns:
        SHA-256 of the canonical JSON (sorted keys, no spaces, UTF-8), 64 hexadecimal digits.

    Raises:
        TypeError: A value or key is not plain data.
        ValueError: A number is NaN or infinite.
    """
    text = json.dumps(dict(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def identity(path: Path) -> dict[str, str | int]:
    """What tells a file from another without reading it: name, size in bytes and time of change.

    Raises:
        OSError: The file is missing.
    """
    found = path.stat()
    return {"name": path.name, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def write_table(
    path: Path | str, rows: Iterable[Mapping[str, Any] | Sequence[Any]], columns: Sequence[str] | None = None
) -> None:
    """Write rows as a CSV file, whole or not at all.

    Args:
        path: The final name; missing parent folders are made.
        rows: One a line, each a mapping or the values in the order of `columns`. None becomes an empty field.
        columns: The header. If None, every key of the rows, which are mappings, in the order they first occur.

    Raises:
        ValueError: If a mapping has a key that is no column.
    """
    if columns is None:
        rows = list(rows)
        columns = list(dict.fromkeys(key for row in rows for key in row))
    with whole_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            if isinstance(row, Mapping):
                writer.writerow(row)
            else:
                writer.writer.writerow(row)


def read_output_table(path: Path) -> list[dict[str, str]]:
    """Read a table that this package wrote, as far as it is there.

    Args:
        path: A CSV file with a header; it may be missing.

    Returns:
        One mapping a row. No row if the file is missing or cannot be read as a table.
    """
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return [{str(k): v or "" for k, v in row.items() if k is not None} for row in csv.DictReader(file)]
    except (OSError, csv.Error):
        return []


def read_user_table(
    path: Path, columns: Sequence[str], one_of: Sequence[str] = (), *, may_be_empty: bool = False
) -> list[tuple[int, dict[str, str]]]:
    """Read a table that a user wrote, and refuse one that is broken.

    Args:
        path: A CSV file in UTF-8 with a header.
        columns: Columns that it must have.
        one_of: Columns of which it must have at least one.
        may_be_empty: Whether a table without rows is allowed.

    Returns:
        Rows as (number of the line in the file, stripped values by column), without blank lines.

    Raises:
        ManifestError: If it cannot be read, a column is missing, or it has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True, restkey="", restval="")
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            rows = [
                (reader.line_num, {name: row[name].strip() for name in names})
                for row in reader
                if any(isinstance(value, str) and value.strip() for value in row.values())
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: cannot be read as a CSV in UTF-8 ({error})") from error
    absent = [column for column in columns if column not in names]
    if one_of and not set(one_of) & set(names):
        absent.append(" or ".join(one_of))
    if absent:
        raise ManifestError(
            f"{path}: no column {', '.join(absent)}; the columns found are {', '.join(names) or 'none'}"
        )
    if not rows and not may_be_empty:
        raise ManifestError(f"{path}: the table has no rows")
    return rows


def write_json(path: Path | str, data: Mapping[str, Any]) -> None:
    """Write plain data as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
