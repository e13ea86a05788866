"""The entry of a slide in a patch store: `slide.json`, with its patches and the files they were cut from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, TypeAdapter

from panda.data.manifest import SlideRecord
from panda.errors import ManifestError, MaskError, PandaError, SlideError
from panda.files import identity
from panda.stored import Digest, Plain, Share, read_model
from panda.wsi.annotations.source import describe_classes
from panda.wsi.classes import ClassSet
from panda.wsi.geometry import Positive
from panda.wsi.label_maps import find_label_map
from panda.wsi.tissue import How

SLIDE_FILE = "slide.json"
"""Name of the entry in the slide's folder of the store."""
Pixel = Annotated[int, Field(gt=-(2**31), lt=2**31)]
_REMEDY = "it was edited or written by another version: the patches of the slide are cut again"


class FileIdentity(Plain, frozen=True):
    """Name, size in bytes and time of the last change (ns since 1970) of a file: its identity without reading it."""

    name: Annotated[str, Field(min_length=1)]
    bytes: NonNegativeInt
    mtime_ns: Annotated[int, Field(ge=-(2**63), lt=2**63)]

    def __str__(self) -> str:
        changed = datetime.fromtimestamp(self.mtime_ns / 1e9, UTC)
        return f"{self.bytes} bytes of {changed.isoformat(sep=' ', timespec='milliseconds')}"

    @classmethod
    def read(cls, path: Path) -> FileIdentity:
        """Return the identity of a file, or raise `OSError` if it is missing."""
        return cls.model_validate(identity(path))


class SlideOrigin(Plain, frozen=True):
    """The slide's row and files, which its patches depend on besides the settings.

    Attributes:
        slide: Its file.
        mask: The file of its label mask, or None.
        codes: The meaning of the mask's codes, see `ClassSet.describe_codes`.
    """

    slide_id: str
    provider: str
    isup_grade: Annotated[int, Field(ge=0, le=5)] | None
    slide: FileIdentity
    mask: FileIdentity | None
    codes: dict[str, list[int]]


class PatchEntry(Plain, frozen=True):
    """One patch.

    Attributes:
        x: Column of the top-left corner, level-0 px.
        y: Row of the top-left corner, level-0 px.
        tissue_fraction: Share of tissue.
        tumor_fraction: Share of cancer px.
        class_fractions: Share of px of each class of cancer; cancer of an unknown class is in none.
    """

    x: Pixel
    y: Pixel
    tissue_fraction: Share
    tumor_fraction: Share
    class_fractions: list[Share]


class ResolutionEntry(Plain, frozen=True):
    """The resolution of the patches.

    Attributes:
        downsample: Level-0 px per patch px.
        level: Pyramid level that is read.
        resampled: The level is resampled to reach the resolution.
        mpp: µm per patch px as (x, y), or None if unknown.
        mpp_note: The source of the slide's µm/px.
    """

    downsample: Positive
    level: NonNegativeInt
    resampled: bool
    mpp: tuple[Positive, Positive] | None
    mpp_note: str


class TissueEntry(Plain, frozen=True):
    """The tissue of the slide: how it was found, see `panda.wsi.tissue.TissueMap`, and its share of the slide."""

    how: How
    fraction: Share


class SlideEntry(SlideOrigin, frozen=True):
    """The content of `slide.json`: the patches by y, then x. `panda.data.patches` explains the fingerprint."""

    fingerprint: Digest
    resolution: ResolutionEntry
    tissue: TissueEntry
    patches: list[PatchEntry]

    @classmethod
    def read(cls, folder: Path) -> SlideEntry:
        """Read the entry in a slide's folder of the store.

        Raises:
            OSError: If the file cannot be read.
            ManifestError: If it is not an entry.
        """
        return read_model(folder / SLIDE_FILE, TypeAdapter(cls), _REMEDY, ManifestError)

    def write(self, folder: Path) -> None:
        """Write the entry into a slide's folder of the store."""
        (folder / SLIDE_FILE).write_text(self.model_dump_json(indent=1), encoding="utf-8")


def read_origin(record: SlideRecord, classes: ClassSet) -> SlideOrigin:
    """Return the slide's row and the identity of its files as they are now.

    The files are not opened, because that would take long for a whole data set.

    Raises:
        SlideError: If the slide is missing.
        MaskError: If the mask is missing, its provider has no label map, or none of the classes has the Gleason
            pattern of a code.
    """
    label_map = find_label_map(record.provider)
    return SlideOrigin(
        slide_id=record.slide_id,
        provider=record.provider,
        isup_grade=record.isup_grade,
        slide=identify_file(record.image_path, SlideError),
        mask=None if record.mask_path is None else identify_file(record.mask_path, MaskError),
        codes=classes.describe_codes(label_map) | describe_classes(record.mask_path, label_map),
    )


def identify_file(path: Path, error: type[PandaError]) -> FileIdentity:
    """Return the identity of a file, or raise this kind of error if it is missing."""
    try:
        return FileIdentity.read(path)
    except OSError as exc:
        raise error(f"{path}: cannot be found ({exc.strerror}); check data.root and the image_id") from exc
