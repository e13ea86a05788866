"""Feature files: the features that an encoder gave for the tiles of one slide, where the tiles are, and their origin.

See `panda.data.feature_formats` for the formats.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.data.feature_formats import VERSION, BagFile, Hdf5File, check_finite
from panda.data.feature_names import BAG, name_feature_file, name_other_file
from panda.data.feature_origin import FeatureFile, FeatureFormat, FeatureOrigin, TilePlaces
from panda.data.feature_writers import WRITERS
from panda.data.hdf5 import ArrayPlace, explain_failure, open_hdf5
from panda.errors import ManifestError

__all__ = [
    "VERSION",
    "FeatureFile",
    "FeatureFormat",
    "FeatureOrigin",
    "TilePlaces",
    "find_feature_files",
    "name_feature_file",
    "name_other_file",
    "read_feature_file",
    "read_features",
    "read_origin",
    "write_feature_file",
]

_COORDS_ONLY = "patches"
"""Folder of TRIDENT and CLAM for files that have the coordinates of tiles and no features."""
_SHOWN = 3
_PLACES: dict[Path, ArrayPlace] = {}
"""Where this process found features before, because each epoch reads them again."""


def read_features(path: Path) -> NDArray[np.float32]:
    """Read the features of a file alone, (N, D) float32.

    Raises:
        ManifestError: If the file is missing or damaged, or has no features, or some are not finite.
    """
    place = _PLACES.get(path)
    if place is not None and (features := place.read(path)) is not None:
        return features
    with _open(path) as found:
        if isinstance(found, Hdf5File) and (place := found.find_features()) is not None:
            _PLACES[path] = place
        return found.read_features()


def read_feature_file(path: Path) -> FeatureFile:
    """Read a file of features of any format.

    Raises:
        ManifestError: As for `read_features`, or if its coordinates or its origin do not fit them.
    """
    with _open(path) as found:
        return found.read()


def read_origin(path: Path) -> tuple[FeatureOrigin, int]:
    """Read what made the features of a file, and the number of its tiles, without the features.

    Raises:
        ManifestError: As for `read_feature_file`.
    """
    with _open(path) as found:
        return found.read_origin(), found.shape[0]


@contextmanager
def _open(path: Path) -> Iterator[BagFile | Hdf5File]:
    """Open a file of any format; what its damage or odd values raise in the block is a ManifestError."""
    if path.suffix == BAG:
        with explain_failure(path):
            yield BagFile.open(path)
    else:
        with open_hdf5(path) as file:
            yield Hdf5File(path, file)


def write_feature_file(path: Path, features: FeatureFile, format: FeatureFormat = "panda") -> None:
    """Write the features of a slide, each file whole or not at all.

    Args:
        path: The file, see `name_feature_file`. The other file of CLAM and slideflow is written before it.
        features: The features; the format of their origin is that of the file from which they were read.
        format: Format of the file.

    Raises:
        ManifestError: If features are not finite, or the format needs what is unknown of them.
    """
    check_finite(path, features.features)
    WRITERS[format](path, features)


def find_feature_files(folder: Path) -> dict[str, Path]:
    """Find the feature files of any format in a folder and the folders in it: slide id to file.

    Raises:
        ManifestError: If there is no such folder, or it has no feature files, or two of one slide.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder}: there is no such folder; give one of feature files")
    found: dict[str, list[Path]] = {}
    for path in sorted(_list_files(folder)):
        found.setdefault(path.stem, []).append(path)
    if not found:
        raise ManifestError(
            f"{folder}: has no feature files (*.h5 or *{BAG}); give the folder of an encoder's features"
        )
    files = {slide_id: _choose_file(paths) for slide_id, paths in found.items()}
    double = [slide_id for slide_id, path in files.items() if path is None]
    if double:
        raise ManifestError(
            f"{folder}: {len(double)} slides have two files of features, such as {double[0]}: "
            f"{_list_paths(found[double[0]], folder)}. Give the folder of one of them, or remove one of both"
        )
    return {slide_id: path for slide_id, path in files.items() if path is not None}


def _list_files(folder: Path) -> Iterator[Path]:
    """Yield the files of features in a folder and the folders in it; links are followed, each folder once.

    Raises:
        OSError: If a folder cannot be read.
    """
    seen = set()

    def refuse(error: OSError) -> None:
        raise error

    for place, inside, names in os.walk(folder, followlinks=True, onerror=refuse):
        own = os.stat(place)
        is_new = (own.st_dev, own.st_ino) not in seen
        seen.add((own.st_dev, own.st_ino))
        inside[:] = sorted(name for name in inside if is_new and not name.startswith(".") and name != _COORDS_ONLY)
        if is_new:
            paths = (Path(place, name) for name in names if not name.startswith("."))
            yield from (path for path in paths if path.suffix in (".h5", BAG))


def _choose_file(paths: list[Path]) -> Path | None:
    """Return the only file, or the one with coordinates of the two that CLAM writes."""
    if len(paths) == 1:
        return paths[0]
    first, *others = paths
    is_pair = first.parent.name == "h5_files" and others == [name_other_file(first, "clam")]
    return first if is_pair else None


def _list_paths(paths: Iterable[Path], folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in paths]
    return " and ".join(names[:_SHOWN]) + " …" * (len(names) > _SHOWN)
