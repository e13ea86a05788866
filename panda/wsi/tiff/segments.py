"""The tiles and strips of TIFFs: decoded in bounded memory, and cached.

Beside the result, reading takes at most `CACHE_BYTES` (or one larger segment) and five times `SEGMENT_BYTES` per thread
that decodes. These are the stored bytes (at most two), the decoded bytes, and two more: libjpeg's buffers of a
progressive picture, or values of 16 bits. Codecs that need more have smaller segments. No file can make it take more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from panda.memory import clear_after_fork
from panda.wsi.tiff.codecs import GREYS, INFLATE, JPEG, PICTURES, decode_jpeg, read_jpeg_size

CACHE_BYTES = 32 * 2**20
"""Decoded segments that a process caches, of all its TIFFs together: 42 tiles of 512 px. If a row of overlapping
windows touches no more, each tile is decoded once. A larger cache is slower, because its memory is touched rarely."""
SEGMENT_BYTES = 64 * 2**20
"""Largest decoded segment. The last one is always cached, otherwise each window would decode it again."""
PICTURE_BYTES = SEGMENT_BYTES // 4
"""Largest decoded segment of a codec that takes several times as much memory: JPEG 2000, JPEG XL, WebP."""

Segment = NDArray[np.uint8]

_READ = (
    "read are none, LZW, deflate, PackBits and zstd, with predictor 1 or 2, and JPEG, JPEG 2000 (33005, 34712), "
    "JPEG XL and WebP with 1 or 3 samples"
)


@dataclass(frozen=True)
class Decoder:
    """Decoder of the tiles or strips of a page.

    Attributes:
        compression: TIFF's number of the compression.
        predictor: 1 for none, 2 for differences along the rows.
        photometric: TIFF's number of the meaning of the colours.
        samples: Values a px, interleaved.
        tables: JPEG tables of the page.
        dtype: NumPy's name of the stored values with their byte order.
    """

    compression: int
    predictor: int
    photometric: int
    samples: int
    tables: bytes | None
    dtype: str = "|u1"

    def check(self, segment_bytes: int) -> None:
        """Refuse an unsupported compression, predictor or size (bytes of the largest segment) with a ValueError."""
        jpeg = self.compression == JPEG and self.samples in {1, 3} and self.dtype == "|u1"
        picture = self.compression in PICTURES and self.samples in {1, 3}
        if not (jpeg or picture) and (self.compression not in INFLATE or self.predictor not in {1, 2}):
            raise ValueError(
                f"its compression is {self.compression} with predictor {self.predictor} and {self.samples} samples; "
                f"{_READ}"
            )
        if picture and segment_bytes > PICTURE_BYTES:
            raise ValueError(
                f"its tiles or strips take {segment_bytes} bytes each, over {PICTURE_BYTES} for its compression"
            )
        if jpeg and self.tables is not None and read_jpeg_size(self.tables) is not None:
            raise ValueError("its JPEG tables hold a picture")

    def decode(self, data: bytes, height: int, width: int) -> Segment:
        """Decode the bytes of a segment to (height, width, samples), 16 bits scaled to 8 as OpenSlide does.

        Raises:
            Exception: If the data is damaged, any that the codec raises, or if it has another size.
        """
        shape = height, width, self.samples
        if self.compression == JPEG:
            return decode_jpeg(data, shape, self.photometric, self.tables)
        if self.compression in PICTURES:
            values = PICTURES[self.compression](data, shape)
            if values.size != np.prod(shape) or values.dtype != np.dtype(self.dtype).newbyteorder("="):
                raise ValueError(f"it holds {values.shape} {values.dtype}")
            values = values.reshape(shape)
        else:
            size = height * width * self.samples * np.dtype(self.dtype).itemsize
            plain = INFLATE[self.compression](data, size)
            if len(plain) < size:
                raise ValueError(f"it holds {len(plain)} of {size} bytes")
            values = np.frombuffer(plain, self.dtype).reshape(shape)
            if self.predictor == 2:
                values = imagecodecs.delta_decode(values.astype(values.dtype.newbyteorder("="), copy=False), axis=1)
        return np.asarray(values) if values.dtype == np.uint8 else self._scale(values)

    def _scale(self, values: NDArray[np.uint16]) -> Segment:
        """Scale 16 bits to 8 as libtiff does for OpenSlide: grey by its upper byte, colours by (v + 128) // 257."""
        upper, lower = (values >> 8).astype(np.uint8), values.astype(np.uint8)
        if self.photometric in GREYS:
            return upper
        # v = 257 x upper + (lower - upper), so the quotient is the upper byte or one beside it.
        difference = lower.astype(np.int16) - upper
        return upper + (difference > 128) - (difference < -128)


class SegmentCache:
    """The segments that a process used last, up to a number of bytes, or one larger segment."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.clear()
        clear_after_fork(self.clear)

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
