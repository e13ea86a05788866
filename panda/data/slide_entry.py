"""The entry of a slide in a patch store: `slide.json`, with its patches and the files they were cut from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from panda.data.manifest import SlideRecord
from panda.errors import MaskError, PandaError, SlideError
from panda.files import identity, read_model
from panda.wsi.label_maps import find_label_map

SLIDE_FILE = "slide.json"
"""Name of the entry in the slide's folder of the store."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileIdentity(_Entry):
    """Name, size in bytes and time of the last change (ns since 1970) of a file: its identity without reading it."""

    name: str
    bytes: int
    mtime_ns: int

    def __str__(self) -> str:
        changed = datetime.fromtimestamp(self.mtime_ns / 1e9, UTC)
        return f"{self.bytes} bytes of {changed.isoformat(sep=' ', timespec='milliseconds')}"

    @classmethod
    def read(cls, path: Path) -> FileIdentity:
        """Return the identity of a file, or raise `OSError` if it is missing."""
        return cls.model_validate(identity(path))


class SlideOrigin(_Entry):
    """The slide's row and files, which its patches depend on besides the settings.

    Attributes:
        slide: Its file.
        mask: The file of its label mask, or None.
        codes: The meaning of the mask's codes, see `LabelMap.codes`.
    """

    slide_id: str
    provider: str
    isup_grade: int | None
    slide: FileIdentity
    mask: FileIdentity | None
    codes: dict[str, list[int]]


class PatchEntry(_Entry):
    """One patch: its top-left corner in level-0 px, its share of tissue, and of cancer pixels."""

    x: int
    y: int
    tissue_fraction: float
    tumor_fraction: float


class ResolutionEntry(_Entry):
    """The resolution of the patches.

    Attributes:
        downsample: Level-0 px per patch px.
        level: Pyramid level that is read.
        resampled: The level is resampled to reach the resolution.
        mpp: µm per patch px as (x, y), or None if unknown.
        mpp_note: The source of the slide's µm/px.
    """

    downsample: float
    level: int
    resampled: bool
    mpp: tuple[float, float] | None
    mpp_note: str


class TissueEntry(_Entry):
    """The tissue of the slide: how it was found, see `panda.wsi.tissue.TissueMap`, and its share of the slide."""

    how: str
    fraction: float


class SlideEntry(SlideOrigin):
    """The content of `slide.json`: the patches by y, then x. `panda.data.patches` explains the fingerprint."""

    fingerprint: str
    resolution: ResolutionEntry
    tissue: TissueEntry
    patches: list[PatchEntry]

    @classmethod
    def read(cls, folder: Path) -> SlideEntry:
        """Read the entry in a slide's folder of the store.

        Raises:
            OSError: If the file cannot be read.
            PandaError: If it is not an entry.
        """
        return read_model(folder / SLIDE_FILE, TypeAdapter(cls), "run again to cut the patches again")

    def write(self, folder: Path) -> None:
        """Write the entry into a slide's folder of the store."""
        (folder / SLIDE_FILE).write_text(self.model_dump_json(indent=1), encoding="utf-8")


def read_origin(record: SlideRecord) -> SlideOrigin:
    """Return the slide's row and the identity of its files as they are now.

    The files are not opened, because that would take long for a whole data set.

    Raises:
        SlideError: If the slide is missing.
        MaskError: If the mask is missing, or its provider has no label map.
    """
    return SlideOrigin(
        slide_id=record.slide_id,
        provider=record.provider,
        isup_grade=record.isup_grade,
        slide=identify_file(record.image_path, SlideError),
        mask=None if record.mask_path is None else identify_file(record.mask_path, MaskError),
        codes=find_label_map(record.provider).codes(),
    )


def identify_file(path: Path, error: type[PandaError]) -> FileIdentity:
    """Return the identity of a file, or raise this kind of error if it is missing."""
    try:
        return FileIdentity.read(path)
    except OSError as exc:
        raise error(f"{path}: cannot be found ({exc.strerror}); check data.root and the image_id") from exc
