"""Pyramidal TIFFs, read pixel by pixel as they are stored.

OpenSlide interpolates if a location is not a whole pixel of the level, which happens at every level whose downsample is
no integer. That softens a slide a little and ruins a label mask: between code 1 and code 5 it invents a 3. So masks are
read here. Slides are too if their files allow it, because this is several times faster (docs/performance.md).
"""

from __future__ import annotations

import itertools
import os
import threading
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from panda.errors import raise_exhaustion
from panda.memory import POOL
from panda.wsi.handles import PerProcess
from panda.wsi.tiff.codecs import JPEG, PICTURES
from panda.wsi.tiff.conversions import describe_orientation
from panda.wsi.tiff.segments import CACHE
from panda.wsi.tiff.tables import Page, UnshownTiffError, read_pages


class _OpenFile:
    """An open file with a number that no other file of the process has."""

    _numbers = itertools.count()

    def __init__(self, path: Path) -> None:
        self._stream: BinaryIO = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        self.number = next(self._numbers)

    def read(self, offset: int, count: int) -> bytes:
        """Read bytes, fewer at the end of the file. Threads share no position, or take turns on Windows."""
        if hasattr(os, "pread"):
            return os.pread(self._stream.fileno(), count, offset)
        with self._lock:
            self._stream.seek(offset)
            return self._stream.read(count)

    def close(self) -> None:
        """Close the file and give back the memory of its segments."""
        self._stream.close()
        CACHE.drop(self.number)

    def __del__(self) -> None:
        # Like OpenSlide's handles, a dropped one closes itself without a ResourceWarning. Its segments stay in the
        # cache, because the thread that collects garbage may hold the lock of the cache.
        if hasattr(self, "number"):
            self._stream.close()


class TiffPyramid:
    """The levels of a tiled or stripped TIFF, read as uint8, stored as further pages or as sub-IFDs of the first.

    Reads are exact, thread-safe, and decode only the segments that a window touches. The last ones are cached, see
    `panda.wsi.tiff.segments.CACHE_BYTES`. A pickled pyramid opens the file when it is read.

    Args:
        path: The file.
        blank: Value of the px of segments that the file leaves out; None for the lightest.
        red_only: Read only the first channel, as label codes.

    Attributes:
        levels: Size and segments of each level, largest first.
        colours: Meaning of the values; None if they are not RGB, straight RGBA, grey or a palette.
        colour_table: RGB of each value in grey or of a palette, (256, 3) uint8; else None.
        level_dimensions: (width, height) of each level in px of that level, largest first.

    Raises:
        ValueError: If the file is no TIFF, or one of an unsupported kind, which the message names.
        BrokenTiffError: If the file is damaged; no reader should open it.
        UnshownTiffError: If no reader shows the picture as it is meant.
        OSError: If the file cannot be read.
    """

    def __init__(self, path: Path, *, blank: int | None = 0, red_only: bool = False) -> None:
        self.path = path
        self._red_only = red_only
        pages = read_pages(path, has_codes=red_only)
        if red_only:
            _refuse_altered_codes(pages[0])
        self.levels = tuple(page.level for page in pages)
        self.level_dimensions = tuple((level.width, level.height) for level in self.levels)
        self._decoders = tuple(page.decoder for page in pages)
        for page in pages:
            page.decoder.check(page.segment_bytes)
        self.samples = pages[0].samples
        self.colours = pages[0].colours
        self.colour_table = table = pages[0].colour_table
        if blank is None:
            blank = 255 if table is None else int(table.sum(axis=1).argmax())
        self._blank = blank
        self.matches_openslide = pages[0].matches_openslide
        self.orientation = pages[0].orientation
        if red_only and self.orientation != 1:
            raise UnshownTiffError(describe_orientation(self.orientation, path, has_codes=True))
        self._file = PerProcess(partial(_OpenFile, path))

    def is_jpeg(self, level: int) -> bool:
        """Whether the tiles or strips of a level are JPEG pictures."""
        return self._decoders[level].compression == JPEG

    def read_bytes(self, offset: int, count: int) -> bytes:
        """Read bytes as they are stored, fewer at the end of the file."""
        return self._file.get().read(offset, count)

    def read(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True) -> NDArray[np.uint8]:
        """Read a window inside a level.

        Args:
            level: Number of the level.
            x: Left edge in level px.
            y: Top edge in level px.
            width: Width in level px.
            height: Height in level px.
            keep: Cache the segments for later reads. A segment that is the whole window is not cached.

        Returns:
            (height, width, samples) uint8, or (height, width) if `red_only`; the caller owns the array.

        Raises:
            ValueError: If a segment cannot be decoded.
            OSError: If the file cannot be read.
        """
        own = self.levels[level]
        across, down = own.segment_width, own.segment_height
        shape = (height, width) if self._red_only else (height, width, self.samples)
        if (width, height) == (across, down) and not (x % width or y % height):
            segment = self._decode_segment(level, y // height * own.columns + x // width, keep=False)
            if segment is None:
                return np.full(shape, self._blank, np.uint8)
            return segment if segment.flags.writeable else segment.copy()
        out = POOL.empty(shape) if keep else np.empty(shape, np.uint8)
        for row in range(y // down, (y + height - 1) // down + 1):
            top = row * down
            y0, y1 = max(y, top), min(y + height, top + down)
            for column in range(x // across, (x + width - 1) // across + 1):
                left = column * across
                x0, x1 = max(x, left), min(x + width, left + across)
                segment = self._decode_segment(level, row * own.columns + column, keep=keep)
                window = out[y0 - y : y1 - y, x0 - x : x1 - x]
                window[...] = self._blank if segment is None else segment[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _decode_segment(self, level: int, index: int, *, keep: bool) -> NDArray[np.uint8] | None:
        """Decode one tile or strip as (h, w, samples) or (h, w); None if the file stores nothing for it.

        A cached one is read-only.
        """
        file, own = self._file.get(), self.levels[level]
        planes = range(1 if self._red_only else own.planes)
        if not all(own.byte_counts[index + plane * own.count] for plane in planes):
            return None
        key = file.number, level, index

        def decode_plane(number: int) -> NDArray[np.uint8]:
            data = file.read(int(own.offsets[number]), int(own.byte_counts[number]))
            try:
                return self._decoders[level].decode(data, own.stored_height(index), own.segment_width)
            except Exception as exc:  # every codec has errors of its own
                raise_exhaustion(exc)
                raise ValueError(f"segment {number} of level {level} does not decode: {exc}") from exc

        def decode() -> NDArray[np.uint8]:
            parts = [decode_plane(index + plane * own.count) for plane in planes]
            segment = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
            if self._red_only:
                segment = np.ascontiguousarray(segment[..., 0])
            if keep:
                segment.flags.writeable = False
            return segment

        if keep:
            return CACHE.decode_once(key, decode)
        return cached if (cached := CACHE.get(key)) is not None else decode()

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
        self._file.close()


def _refuse_altered_codes(page: Page) -> None:
    """Refuse a mask whose codes were altered by its compression, or are scaled when they are read."""
    # Most altered codes are valid codes, so no later check would find them.
    if page.decoder.compression == JPEG:
        raise ValueError("it is compressed by JPEG, which alters label codes; store the mask without loss")
    if page.decoder.compression in PICTURES:
        raise ValueError(
            f"its compression {page.decoder.compression} is one of pictures, which can alter label codes; store the "
            "mask with deflate or LZW"
        )
    if page.kind[1] != 8:
        raise ValueError(f"pixels are {page.kind[0]} of {page.kind[1]} bits; only uint8 codes are read")
