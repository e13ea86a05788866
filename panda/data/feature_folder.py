"""A folder of feature files: the file of each slide, and what all of them have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panda.data.feature_files import FeatureOrigin, find_feature_files, read_origin
from panda.errors import ManifestError, PandaError

log = logging.getLogger(__name__)

OF_ONE_SLIDE = ("tile_px0", "fingerprint")
"""Fields of an origin that differ between the slides of one folder."""
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class FeatureFolder:
    """The feature files of slides, whose origins fit each other.

    Attributes:
        path: The folder.
        files: Slide id to its file.
        counts: Slide id to the number of tiles in its file.
        faults: Slide id to the error of a file that cannot be read.
        origin: What the files have in common; what only some state counts for all.
        notes: What the files do not state, in sentences.
    """

    path: Path
    files: Mapping[str, Path]
    counts: Mapping[str, int]
    faults: Mapping[str, PandaError]
    origin: FeatureOrigin
    notes: tuple[str, ...]

    def find_file(self, slide_id: str) -> tuple[Path, int]:
        """Return the file of a slide and the number of its tiles, or raise why there is none."""
        if (fault := self.faults.get(slide_id)) is not None:
            raise fault
        if slide_id not in self.files:
            raise ManifestError(
                f"{self.path}: there is no feature file of slide {slide_id}; compute its features, or leave the slide "
                "out of the table"
            )
        return self.files[slide_id], self.counts[slide_id]


def read_feature_folder(folder: Path, slide_ids: Iterable[str] | None = None) -> FeatureFolder:
    """Read the origins of the feature files of slides, without their features.

    Args:
        folder: The folder, see `find_feature_files`.
        slide_ids: The slides whose files are used; None for all in the folder.

    Raises:
        ManifestError: If none of the slides has a file that can be read, or if two files do not fit each other.
    """
    found = find_feature_files(folder)
    wanted = list(found) if slide_ids is None else list(slide_ids)
    files = {slide_id: found[slide_id] for slide_id in wanted if slide_id in found}
    if not files:
        raise ManifestError(
            f"{folder}: none of the {len(wanted)} slides has a feature file; the folder has {len(found)}, such as "
            f"{_list_names(path.name for path in found.values())}, and the table has {_list_names(wanted)}. A file is "
            "named by the id of its slide"
        )
    origins: dict[str, FeatureOrigin] = {}
    counts: dict[str, int] = {}
    faults: dict[str, PandaError] = {}
    for slide_id, path in files.items():
        try:
            origins[slide_id], counts[slide_id] = read_origin(path)
        except PandaError as error:
            faults[slide_id] = error
    if not origins:
        raise ManifestError(f"{folder}: none of {len(files)} feature files can be used: {faults[next(iter(files))]}")
    origin = _merge_origins({files[slide_id]: own for slide_id, own in origins.items()})
    return FeatureFolder(folder, files, counts, faults, origin, tuple(list_unknown(origins.values())))


def list_unknown(origins: Collection[FeatureOrigin]) -> list[str]:
    """Return what origins do not state and a reader has to know, in sentences."""
    checks: tuple[tuple[str, Callable[[FeatureOrigin], bool]], ...] = (
        ("which encoder made them, so nobody can check that it was one", lambda own: own.encoder is None),
        (
            "the size of their tiles in µm, so nobody can check that it was one",
            lambda own: own.tile_um is None and own.mpp is None,
        ),
    )
    notes = []
    for what, is_unknown in checks:
        if count := sum(map(is_unknown, origins)):
            notes.append(f"{count} of {len(origins)} feature files do not state {what}.")
    return notes


def _merge_origins(origins: Mapping[Path, FeatureOrigin]) -> FeatureOrigin:
    """Return what the origins of files have in common, or refuse two that do not fit each other."""
    # An origin is compared with the first that states the same fields, and with the first of each other kind.
    firsts: dict[frozenset[str], Path] = {}
    for path, own in origins.items():
        for first in firsts.values():
            if faults := origins[first].describe_difference(own):
                raise ManifestError(
                    f"{first} and {path} were not made alike: {'; '.join(faults)}. Give a folder of features by one "
                    "encoder of tiles of one size"
                )
        firsts.setdefault(frozenset(own.model_dump(exclude_none=True)), path)
    merged: dict[str, Any] = {}
    for first in reversed(firsts.values()):
        merged |= origins[first].model_dump(exclude_none=True, exclude={*OF_ONE_SLIDE})
    return FeatureOrigin.model_validate(merged)


def _list_names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + " …" * (len(listed) > _SHOWN)
