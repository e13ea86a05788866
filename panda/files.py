"""Files are whole or absent: write beside, fsync, rename.

A reader never sees half a file: a file is complete before it gets its final name. A killed process leaves at most
hidden temporary names beside it, which `remove_leftovers` removes.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from panda.errors import LockedError, PandaError
from panda.soft_lock import PATIENCE_SECONDS, Holder, hold_soft_lock, is_soft_lock_held

log = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_SYNCS = 16  # files flushed at the same time, with few commits of the journal
_WINDOWS = os.name == "nt"
_HEX = "[0-9a-f]"
_unsynced: ContextVar[set[Path] | None] = ContextVar("_unsynced", default=None)


def remove(path: Path) -> None:
    """Remove a file or a whole folder if it exists; of a symbolic link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def advise_removal(folder: Path, marker: str, otherwise: str) -> str:
    """Return the remedy to remove a folder if it is certainly one that this package made, otherwise another remedy.

    The proof is a plain file `marker` in a plain folder. The root, the home folder, the system's folder for temporary
    files, the working folder, their parents and mount points are never proposed, nor a folder of slides.

    Args:
        folder: The folder.
        marker: Name of a file that only this package writes there.
        otherwise: The remedy for any other folder.
    """
    places = [Path(tempfile.gettempdir()), Path.home(), Path.cwd()]
    whole, file = folder.resolve(), folder / marker
    kept = {parent for place in places for parent in (place.resolve(), *place.resolve().parents)}
    is_own = file.is_file() and not file.is_symlink() and not folder.is_symlink()
    if not is_own or whole in kept or whole.is_mount() or (whole / "train_images").exists():
        return otherwise
    return f"remove the folder {folder}, or {otherwise}"


def sync(path: Path) -> None:
    """Flush a file, or a folder with all its content, to the disk."""
    if not path.is_dir():
        sync_entry(path)
        return
    entries = [entry for entry in walk(path) if not entry.is_symlink()]
    folders = [path, *(Path(entry.path) for entry in entries if entry.is_dir())]
    files = [Path(entry.path) for entry in entries if entry.is_file()]
    # In parallel, so that the file system can flush many at once.
    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(sync_entry, files))
    for folder in reversed(folders):
        sync_entry(folder)


def walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield all that is in a folder and the folders below it, without a question to the file system for each name.

    Symbolic links are not followed.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path)


def find_paths(pattern: str) -> list[Path]:
    """Return the paths that match a glob, sorted. `**` is any number of folders.

    Raises:
        OSError: If a folder in which names are searched cannot be read, which `glob` passes over.
    """
    parts, is_searched = Path(pattern).parts, False
    for number, part in enumerate(parts):
        is_searched = is_searched or glob.has_magic(part)
        if is_searched:
            searched = os.path.join(".", *parts[: number + (part == "**")], "")
            for folder in glob.glob(searched, recursive=True):
                os.scandir(folder).close()
                os.stat(os.path.join(folder, "."))  # needs the right to enter it
    return sorted(map(Path, glob.glob(pattern, recursive=True)))


def sync_entry(path: Path) -> None:
    """Flush one file, or the list of names in a folder, to the disk."""
    if _WINDOWS and path.is_dir():
        return  # Windows opens no folders and writes their names by itself
    handle = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_kind(target: Path, *, is_folder: bool) -> None:
    """Refuse a name for a file that a folder has, or a name for a folder that a file or a link has.

    Raises:
        IsADirectoryError: If a file would replace a folder.
        NotADirectoryError: If a folder would replace a file or a link.
    """
    has_folder = target.is_dir() and not target.is_symlink()
    if has_folder and not is_folder:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if is_folder and not has_folder and os.path.lexists(target):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))


def replace(source: Path, target: Path) -> None:
    """Give a finished file or folder its final name, and remove the one that had this name before.

    A file replaces a file in one step. An old folder is moved aside first, and moved back if the second step fails. If
    the process is killed between the two steps, the name is absent, never half-filled.

    Args:
        source: The finished file or folder, already synced, in the same folder as `target`.
        target: The final name.

    Raises:
        IsADirectoryError: If a file would replace a folder.
        NotADirectoryError: If a folder would replace a file or a link.
    """
    if source.exists():
        check_kind(target, is_folder=source.is_dir())
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
    if (unsynced := _unsynced.get()) is not None:
        unsynced.add(target.parent)
    else:
        sync_entry(target.parent)  # otherwise a power cut could undo the rename


@contextlib.contextmanager
def sync_folders_once() -> Iterator[None]:
    """Flush the folders of files that get their final names inside once, at the end.

    A file that is to exist only after those is written outside.
    """
    token = _unsynced.set(set())
    try:
        yield
        for folder in _unsynced.get() or ():
            sync_entry(folder)
    finally:
        _unsynced.reset(token)


def partial_path(path: Path) -> Path:
    """Return a new hidden name beside `path`, with the same suffixes, for a file or folder in the making."""
    return path.with_name(f".{uuid.uuid4().hex[:12]}.partial.{path.name}")


def remove_leftovers(folder: Path, name: str = "*", *, deep: bool = False) -> None:
    """Remove the unfinished files of killed processes, of `name` or all; no other process may write them now.

    `deep` includes the folders below.
    """
    own = re.escape(name) if name != "*" else ".*"
    leftover = re.compile(rf"\.{_HEX}{{12}}\.partial\.{own}|\.{own}\.{_HEX}{{32}}\.old", re.DOTALL)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in [*(walk(folder) if deep else entries)]:
            if leftover.fullmatch(entry.name):
                remove(Path(entry.path))


def check_plain_file(path: Path) -> None:
    """Refuse a name for a lock or log that is taken by a link, a folder, a pipe or a device.

    Raises:
        PandaError: If something is there that is no plain file; it stays untouched.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no plain file"
            raise PandaError(f"{path} is {what}, and a lock or log is written there: move it, or use another folder")


def open_log(path: Path) -> IO[str]:
    """Open a log to append to; links are not followed, and a pipe does not block."""
    check_plain_file(path)
    safely = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # not on Windows
    return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | safely, 0o666))


@contextlib.contextmanager
def write_beside(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file or folder created there gets the final name at the end.

    The temporary name keeps the suffixes of `path`, because writers choose their format by them. Missing parent
    folders are made. If the block raises, the new content is removed and the old file stays.
    A block that creates nothing raises FileNotFoundError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        sync(partial)
        replace(partial, path)
    except BaseException:
        remove(partial)
        raise


@contextlib.contextmanager
def hold_lock(path: Path | str, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a name against all other processes and threads that lock it here.

    The lock is a hidden file beside `path`, which need not exist. The file stays, because two processes could hold the
    lock if one removed it. The system frees the lock of a killed process. A forked child does not hold it. On file
    systems without locks, files stand for them, see `panda.soft_lock`.
    Missing parent folders are made. If `wait` is False and the lock is held, LockedError is raised.
    Unfinished files of `path` that a killed process left are removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    check_plain_file(lock_file := path.with_name(f".{path.name}.lock"))
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_hold_file(lock_file, path, wait=wait))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            held.enter_context(hold_soft_lock(path.with_name(f".{path.name}.lock.holders"), path, wait=wait))
        remove_leftovers(path.parent, path.name)
        yield


@contextlib.contextmanager
def _hold_file(lock_file: Path, name: Path, *, wait: bool) -> Iterator[None]:
    """Hold the system's lock of a file, which has the record of the holder while it is held."""
    handles: list[int] = []
    # filelock's own soft locks are not taken over from a killed process if a file system cannot exchange two names.
    lock = FileLock(lock_file, thread_local=False, fallback_to_soft=False, on_acquired=handles.append)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS if wait else 0)
    except Timeout:
        holder = f" ({found})" if (found := _read_holder(lock_file)) else ""
        if not wait:
            raise LockedError(f"{name}: another run holds its lock{holder}") from None
        log.warning("%s: another run is at work on it; waiting%s", name, holder)
        lock.acquire()
    try:
        _write_record(handles[-1], Holder.describe_self().format_record())
        yield
    finally:
        if lock.is_locked:  # not in a forked child
            _write_record(handles[-1], b"")
        lock.release()


def _read_holder(lock_file: Path) -> Holder | None:
    with contextlib.suppress(OSError):  # on Windows, nobody else can read a locked file
        return Holder.parse(lock_file.read_bytes())
    return None


def _write_record(handle: int, record: bytes) -> None:
    """Write who holds the lock into its file, except into a file that has another content."""
    with contextlib.suppress(OSError):  # it is for messages only
        os.lseek(handle, 0, os.SEEK_SET)
        before = os.read(handle, 1024)
        if not before or Holder.parse(before):
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, record)


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock of a name.

    The holder's record says so if the holder is on this machine, or if no lock has a record. Otherwise the lock is
    taken for a moment, because the system has no question for a lock of `flock`. A live holder is not disturbed.
    """
    check_plain_file(lock_file := path.with_name(f".{path.name}.lock"))
    record = b""
    with contextlib.suppress(FileNotFoundError):
        try:
            record = lock_file.read_bytes()
        except PermissionError:  # Windows lets nobody else read a locked file
            record = b"?"
    if not record:
        soft = path.with_name(f"{lock_file.name}.holders")
        return soft.is_dir() and is_soft_lock_held(soft, path)
    holder = Holder.parse(record)
    if holder and holder.is_here:
        return not holder.has_ended
    try:
        with hold_lock(path, wait=False):
            return False
    except LockedError:
        return True


def write_whole(path: Path | str, data: bytes | str) -> None:
    """Write a small file whole or not at all; text as UTF-8 with its line ends unchanged."""
    with write_beside(path) as partial:
        partial.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def fingerprint(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values as canonical JSON (sorted keys, no spaces, UTF-8), 64 hexadecimal digits.

    Values that JSON cannot hold raise TypeError; NaN and infinity raise ValueError.
    """
    text = json.dumps(dict(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def identity(path: Path) -> dict[str, str | int]:
    """Return name, size in bytes and time of change of a file, which identify it without reading it."""
    found = path.stat()
    return {"name": path.name, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def write_json(path: Path | str, data: Mapping[str, Any]) -> None:
    """Write plain data as indented JSON, whole or not at all; refuse NaN and infinity."""
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
