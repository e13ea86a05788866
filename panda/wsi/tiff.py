"""Pyramidal TIFFs read pixel by pixel as they are stored.

OpenSlide interpolates whenever a location does not fall on a whole pixel of the level, which happens at
every level whose downsample is no integer. That softens a photograph a little and ruins a label mask (between
code 1 and code 5 it invents a 3), so masks are read here.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray

from panda.wsi.geometry import level_scale

_CACHE_BYTES = 32 * 2**20
_LARGEST_SEGMENT_BYTES = 2**28


class Closable(Protocol):
    """Anything that is closed when it is done with."""

    def close(self) -> None:
        """Release what is held."""


Handle = TypeVar("Handle", bound=Closable)


class PerProcess(Generic[Handle]):
    """A handle that is opened on first use, once in every process, and shared by its threads.

    Args:
        opener: opens the handle; its errors pass through `get`. Pickling keeps the opener alone.
    """

    def __init__(self, opener: Callable[[], Handle]) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._handle: Handle | None = None
        self._inherited: Handle | None = None

    def __reduce__(self) -> tuple[type[PerProcess[Handle]], tuple[Callable[[], Handle]]]:
        return type(self), (self._opener,)

    def get(self) -> Handle:
        """Return this process's handle, opening it where there is none."""
        if self._pid != os.getpid():
            # A forked worker shares file positions with its parent, and may have copied a lock that was held.
            # The parent's handle is kept, unused: closing it here could wait for such a lock for ever.
            self._inherited, self._handle = self._handle, None
            self._lock = threading.Lock()
            self._pid = os.getpid()
        with self._lock:
            if self._handle is None:
                self._handle = self._opener()
            return self._handle

    def drop(self, handle: Handle) -> None:
        """Forget a handle that has failed; the next `get` opens a new one."""
        with self._lock:
            if self._handle is handle:
                self._handle = None

    def close(self) -> None:
        """Close this process's handle; a later `get` opens it again."""
        if self._pid == os.getpid():
            with self._lock:
                handle, self._handle = self._handle, None
            if handle is not None:
                handle.close()


@dataclass(frozen=True)
class _Level:
    """One level: its size, its tiles or strips, and how to decode one."""

    width: int
    height: int
    segment_width: int
    segment_height: int
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    decode: Callable[..., tuple[NDArray[np.uint8] | None, Any, Any]]
    jpeg_tables: bytes | None


class _OpenFile:
    """An open file with the lock its position needs and the segments decoded last."""

    def __init__(self, path: Path) -> None:
        self.stream: BinaryIO = path.open("rb")
        self.lock = threading.Lock()
        self.segments: OrderedDict[tuple[int, int], NDArray[np.uint8] | None] = OrderedDict()

    def close(self) -> None:
        """Close the file."""
        self.stream.close()

    def __del__(self) -> None:
        # As OpenSlide's handles do: one that is dropped closes itself, without a ResourceWarning.
        if hasattr(self, "stream"):
            self.stream.close()


class TiffPyramid:
    """The levels of a tiled or stripped uint8 TIFF, whether they are further pages or sub-IFDs of the first.

    Reads are exact, thread-safe, and decode only the segments that a window touches. Pickling keeps the path.

    Args:
        path: the file.

    Raises:
        ValueError: it is no TIFF, or one of a kind that is not read (the message says what).
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tifffile.TiffFile(path) as tif:
                first = tif.pages.first
                further = [*list(tif.pages)[1:], *(first.pages or [])]
                self._levels = _pyramid(first, [page.aspage() for page in further])
                self.samples = int(first.samplesperpixel)
        except (OSError, ValueError):
            raise
        except Exception as exc:  # a damaged file may raise anything from inside the parser
            raise ValueError(f"not a readable TIFF ({type(exc).__name__}: {exc})") from exc
        largest = max(level.segment_width * level.segment_height for level in self._levels) * self.samples
        if largest > _LARGEST_SEGMENT_BYTES:
            raise ValueError(f"its tiles or strips take {largest} bytes each; write it with tiles of 256 px")
        self._cached = max(4, _CACHE_BYTES // largest)
        self._file = PerProcess(partial(_OpenFile, path))

    def __reduce__(self) -> tuple[type[TiffPyramid], tuple[Path]]:
        return type(self), (self.path,)

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
            (height, width, samples) uint8; segments that the file leaves out are 0.

        Raises:
            ValueError: a segment cannot be decoded.
            OSError: the file cannot be read.
        """
        of = self._levels[level]
        out = np.zeros((height, width, self.samples), np.uint8)
        columns = math.ceil(of.width / of.segment_width)
        for row in range(y // of.segment_height, (y + height - 1) // of.segment_height + 1):
            for column in range(x // of.segment_width, (x + width - 1) // of.segment_width + 1):
                segment = self._segment(level, row * columns + column)
                if segment is None:
                    continue
                left, top = column * of.segment_width, row * of.segment_height
                x0, y0 = max(x, left), max(y, top)
                x1 = min(x + width, left + segment.shape[1])
                y1 = min(y + height, top + segment.shape[0])
                out[y0 - y : y1 - y, x0 - x : x1 - x] = segment[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _segment(self, level: int, index: int) -> NDArray[np.uint8] | None:
        """Decode one tile or strip as (h, w, samples); None where the file stores nothing for it."""
        file, of, key = self._file.get(), self._levels[level], (level, index)
        with file.lock:
            if key in file.segments:
                file.segments.move_to_end(key)
                return file.segments[key]
            file.stream.seek(of.offsets[index])
            data = file.stream.read(of.byte_counts[index])
        segment: NDArray[np.uint8] | None = None
        if of.byte_counts[index]:
            if len(data) != of.byte_counts[index]:
                raise ValueError(f"the file ends within segment {index} of level {level}: it is cut short")
            try:
                decoded = of.decode(data, index, jpegtables=of.jpeg_tables)[0]
            except Exception as exc:  # every codec has errors of its own
                raise ValueError(f"segment {index} of level {level} does not decode: {exc}") from exc
            segment = None if decoded is None else decoded[0]
        with file.lock:
            file.segments[key] = segment
            while len(file.segments) > self._cached:
                file.segments.popitem(last=False)
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


def _level(page: Any) -> _Level:
    """Copy what reading a page takes, so that the parsed file can be closed."""
    height, width = page.chunks[:2]
    return _Level(
        width=int(page.imagewidth),
        height=int(page.imagelength),
        segment_width=int(width),
        segment_height=int(height),
        offsets=tuple(page.dataoffsets),
        byte_counts=tuple(page.databytecounts),
        decode=page.decode,
        jpeg_tables=page.jpegtables,
    )
