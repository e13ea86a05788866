"""The slides of a folder: which of its files are one slide, and which are none."""

from __future__ import annotations

import configparser
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import openslide
import tifffile

SLIDE_SUFFIXES = (
    *(".tiff", ".tif", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm", ".avs"),
)
_SERIES = "dicom.SeriesInstanceUID"
_OME_SUFFIXES = (".ome.tif", ".ome.tiff")
_OME_MEMBER = re.compile(r'(?:MetadataFile|FileName)="([^"]+)"')


@dataclass(frozen=True)
class SlideFiles:
    """Files of a folder or of a pattern, sorted by name.

    Attributes:
        slides: One file for each slide.
        members: Further files of these slides: instances of a DICOM series, files of an OME or VMS set.
        others: Files that are no slides.
    """

    slides: tuple[Path, ...]
    members: tuple[Path, ...]
    others: tuple[Path, ...]

    def describe_passed_over(self) -> str:
        """Return how many files are not read as slides of their own, by suffix; empty if there are none."""
        parts = ((self.members, "further files of the same slides"), (self.others, "files that are no slides"))
        return ", ".join(f"{len(files)} {what} ({_count_suffixes(files)})" for files, what in parts if files)


def sort_slide_files(paths: Iterable[Path]) -> SlideFiles:
    """Sort files into slides, further files of these slides, and files that are no slides.

    A file is a slide by its suffix, unless its name begins with a dot. Slides of several files are found among the
    given files of one folder: the instances of a DICOM series, an OME-TIFF set, and the pictures of a VMS file. The
    first file by name stands for a DICOM series; the first one that the metadata name stands for an OME set.
    """
    every = sorted(paths)
    found = [path for path in every if not path.name.startswith(".") and path.suffix.lower() in SLIDE_SUFFIXES]
    known = {path for path in every if path.is_file()}  # others fail when they are opened, and a pipe would wait here
    members: set[Path] = set()
    series: dict[tuple[Path, str], Path] = {}
    for path in (path for path in found if path in known):
        suffix = path.suffix.lower()
        if suffix == ".dcm":
            first = series.setdefault((path.parent, _read_series(path)), path)
            members |= {path} - {first}
        elif suffix in (".vms", ".vmu"):
            members |= known.intersection(_list_vms_files(path))
        elif path not in members and path.name.lower().endswith(_OME_SUFFIXES):
            own = [file for file in _list_ome_files(path) if file in known]
            first = next((file for file in own if file in found), path)
            members |= {*own, path} - {first}
    slides = tuple(path for path in found if path not in members)
    return SlideFiles(slides, tuple(sorted(members)), tuple(sorted(known - members - set(slides))))


def identify_file(path: Path) -> tuple[object, str]:
    """Return the identity of a file, which all its names share, and what is wrong if it is no file, else ""."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return os.path.normpath(path), f"there is no file {path}"
    except (OSError, ValueError) as error:
        return os.path.normpath(path), f"it cannot be read ({error})"
    is_file = stat.S_ISREG(found.st_mode)
    return (found.st_dev, found.st_ino), "" if is_file else f"{path} is a folder or a device: give a file"


def find_series_members(paths: Iterable[Path]) -> set[Path]:
    """Return the files that belong to a DICOM series of which another file is given; the first of each is left out."""
    series = [path for path in paths if path.suffix.lower() == ".dcm"]
    count = Counter(path.parent for path in series)
    return set(sort_slide_files({path for path in series if count[path.parent] > 1}).members)


def _read_series(path: Path) -> str:
    """Return the SeriesInstanceUID of a DICOM file, or its path if OpenSlide does not open it."""
    try:
        with openslide.OpenSlide(path) as slide:
            return str(slide.properties.get(_SERIES, path))
    except (openslide.OpenSlideError, OSError):
        return str(path)


def _list_vms_files(path: Path) -> list[Path]:
    """Return the files that a VMS or VMU file names, which need not exist."""
    keys = configparser.RawConfigParser(strict=False)
    try:
        keys.read_string(path.read_text(encoding="latin-1"))
    except configparser.Error:
        return []
    return [path.parent / value for section in keys.sections() for value in keys[section].values() if value]


def _list_ome_files(path: Path) -> list[Path]:
    """Return the files of the set that an OME-TIFF belongs to, in the order of its metadata.

    The metadata are in the file itself, or in the companion file that it names.
    """
    try:
        with tifffile.TiffFile(path) as tif:
            text = tif.pages.first.description
        names = _OME_MEMBER.findall(text)
        if "<BinaryOnly" in text:
            names += _OME_MEMBER.findall((path.parent / names[0]).read_text(encoding="utf-8"))
    except Exception:  # a damaged file fails when it is opened as a slide
        return []
    return [path.parent / name for name in dict.fromkeys(names)]


def _count_suffixes(paths: Sequence[Path]) -> str:
    """Return the number of files of each suffix, the most frequent first."""
    kinds = (("hidden" if path.name.startswith(".") else path.suffix.lower() or "no suffix") for path in paths)
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())
