"""Read and write arrays in HDF5 files that are opened for one call only.

No handle outlives a call, because a handle must not be shared with a forked process. Files are opened without a lock,
which a folder without write permission and some network file systems refuse. They are whole when they get their name.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5l, h5p, h5s
from numpy.typing import NDArray

from panda.errors import ManifestError

REMEDY = "make the file again with the program that wrote it"

_CHECKSUM = b"crc32"
"""Attribute of an array with the CRC-32 of its bytes."""
_FAILURES = (
    *(OSError, EOFError, zlib.error, zipfile.BadZipFile),
    *(LookupError, ValueError, TypeError, ArithmeticError, RuntimeError),
)
"""What h5py, NumPy, torch and the translation of attributes raise for files that nobody should have written."""


def _make_access() -> h5p.PropFAID:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    access.set_file_locking(False, True)
    return access


_ACCESS = _make_access()


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5f.FileID]:
    """Open a file to read, by the functions of `h5py.h5d` and the like, which take half the time of `h5py.File`.

    Raises:
        ManifestError: If the file is missing, damaged or no HDF5, or its content cannot be read as the block does.
    """
    with explain_failure(path):
        file = h5f.open(os.fsencode(path), h5f.ACC_RDONLY, _ACCESS)
        try:
            yield file
        finally:
            file.close()


@contextlib.contextmanager
def explain_failure(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into a ManifestError."""
    try:
        yield
    except _FAILURES as error:
        if isinstance(error, FileNotFoundError):
            raise ManifestError(f"{path}: there is no such file; compute the features of the slide") from error
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ManifestError(f"{path}: features cannot be read ({what}); {REMEDY}") from error


def open_array(file: h5f.FileID, name: str) -> h5d.DatasetID | None:
    """Open an array of a file; return None if there is none of this name.

    Raises:
        ValueError: If it is a link, or its values are in another file, whose changes nobody would notice.
    """
    if not file.links.exists(name.encode()):
        return None
    if file.links.get_info(name.encode()).type == h5l.TYPE_HARD:
        stored = h5d.open(file, name.encode())
        made = stored.get_create_plist()
        if made.get_layout() != h5d.VIRTUAL and not made.get_external_count():
            return stored
    raise ValueError(f"{name} is a link or in another file; copy the array into this one")


def has_checksum(stored: h5d.DatasetID) -> bool:
    """Return whether an array has a checksum, which `write_array` gives it."""
    return bool(h5a.exists(stored, _CHECKSUM))


def read_array(stored: h5d.DatasetID) -> NDArray[Any]:
    """Read an array as it is stored; its checksum is verified if it has one.

    Raises:
        TypeError: If its values are no numbers: HDF5 would write pointers to them where NumPy looks for objects.
        ValueError: If the checksum differs, or the array was not written to its end.
    """
    kind = stored.get_type()
    dtype, shape = kind.dtype, stored.shape
    if dtype.hasobject:
        raise TypeError("an array holds texts or references, but must hold numbers")
    checked = has_checksum(stored)
    if not checked and _is_unfinished(stored, dtype.itemsize * math.prod(shape)):
        raise ValueError("an array was not written to its end")
    values = np.empty(shape, dtype)
    stored.read(h5s.ALL, h5s.ALL, values, kind)
    if checked and zlib.crc32(values.data) != _read_checksum(stored):
        raise ValueError("the checksum of an array does not fit its values")
    return values


def _read_checksum(stored: h5d.DatasetID) -> int:
    checksum = np.empty((), np.uint32)
    h5a.open(stored, _CHECKSUM).read(checksum)
    return int(checksum)


def _is_unfinished(stored: h5d.DatasetID, size: int) -> bool:
    """Return whether a part of an array was not written, which would read as 0; unknown of a compressed one."""
    return bool(stored.get_create_plist().get_nfilters() == 0 and stored.get_storage_size() < size)


def _identify(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class ArrayPlace:
    """Where a file has an array that has a checksum and is in one piece.

    Attributes:
        version: Identity of the file, as it was opened.
        offset: Its first byte in the file.
        shape: Its shape.
        dtype: Its type.
        checksum: CRC-32 of its bytes.
    """

    version: tuple[int, ...]
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    checksum: int

    @classmethod
    def find(cls, path: Path, stored: h5d.DatasetID) -> ArrayPlace | None:
        """Return the place of an array in its open file; None for one without checksum or in pieces."""
        offset = stored.get_offset() if has_checksum(stored) else None
        if offset is None:
            return None
        return cls(_identify(os.stat(path)), offset, stored.shape, stored.dtype, _read_checksum(stored))

    def read(self, path: Path) -> NDArray[Any] | None:
        """Read the array without HDF5, which takes longer than a small array; None if the file has changed."""
        values = np.empty(self.shape, self.dtype)
        try:
            with path.open("rb", buffering=0) as file:
                if _identify(os.fstat(file.fileno())) != self.version:
                    return None
                file.seek(self.offset)
                file.readinto(values.data.cast("B"))
        except OSError:
            return None
        return values if zlib.crc32(values.data) == self.checksum else None


def read_attributes(owner: h5f.FileID | h5d.DatasetID | None) -> dict[str, Any]:
    """Read the single values among the attributes of an array or a file; TRIDENT writes the text `None` for None."""
    if owner is None:
        return {}
    stored = (h5py.Dataset(owner) if isinstance(owner, h5d.DatasetID) else h5py.File(owner)).attrs
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in stored.items()}
    return {
        key: value for key, value in plain.items() if not isinstance(value, np.ndarray) and value not in ("None", "")
    }


def build_hdf5(write: Callable[[h5py.File], None]) -> bytes:
    """Return the bytes of an HDF5 file with what `write` writes to it.

    It is made in memory, because HDF5 cannot cope with a disk that is full: it hides the cause, or ends the process.
    """
    with h5py.File("memory", "w", driver="core", backing_store=False, libver="v108") as file:
        write(file)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def write_array(file: h5py.File, name: str, values: NDArray[Any]) -> h5py.Dataset:
    """Write an array in one piece, without compression, so that one read takes it; return it for attributes."""
    values = np.ascontiguousarray(values)
    stored = file.create_dataset(name, data=values)
    stored.attrs[_CHECKSUM.decode()] = np.uint32(zlib.crc32(values.data))
    return stored
