"""A slide that was mapped: what `corrections` and `next` need of its `quantification.json`, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, TypeAdapter

from panda.data.slide_entry import FileIdentity
from panda.data.slide_files import SLIDE_SUFFIXES
from panda.errors import ManifestError
from panda.files import walk
from panda.stored import PathText, Share, read_model
from panda.wsi.label_maps import LabelMap
from panda.wsi.mpp import SlideMpp
from panda.wsi.readers import ReaderName
from panda.wsi.slide import Slide, SlideOptions

RESULT_FILE = "quantification.json"
_REMEDY = "give regions that infer.py wrote, or put their quantification.json beside the corrected file"


class MapOrigin(BaseModel, frozen=True):
    """What made a map, of its `made_with`."""

    checkpoint: PathText
    fingerprint: str
    reader: ReaderName
    mpp_override: SlideMpp | None


class StoredGrade(BaseModel, frozen=True):
    """The grade of a slide: the probability of each class, none if it is no grade of classes."""

    probabilities: tuple[Share, ...] = Field(default=(), strict=False)


class MappedSlide(BaseModel, frozen=True):
    """The map of a slide, of its `quantification.json`.

    Attributes:
        file: The slide's file.
        downsample: Level-0 px per px of the map.
        threshold: Probability at which a px counts as tumour.
        tumor_px: Tumour in px of the map.
        made_with: What made the map.
        grade: The grade, None without one.
        canvas: Fingerprint of the map, None in older results.
        label_maps: Label maps of its checkpoint by provider, empty in older results.
    """

    file: FileIdentity
    downsample: float = Field(gt=0)
    threshold: Share
    tumor_px: float
    made_with: MapOrigin
    grade: StoredGrade | None = None
    canvas: str | None = None
    label_maps: Mapping[str, LabelMap] = Field(default={})

    @classmethod
    def read(cls, folder: Path, remedy: str = _REMEDY) -> Self:
        """Read the result in the folder of a slide.

        Raises:
            ManifestError: If there is none, or it is not the result of a map; `remedy` ends the message.
        """
        try:
            return read_model(folder / RESULT_FILE, TypeAdapter(cls), remedy, ManifestError)
        except FileNotFoundError as error:
            raise ManifestError(f"{folder / RESULT_FILE}: there is no such file: {remedy}") from error

    def open_slide(self, slides: Path) -> Slide:
        """Open the slide as it was opened for the map.

        Args:
            slides: The slide, or a folder that holds it, in any sub-folder.

        Raises:
            PandaError: If the slide is missing, is another one, or cannot be opened.
        """
        path = _find_file(slides, Path(self.file.name).name) if slides.is_dir() else slides
        slide = SlideOptions(self.made_with.reader, self.made_with.mpp_override).open(path)
        if (now := FileIdentity.read(path)).bytes != self.file.bytes or now.name != self.file.name:
            raise ManifestError(
                f"{path}: is {now.name} of {now.bytes} bytes, the map was made of {self.file.name} of "
                f"{self.file.bytes} bytes: give the slide of the map with --slides"
            )
        return slide


def _find_file(folder: Path, name: str) -> Path:
    """Return the file of a name in a folder or below it; raise ManifestError if there is none, or several."""
    found = find_slide_files(folder, name)
    if len(found) != 1:
        several = f": {', '.join(map(str, found))}" if found else ""
        raise ManifestError(f"{folder} has {len(found)} files {name!r}{several}; give the slide itself with --slides")
    return found[0]


def find_slide_files(folder: Path, name: str, *, by_stem: bool = False) -> list[Path]:
    """Return the file of a name in a folder, or all below it if it is not there itself.

    Args:
        folder: The folder.
        name: Name of the file.
        by_stem: Whether `name` is without the suffix, which is then that of a slide.
    """
    names = {name + end for suffix in SLIDE_SUFFIXES for end in (suffix, suffix.upper())} if by_stem else {name}
    here = [folder / one for one in sorted(names) if (folder / one).is_file()]
    return here or sorted(Path(entry.path) for entry in walk(folder) if entry.name in names)
