"""The tiles and strips of TIFFs: decoded in bounded memory, and cached.

Beside the result, reading takes at most `CACHE_BYTES` (or one larger segment) and five times `SEGMENT_BYTES` per thread
that decodes. These are the stored bytes (at most two), the decoded bytes, and libjpeg's buffers of a progressive
picture (two). No file can make it take more.
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

from panda.memory import POOL

CACHE_BYTES = 32 * 2**20
"""Decoded segments that a process caches, of all its TIFFs together: 42 tiles of 512 px. If a row of overlapping
windows touches no more, each tile is decoded once. A larger cache is slower, because its memory is touched rarely."""
SEGMENT_BYTES = 64 * 2**20
"""Largest decoded segment. The last one is always cached, otherwise each window would decode it again."""
JPEG = 7
_RGB, _YCBCR = 2, 6  # photometric interpretations (TIFF 6.0, sections 6 and 21)

Segment = NDArray[np.uint8]

# Each takes the data and the expected number of bytes, and never returns more.
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
    """Decoder of the tiles or strips of a page.

    JPEG colours are those of the page's tags, as in OpenSlide, and not those of its markers.

    Attributes:
        compression: TIFF's number of the compression.
        predictor: 1 for none, 2 for differences along the rows.
        photometric: TIFF's number of the meaning of the colours.
        samples: uint8 values a px, interleaved.
        tables: JPEG tables of the page.
    """

    compression: int
    predictor: int
    photometric: int
    samples: int
    tables: bytes | None

    def check(self) -> None:
        """Refuse an unsupported compression or predictor with a ValueError."""
        jpeg = self.compression == JPEG and self.samples in {1, 3}
        if not jpeg and (self.compression not in _INFLATE or self.predictor not in {1, 2}):
            raise ValueError(
                f"its compression is {self.compression} with predictor {self.predictor} and {self.samples} samples; "
                f"{_READ}"
            )
        if jpeg and self.tables is not None and _read_jpeg_size(self.tables) is not None:
            raise ValueError("its JPEG tables hold a picture")

    def decode(self, data: bytes, height: int, width: int) -> Segment:
        """Decode the bytes of a segment to (height, width, samples).

        Raises:
            Exception: If the data is damaged, any that the codec raises, or if it has another size.
        """
        if self.compression == JPEG:
            return self._decode_jpeg(data, height, width)
        size = height * width * self.samples
        plain = _INFLATE[self.compression](data, size)
        if len(plain) < size:
            raise ValueError(f"it holds {len(plain)} of {size} bytes")
        segment = np.frombuffer(plain, np.uint8).reshape(height, width, self.samples)
        return np.asarray(imagecodecs.delta_decode(segment, axis=1)) if self.predictor == 2 else segment

    def _decode_jpeg(self, data: bytes, height: int, width: int) -> Segment:
        colour = self.samples == 3
        # Checked before the codec runs: a progressive JPEG takes memory by the size it claims.
        if (frame := _read_jpeg_size(data)) not in {None, (height, width, self.samples)}:
            raise ValueError(f"it says (height, width, samples) {frame}, not {(height, width, self.samples)}")
        segment = POOL.empty((height, width, 3) if colour else (height, width))
        imagecodecs.jpeg8_decode(
            data,
            tables=self.tables,
            colorspace={_RGB: "RGB", _YCBCR: "YCBCR"}.get(self.photometric) if colour else None,
            outcolorspace="RGB" if colour else "GRAYSCALE",
            out=segment,
        )
        return segment.reshape(height, width, self.samples)


def _read_jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    """Return height, width and components of a JPEG's frame header (ITU-T T.81, section B.2.2), None without one.

    The header is found as libjpeg finds it.
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
        if marker > 1 and not 0xD0 <= marker <= 0xD7:  # only these have no content
            at += int.from_bytes(data[at : at + 2])
    return None


class SegmentCache:
    """The segments that a process used last, up to a number of bytes, or one larger segment."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.clear()
        os.register_at_fork(after_in_child=self.clear)  # a lock may have been held when the process was copied

    def clear(self) -> None:
        """Remove all segments."""
        self._lock = threading.Lock()
        self._decoding: dict[tuple[int, int, int], threading.Lock] = {}
        self._segments: LRUCache[tuple[int, int, int], Segment] = LRUCache(
            self._max_bytes, getsizeof=lambda segment: min(segment.nbytes, self._max_bytes)
        )

    def get(self, key: tuple[int, int, int]) -> Segment | None:
        """Return the segment of (file, level, index), or None if it is not cached."""
        with self._lock:
            return self._segments.get(key)

    def decode_once(self, key: tuple[int, int, int], decode: Callable[[], Segment]) -> Segment:
        """Return a cached segment, or decode and cache it; other threads that need it wait for the one that decodes.

        It takes the place of the least recently used segments.
        """
        with self._lock:
            if (cached := self._segments.get(key)) is not None:
                return cached
            decoding = self._decoding.setdefault(key, threading.Lock())
        with decoding:
            if (cached := self.get(key)) is not None:
                return cached
            try:
                segment = decode()
                with self._lock:
                    self._segments[key] = segment
            finally:
                with self._lock:
                    self._decoding.pop(key, None)
        return segment

    def drop(self, file: int) -> None:
        """Remove the segments of a file."""
        with self._lock:
            for key in [key for key in self._segments if key[0] == file]:
                del self._segments[key]


CACHE = SegmentCache(CACHE_BYTES)
"""The cache of this process."""
