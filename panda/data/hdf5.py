"""Read and write arrays in HDF5 files that are opened for one call only.

No handle outlives a call, because a handle must not be shared with a forked process. Files are opened without a lock,
which a folder without write permission and some network file systems refuse. They are whole when they get their name.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5p, h5s
from numpy.typing import NDArray

from panda.errors import ManifestError

CHECKSUM = "crc32"
"""Attribute of an array with the CRC-32 of its bytes."""

_REMEDY = "make the file again with the program that wrote it"


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
        ManifestError: If the file is missing, damaged or no HDF5, or has not the content that is read from it.
    """
    try:
        file = h5f.open(os.fsencode(path), h5f.ACC_RDONLY, _ACCESS)
        try:
            yield file
        finally:
            file.close()
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ManifestError(f"{path}: features cannot be read ({type(error).__name__}: {error}); {_REMEDY}") from error


def read_array(file: h5f.FileID, name: str) -> NDArray[Any]:
    """Read an array as it is stored; its checksum is verified if it has one.

    Raises:
        KeyError: If there is no such array.
        ValueError: If the checksum differs.
    """
    stored = h5d.open(file, name.encode())
    values = np.empty(stored.shape, stored.dtype)
    stored.read(h5s.ALL, h5s.ALL, values)
    if h5a.exists(stored, CHECKSUM.encode()):
        expected = np.empty((), np.uint32)
        h5a.open(stored, CHECKSUM.encode()).read(expected)
        if zlib.crc32(values.data) != expected:
            raise ValueError(f"the checksum of {name} does not fit its values")
    return values


def build_hdf5(write: Callable[[h5py.File], None]) -> bytes:
    """Return the bytes of an HDF5 file with what `write` writes to it.

    It is made in memory, because HDF5 hides why it cannot write to a disk that is full.
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
    stored.attrs[CHECKSUM] = np.uint32(zlib.crc32(values.data))
    return stored
