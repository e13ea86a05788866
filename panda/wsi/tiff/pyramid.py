"""Pyramidal TIFFs read pixel by pixel as they are stored.

OpenSlide interpolates whenever a location does not fall on a whole pixel of the level, which happens at
every level whose downsample is no integer. That softens a photograph a little and ruins a label mask (between
code 1 and code 5 it invents a 3), so masks are read here; and so are slides whose files allow it, since decoding
only the tiles that a window touches, each once, is several times faster (docs/performance.md).
"""

from __future__ import annotations

import itertools
import os
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from panda.wsi.handles import PerProcess
from panda.wsi.tiff.segments import CACHE, JPEG
from panda.wsi.tiff.tables import Level, read_pages


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


class TiffPyramid:
    """The levels of a tiled or stripped uint8 TIFF, whether they are further pages or sub-IFDs of the first.

    Reads are exact, thread-safe, and decode only the segments that a window touches; those decoded last are kept,
    see `panda.wsi.tiff.segments.CACHE_BYTES`. A pickled one opens the file when it is read.

    Args:
        path: The file.
        blank: Value of the px of segments that the file leaves out.
        red_only: Read the first channel alone, as label codes.

    Raises:
        ValueError: It is no TIFF, or one of a kind that is not read (the message says what).
        BrokenTiffError: It is damaged; no reader should open it.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, *, blank: int = 0, red_only: bool = False) -> None:
        self.path = path
        self._blank = blank
        self._red_only = red_only
        pages = read_pages(path)
        if red_only and pages[0].compression == JPEG:
            # Most altered codes are codes again, so nothing downstream would see it.
            raise ValueError("it is compressed by JPEG, which alters label codes; store the mask without loss")
        self._levels = tuple(page.level for page in pages)
        self._decoders = tuple(page.decoder() for page in pages)
        self.samples = pages[0].samples
        self.colours = pages[0].colours
        self.matches_openslide = pages[0].matches_openslide
        self._file = PerProcess(partial(_OpenFile, path))

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level in px of that level, largest first."""
        return tuple((level.width, level.height) for level in self._levels)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Where the tiles or strips of each level lie, largest level first."""
        return self._levels

    def is_jpeg(self, level: int) -> bool:
        """Whether the tiles or strips of a level are JPEG pictures."""
        return self._decoders[level].compression == JPEG

    def stored(self, offset: int, count: int) -> bytes:
        """Read bytes as they are stored; fewer where the file ends.

        Raises:
            OSError: The file cannot be read.
        """
        return self._file.get().read(offset, count)

    def read(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True) -> NDArray[np.uint8]:
        """Read a window that lies within a level.

        Args:
            level: Number of the level.
            x: Left edge in level px.
            y: Top edge in level px.
            width: Width in level px.
            height: Height in level px.
            keep: The segments for later reads, except one that is the whole window: no other needs that.

        Returns:
            (height, width, samples) uint8, or (height, width) with `red_only`, an array of its own.

        Raises:
            ValueError: A segment cannot be decoded.
            OSError: The file cannot be read.
        """
        of = self._levels[level]
        if (width, height) == (of.segment_width, of.segment_height) and not (x % width or y % height):
            return self._read_whole_segment(level, y // height * of.columns + x // width)
        shape = (height, width) if self._red_only else (height, width, self.samples)
        out = np.empty(shape, np.uint8)
        for row in range(y // of.segment_height, (y + height - 1) // of.segment_height + 1):
            top = row * of.segment_height
            y0, y1 = max(y, top), min(y + height, top + of.segment_height)
            for column in range(x // of.segment_width, (x + width - 1) // of.segment_width + 1):
                left = column * of.segment_width
                x0, x1 = max(x, left), min(x + width, left + of.segment_width)
                segment = self._decode_segment(level, row * of.columns + column, keep=keep)
                window = out[y0 - y : y1 - y, x0 - x : x1 - x]
                window[...] = self._blank if segment is None else segment[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _read_whole_segment(self, level: int, index: int) -> NDArray[np.uint8]:
        """Read a window that is one segment: decoded into the result, and not kept."""
        segment = self._decode_segment(level, index, keep=False)
        if segment is None:
            of = self._levels[level]
            shape = (of.segment_height, of.segment_width, self.samples)
            return np.full(shape[:2] if self._red_only else shape, self._blank, np.uint8)
        return segment if segment.flags.writeable else segment.copy()

    def _decode_segment(self, level: int, index: int, *, keep: bool) -> NDArray[np.uint8] | None:
        """Decode one tile or strip as (h, w, samples) or (h, w); None where the file stores nothing for it.

        One that is kept, for others too, cannot be written to.
        """
        file, of = self._file.get(), self._levels[level]
        if not of.byte_counts[index]:
            return None
        key = file.number, level, index
        if (kept := CACHE.get(key)) is not None:
            return kept
        data = file.read(int(of.offsets[index]), int(of.byte_counts[index]))
        try:
            segment = self._decoders[level].decode(data, of.stored_height(index), of.segment_width)
        except Exception as exc:  # every codec has errors of its own
            raise ValueError(f"segment {index} of level {level} does not decode: {exc}") from exc
        if self._red_only:
            segment = np.ascontiguousarray(segment[..., 0])
        if keep:
            segment.flags.writeable = False
            CACHE.put(key, segment)
        return segment

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
        self._file.close()
