"""The tiles and strips of TIFFs: decoded in bounded memory, and kept while they may be asked for again.

Beside the pixels asked for, reading takes at most `CACHE_BYTES` (or one larger segment) and, for each thread that
decodes, five times `SEGMENT_BYTES`, whatever a file claims: the stored bytes (at most two), the decoded ones, and what
libjpeg keeps of a progressive picture (two).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import imagecodecs
import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

CACHE_BYTES = 32 * 2**20
"""Decoded segments kept by a process, of all its TIFFs together: 42 tiles of 512 px. Windows that overlap and are read
row by row find each tile decoded once where a row of them touches no more. (A larger cache is slower in itself: memory
that was not touched for long is slow to come by.)"""

SEGMENT_BYTES = 64 * 2**20
"""Largest decoded segment. The one decoded last is always kept, else it would be decoded anew for each window."""

JPEG = 7
_RGB, _YCBCR = 2, 6  # photometric interpretations (TIFF 6.0, sections 6 and 21)

Segment = NDArray[np.uint8]

# Each takes the data and the number of bytes it must come to, and never makes more.
_INFLATE: Mapping[int, Callable[[bytes, int], bytes | bytearray]] = {
    1: lambda data, size: data[:size],
    5: lambda data, size: imagecodecs.lzw_decode(data, out=size),
    8: lambda data, size: imagecodecs.deflate_decode(data, out=size),
    32773: lambda data, size: imagecodecs.packbits_decode(data, out=size),
    32946: lambda data, size: imagecodecs.deflate_decode(data, out=size),
    50000: lambda data, size: imagecodecs.zstd_decode(data, out=size),
}
_READ = "read are none, LZW, deflate, PackBits and zstd, with predictor 1 or 2, and JPEG with 1 or 3 samples"


@dataclass(frozen=True)
class Decoder:
    """How the tiles or strips of a page are decoded.

    JPEG takes its colours from the page's tags, as OpenSlide does, and not from markers within.

    Attributes:
        compression: TIFF's number of it.
        predictor: 1 for none, 2 for differences along the rows.
        photometric: TIFF's number of the colours' meaning.
        samples: Uint8 values a px, interleaved.
        tables: The page's JPEG tables.

    Raises:
        ValueError: Compression and predictor are none that is read.
    """

    compression: int
    predictor: int
    photometric: int
    samples: int
    tables: bytes | None

    def __post_init__(self) -> None:
        jpeg = self.compression == JPEG and self.samples in {1, 3}
        if not jpeg and (self.compression not in _INFLATE or self.predictor not in {1, 2}):
            raise ValueError(
                f"its compression is {self.compression} with predictor {self.predictor} and {self.samples} samples; "
                f"{_READ}"
            )
        if jpeg and self.tables is not None and _frame(self.tables) is not None:
            raise ValueError("its JPEG tables hold a picture")

    def decode(self, data: bytes, height: int, width: int) -> Segment:
        """Turn the bytes of a segment into (height, width, samples).

        Raises:
            Exception: Any that a codec has for damaged data; also where they come to another size.
        """
        if self.compression == JPEG:
            return self._jpeg(data, height, width)
        size = height * width * self.samples
        plain = _INFLATE[self.compression](data, size)
        if len(plain) < size:
            raise ValueError(f"it holds {len(plain)} of {size} bytes")
        segment = np.frombuffer(plain, np.uint8).reshape(height, width, self.samples)
        return np.asarray(imagecodecs.delta_decode(segment, axis=1)) if self.predictor == 2 else segment

    def _jpeg(self, data: bytes, height: int, width: int) -> Segment:
        colour = self.samples == 3
        # Before the codec sees it: a progressive JPEG takes memory by the size it claims.
        if (frame := _frame(data)) not in {None, (height, width, self.samples)}:
            raise ValueError(f"it says (height, width, samples) {frame}, not {(height, width, self.samples)}")
        segment = np.empty((height, width, 3) if colour else (height, width), np.uint8)
        imagecodecs.jpeg8_decode(
            data,
            tables=self.tables,
            colorspace={_RGB: "RGB", _YCBCR: "YCBCR"}.get(self.photometric) if colour else None,
            outcolorspace="RGB" if colour else "GRAYSCALE",
            out=segment,
        )
        return segment.reshape(height, width, self.samples)


def _frame(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and components that the frame header of a JPEG states, found as libjpeg finds it.

    Returns:
        None where there is none (ITU-T T.81, section B.2.2).
    """
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        while data[at : at + 1] == b"\xff":
            at += 1
        marker = int.from_bytes(data[at : at + 1])
        if marker in {0xD8, 0xD9, 0xDA}:  # another picture, its end, or pixels
            return None
        at += 1
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            frame = data[at + 3 : at + 8]
            return int.from_bytes(frame[:2]), int.from_bytes(frame[2:4]), int.from_bytes(frame[4:])
        if marker > 1 and not 0xD0 <= marker <= 0xD7:  # these alone stand without content
            at += int.from_bytes(data[at : at + 2])
    return None


class SegmentCache:
    """The segments that a process decoded last, up to a number of bytes, or one larger segment.

    Args:
        most: Bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.clear()
        os.register_at_fork(after_in_child=self.clear)  # a lock may have been held when the process was copied

    def clear(self) -> None:
        """Forget everything."""
        self._lock = threading.Lock()
        self._kept: LRUCache[tuple[int, int, int], Segment] = LRUCache(
            self._most, getsizeof=lambda segment: min(segment.nbytes, self._most)
        )

    def get(self, key: tuple[int, int, int]) -> Segment | None:
        """Return the segment of (file, level, index), or None if it is not kept."""
        with self._lock:
            return self._kept.get(key)

    def put(self, key: tuple[int, int, int], segment: Segment) -> None:
        """Keep a segment in place of those that were not used for longest."""
        with self._lock:
            self._kept.setdefault(key, segment)

    def drop(self, file: int) -> None:
        """Forget the segments of a file."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == file]:
                del self._kept[key]


CACHE = SegmentCache(CACHE_BYTES)
"""The cache of this process."""
