"""Pyramidal TIFFs read pixel by pixel as they are stored.

OpenSlide interpolates whenever a location does not fall on a whole pixel of the level, which happens at
every level whose downsample is no integer. That softens a photograph a little and ruins a label mask (between
code 1 and code 5 it invents a 3), so masks are read here; and so are slides whose files allow it, since decoding
only the tiles that a window touches, each once, is several times faster (docs/performance.md).
"""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

from panda.wsi.geometry import level_scale
from panda.wsi.handles import PerProcess
from panda.wsi.segments import CACHE, JPEG, Decoder

_LARGEST_SEGMENT_BYTES = 2**28


@dataclass(frozen=True)
class _Level:
    """One level: its size, its tiles or strips, and how to decode one."""

    width: int
    height: int
    segment_width: int
    segment_height: int
    tiled: bool
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    decoder: Decoder

    @property
    def columns(self) -> int:
        """Segments side by side."""
        return math.ceil(self.width / self.segment_width)

    @property
    def rows(self) -> int:
        """Segments one below the other."""
        return math.ceil(self.height / self.segment_height)

    def stored_height(self, index: int) -> int:
        """Height of a segment as stored: tiles are whole even past the edge, the last strip ends with the picture."""
        if self.tiled:
            return self.segment_height
        return min(self.segment_height, self.height - index // self.columns * self.segment_height)


class _OpenFile:
    """An open file, with a number of its own among all that the process opens."""

    _numbers = itertools.count()

    def __init__(self, path: Path) -> None:
        self._stream: BinaryIO = path.open("rb", buffering=0)
        self.number = next(self._numbers)

    def read(self, offset: int, count: int) -> bytes:
        """Read bytes; fewer where the file ends. The position is not shared, so threads need no lock."""
        return os.pread(self._stream.fileno(), count, offset)

    def close(self) -> None:
        """Close the file and give back the memory of its segments."""
        self._stream.close()
        CACHE.drop(self.number)

    def __del__(self) -> None:
        # As OpenSlide's handles do: one that is dropped closes itself, without a ResourceWarning. Its segments
        # are left to age: the lock over them may be held by the very thread that collects garbage.
        if hasattr(self, "number"):
            self._stream.close()


class CutShortError(ValueError):
    """The file ends before the pixels that it lists."""


class TiffPyramid:
    """The levels of a tiled or stripped uint8 TIFF, whether they are further pages or sub-IFDs of the first.

    Reads are exact, thread-safe, and decode only the segments that a window touches; those decoded last are kept,
    see `panda.wsi.segments.CACHE_BYTES`. A pickled one opens the file when it is read.

    Args:
        path: the file.
        blank: value of the px of segments that the file leaves out.
        red_only: read the first channel alone.

    Raises:
        ValueError: it is no TIFF, or one of a kind that is not read (the message says what).
        CutShortError: the file ends before its pixels do.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, *, blank: int = 0, red_only: bool = False) -> None:
        self.path = path
        self._blank = blank
        self._red_only = red_only
        try:
            with tifffile.TiffFile(path) as tif:
                first = tif.pages.first
                further = [*list(tif.pages)[1:], *(first.pages or [])]
                self._levels = _pyramid(first, [page.aspage() for page in further])
                self.samples = int(first.samplesperpixel)
                self.like_openslide = _like_openslide(first)
                size = int(tif.filehandle.size)
        except (OSError, ValueError):
            raise
        except Exception as exc:  # a damaged file may raise anything from inside the parser
            raise ValueError(f"not a readable TIFF ({type(exc).__name__}: {exc})") from exc
        for level in self._levels:
            _check(level, self.samples, size)
        self._file = PerProcess(partial(_OpenFile, path))

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level in px of that level, largest first."""
        return tuple((level.width, level.height) for level in self._levels)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a window that lies within a level.

        Args:
            level: number of the level.
            x: left edge in level px.
            y: top edge in level px.
            width: width in level px.
            height: height in level px.

        Returns:
            (height, width, samples) uint8, or (height, width) with ``red_only``, an array of its own.

        Raises:
            ValueError: a segment cannot be decoded.
            OSError: the file cannot be read.
        """
        of = self._levels[level]
        out = np.empty((height, width) if self._red_only else (height, width, self.samples), np.uint8)
        for row in range(y // of.segment_height, (y + height - 1) // of.segment_height + 1):
            top = row * of.segment_height
            y0, y1 = max(y, top), min(y + height, top + of.segment_height)
            for column in range(x // of.segment_width, (x + width - 1) // of.segment_width + 1):
                left = column * of.segment_width
                x0, x1 = max(x, left), min(x + width, left + of.segment_width)
                segment = self._segment(level, row * of.columns + column)
                window = out[y0 - y : y1 - y, x0 - x : x1 - x]
                window[...] = self._blank if segment is None else segment[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _segment(self, level: int, index: int) -> NDArray[np.uint8] | None:
        """Decode one tile or strip as (h, w, samples) or (h, w); None where the file stores nothing for it."""
        file, of = self._file.get(), self._levels[level]
        if not of.byte_counts[index]:
            return None
        key = file.number, level, index
        if (kept := CACHE.get(key)) is not None:
            return kept
        data = file.read(of.offsets[index], of.byte_counts[index])
        try:
            segment = of.decoder.decode(data, of.stored_height(index), of.segment_width)
        except Exception as exc:  # every codec has errors of its own
            raise ValueError(f"segment {index} of level {level} does not decode: {exc}") from exc
        if self._red_only:
            segment = np.ascontiguousarray(segment[..., 0])
        CACHE.put(key, segment)
        return segment

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
        self._file.close()


def _pyramid(first: Any, further: list[Any]) -> tuple[_Level, ...]:
    """Pick the pages that show the first one's picture, smaller; others are labels or thumbnails."""
    if first.dtype != np.uint8 or first.planarconfig != 1 or first.imagedepth != 1:
        raise ValueError(
            f"pixels are {first.dtype}, planar configuration {int(first.planarconfig)}; "
            "only uint8 pixels with interleaved channels are read"
        )
    size = first.imagewidth, first.imagelength

    def kind(page: Any) -> tuple[Any, ...]:
        return page.dtype, page.planarconfig, page.samplesperpixel, page.is_tiled

    levels = [_level(first)]
    for page in sorted(further, key=lambda page: -int(page.imagewidth)):
        downsample, deviation = level_scale(size, (page.imagewidth, page.imagelength))
        if kind(page) == kind(first) and downsample > 1 and deviation <= 1:
            levels.append(_level(page))
    return tuple(levels)


def _like_openslide(page: Any) -> bool:
    """Whether OpenSlide shows the stored pixels as they are decoded here: tiles of RGB, or of JPEG's YCbCr."""
    jpeg = int(page.compression) == JPEG
    plain = int(page.photometric) == 2 or (jpeg and int(page.photometric) == 6)
    upright = int(page.tags.valueof("Orientation", default=1)) == 1
    return bool(page.is_tiled and page.samplesperpixel == 3 and plain and upright)


def _level(page: Any) -> _Level:
    """Copy what reading a page takes, so that the parsed file can be closed."""
    height, width = page.chunks[:2]
    return _Level(
        width=int(page.imagewidth),
        height=int(page.imagelength),
        segment_width=int(width),
        segment_height=int(height),
        tiled=bool(page.is_tiled),
        offsets=tuple(page.dataoffsets),
        byte_counts=tuple(page.databytecounts),
        decoder=Decoder(
            int(page.compression),
            int(page.predictor),
            int(page.photometric),
            int(page.samplesperpixel),
            page.jpegtables,
        ),
    )


def _check(level: _Level, samples: int, size: int) -> None:
    """Refuse a level that cannot be read, or not in bounded memory.

    Raises:
        ValueError: it is empty, its tiles are too large, or the file does not list all of them.
        CutShortError: the file ends before its pixels do.
    """
    if min(level.width, level.height, level.segment_width, level.segment_height) < 1:
        raise ValueError(f"a level is {level.width} x {level.height} px")
    segment = level.segment_width * level.segment_height * samples
    if segment > _LARGEST_SEGMENT_BYTES:
        raise ValueError(f"its tiles or strips take {segment} bytes each; write it with tiles of 256 px")
    wanted = level.columns * level.rows
    if min(len(level.offsets), len(level.byte_counts)) < wanted:
        raise ValueError(f"it lists {len(level.offsets)} of {wanted} tiles or strips")
    end = max(map(sum, zip(level.offsets, level.byte_counts, strict=False)), default=0)
    if end > size:
        raise CutShortError(f"it is cut short: the file has {size} bytes, its pixels reach to {end}")
