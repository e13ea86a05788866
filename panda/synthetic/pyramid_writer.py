"""Write a slide and its label mask as tiled pyramidal TIFFs, tile by tile, in one pass over level 0.

Memory holds one row of tiles of level 0. The reduced levels wait in unnamed temporary files beside the target, which
vanish with the process. The level-0 tiles of the mask wait deflated, with a few kilobytes each.
"""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from panda.files import write_beside

DOWNSAMPLES = (1, 4, 16)
JPEG_QUALITY = 80
_CHUNK_PX = 1024
# a larger image may need offsets of more than 32 bits
_BIG_PX = 2**30

Bytes = NDArray[np.uint8]
Draw = Callable[[int, int, int, int], tuple[Bytes, Bytes]]


class _Spill:
    """Rows of one reduced level, written from the top and read back as tiles."""

    def __init__(self, file: IO[bytes], width: int, channels: int) -> None:
        self.file = file
        self.width = width
        self.channels = channels
        self.rows = 0

    def append(self, band: Bytes) -> None:
        self.file.write(np.ascontiguousarray(band).data)
        self.rows += band.shape[0]

    def read_tiles(self, size: tuple[int, int], tile: int) -> Iterator[Bytes]:
        """Yield the tiles (tile, tile, channels) of a level of `size` (w, h), with its edges repeated past it."""
        line = self.width * self.channels
        for y in range(0, size[1], tile):
            count = min(tile, self.rows - y)
            self.file.seek(y * line)
            band = np.frombuffer(self.file.read(count * line), np.uint8).reshape(count, self.width, self.channels)
            past = (-self.width) % tile
            band = np.pad(band, ((0, tile - count), (0, past), (0, 0)), mode="edge")
            for x in range(0, size[0], tile):
                yield band[:, x : x + tile]


def _to_red(codes: Bytes) -> Bytes:
    """Return (h, w, 3) with codes (h, w) in the red channel, as in PANDA's masks."""
    rgb = np.zeros((*codes.shape, 3), np.uint8)
    rgb[..., 0] = codes
    return rgb


class _LevelZero:
    """The one pass over level 0: it yields the tiles of the picture and stores everything that is written later."""

    def __init__(self, draw: Draw, size: tuple[int, int], tile: int, files: Sequence[IO[bytes]]) -> None:
        self.draw = draw
        self.size = size
        self.tile = tile
        self.across = -(-size[0] // tile)
        widths = [self.across * tile // d for d in DOWNSAMPLES[1:]]
        self.picture = [_Spill(f, w, 3) for f, w in zip(files[:2], widths, strict=True)]
        self.mask = [_Spill(f, w, 1) for f, w in zip(files[2:], widths, strict=True)]
        self.mask_tiles: list[bytes] = []
        self.blank = zlib.compress(bytes(3 * tile * tile))
        self.counts = np.zeros(256, np.int64)

    def encode(self, codes: Bytes) -> bytes:
        return zlib.compress(_to_red(codes).tobytes(), 4) if codes.any() else self.blank

    def draw_tiles(self, recode: Bytes) -> Iterator[Bytes]:
        tile, (width, height) = self.tile, self.size
        step = max(_CHUNK_PX // tile, 1)
        for y in range(0, height, tile):
            small: list[list[Bytes]] = [[], [], [], []]
            for first in range(0, self.across, step):
                x, count = first * tile, min(step, self.across - first)
                rgb, truth = (np.ascontiguousarray(a) for a in self.draw(x, y, count * tile, tile))
                truth[max(height - y, 0) :] = 0
                truth[:, max(width - x, 0) :] = 0
                self.counts += np.bincount(truth.ravel(), minlength=256)
                codes = recode[truth]
                # area means by a whole factor are sums of bytes, so they are exact on any machine
                quarter = cv2.resize(rgb, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
                sixteenth = cv2.resize(quarter, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
                reduced = (quarter, sixteenth, codes[2::4, 2::4], codes[8::16, 8::16])
                for row, part in zip(small, reduced, strict=True):
                    row.append(np.asarray(part, dtype=np.uint8))
                columns = [np.s_[:, i * tile : (i + 1) * tile] for i in range(count)]
                self.mask_tiles += [self.encode(codes[column]) for column in columns]
                if first + count == self.across:
                    # before the last tile is yielded: the writer asks for no more
                    for spill, row in zip((*self.picture, *self.mask), small, strict=True):
                        spill.append(np.concatenate(row, axis=1))
                yield from (rgb[column] for column in columns)


def write_slide(
    image_path: Path, mask_path: Path, draw: Draw, recode: Bytes, *, size: tuple[int, int], tile: int, mpp: float
) -> NDArray[np.int64]:
    """Draw and write a slide and its mask, both whole or not at all.

    Level sizes are rounded down, as in PANDA. The picture is JPEG (YCbCr 4:2:0) and its levels are area means. The mask
    is deflated with the label in the red channel, and its levels are nearest neighbours.

    Args:
        image_path: Path of the slide.
        mask_path: Path of the mask.
        draw: Returns picture (h, w, 3) RGB and true codes (h, w) of the rectangle x, y, w, h in level-0 px, also past
            the edge of the slide.
        recode: (256,) code of the mask for each true code.
        size: Width and height in level-0 px.
        tile: Side of the tiles in px, a multiple of 16.
        mpp: µm per level-0 px.

    Returns:
        (256,) level-0 px of each true code on the slide.
    """
    levels = [(max(size[0] // d, 1), max(size[1] // d, 1)) for d in DOWNSAMPLES]

    def write(tiff: tifffile.TiffWriter, tiles: Iterator[Any], level: int, **how: Any) -> None:
        per_cm = 10000 / (mpp * DOWNSAMPLES[level])
        width, height = levels[level]
        tiff.write(
            tiles,
            shape=(height, width, 3),
            dtype=np.uint8,
            tile=(tile, tile),
            photometric="rgb",
            subfiletype=int(level > 0),
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
            metadata=None,
            maxworkers=1,
            **how,
        )

    jpeg = {"compression": "jpeg", "compressionargs": {"level": JPEG_QUALITY}, "subsampling": (2, 2)}
    big = size[0] * size[1] > _BIG_PX
    with contextlib.ExitStack() as stack:
        image_partial, mask_partial = (stack.enter_context(write_beside(p)) for p in (image_path, mask_path))
        files = [stack.enter_context(tempfile.TemporaryFile(dir=image_partial.parent)) for _ in range(4)]
        base = _LevelZero(draw, size, tile, files)
        with tifffile.TiffWriter(image_partial, bigtiff=big) as tiff:
            write(tiff, base.draw_tiles(recode), 0, **jpeg)
            for level, spill in enumerate(base.picture, start=1):
                write(tiff, spill.read_tiles(levels[level], tile), level, **jpeg)
        with tifffile.TiffWriter(mask_partial, bigtiff=big) as tiff:
            write(tiff, iter(base.mask_tiles), 0, compression="adobe_deflate")
            for level, spill in enumerate(base.mask, start=1):
                reds = (_to_red(t[..., 0]) for t in spill.read_tiles(levels[level], tile))
                write(tiff, reds, level, compression="adobe_deflate")
    return base.counts
