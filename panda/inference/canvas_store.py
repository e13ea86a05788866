"""Store the probability map of a whole slide on disk.

A canvas is a zarr 3 group with one array of uint16 in the working frame of the network, with the codes of
`panda.inference.codes`. With one class of cancer it has the axes y and x. With several it has the axes c, y and x, one
plane for each class of cancer. `panda.inference.canvas_metadata` describes the metadata.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from panda.errors import CheckpointError
from panda.files import walk
from panda.inference.canvas_metadata import (
    AGAIN,
    ARRAY,
    CHUNK,
    LEVEL,
    METADATA,
    CanvasMetadata,
    StoredSize,
    read_metadata,
)
from panda.inference.codes import choose_classes, dequantize, merge_codes

_BLOCK = 2 * CHUNK
"""Side of a block that is kept decoded, in working px."""


def find_chunk(path: Path, chunk: tuple[int, ...]) -> Path:
    """Return the path of a chunk of the canvas in a zarr folder, which need not exist."""
    return path.joinpath(ARRAY, "c", *map(str, chunk))


def write_chunk(path: Path, chunk: tuple[int, ...], shape: tuple[int, int], codes: NDArray[np.uint16]) -> None:
    """Write a chunk as zarr does, without its event loop, which takes several times longer.

    Args:
        path: The zarr folder.
        chunk: Plane, if there are several, row and column of the chunk.
        shape: Height and width of chunks.
        codes: The chunk, (≤ height, ≤ width); the edge of the array can cut it.
    """
    whole = codes
    if codes.shape != shape:
        whole = np.zeros(shape, np.uint16)
        whole[: codes.shape[0], : codes.shape[1]] = codes
    plain: Any = whole.astype("<u2", copy=False)
    data = imagecodecs.blosc_encode(plain, level=LEVEL, compressor="lz4", shuffle="shuffle", typesize=2, numthreads=1)
    file = find_chunk(path, chunk)
    try:
        stream = file.open("wb")
    except FileNotFoundError:  # the first chunk of its row
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("wb")
    with stream:
        stream.write(data)
        stream.write(google_crc32c.value(data).to_bytes(4, "little"))


def read_chunk(path: Path, chunk: tuple[int, ...], shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Read a chunk that `write_chunk` or zarr wrote.

    Raises:
        ValueError: If the file is damaged.
        OSError: If it cannot be read.
    """
    stored = find_chunk(path, chunk).read_bytes()
    data, checksum = stored[:-4], int.from_bytes(stored[-4:], "little")
    if google_crc32c.value(data) != checksum:
        raise ValueError("its checksum is wrong")
    codes = np.empty(shape, "<u2")
    decoded = imagecodecs.blosc_decode(data, numthreads=1, out=codes.data.cast("B"))
    if len(decoded) != codes.nbytes:
        raise ValueError(f"it holds {len(decoded)} of {codes.nbytes} bytes")
    return np.asarray(codes, np.uint16)


class Canvas:
    """A finished probability map, opened with `Canvas.open`; can be pickled to workers.

    Attributes:
        path: The zarr folder.
        resolution: Its working resolution.
        fingerprint: Hash of everything that determined it.
        patch_size: Side of the tiles in working px.
        attrs: The plain data that its writer stored.
        classes: Its classes. Reads are of the probability of cancer unless they say otherwise.
    """

    def __init__(
        self, path: Path, metadata: CanvasMetadata, chunks: Collection[tuple[int, ...]], kept_bytes: int = 0
    ) -> None:
        self.path = path
        self._chunks = frozenset(chunks)  # those on the disk; all codes of another one are 0
        self._room = kept_bytes
        self._kept: dict[tuple[int, int], NDArray[np.uint16] | None] = {}  # by row and column; None is all 0
        self.resolution = metadata.resolution
        self.fingerprint = metadata.fingerprint
        self.patch_size = metadata.patch_size
        self.attrs = metadata.attrs
        self.classes = metadata.classes

    @classmethod
    def open(cls, path: Path | str, kept_bytes: int = 0) -> Canvas:
        """Open the canvas in a zarr folder.

        Args:
            path: The zarr folder.
            kept_bytes: Bytes of decoded blocks to keep, so that they are decoded once for several reads.

        Raises:
            CheckpointError: If there is none, it is of another format, or a part of it is lost.
        """
        path = Path(path)
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such canvas; map the slide first")
        metadata, file = read_metadata(path), path / METADATA
        if (stated := metadata.stored) is None:
            raise CheckpointError(f"{file}: attributes.stored is missing; {AGAIN}")
        try:
            sizes = measure_chunks(path)
        except ValueError as error:
            raise CheckpointError(f"{path}: it holds a file that is no chunk ({error}); {AGAIN}") from error
        if (found := StoredSize.from_chunks(sizes)) != stated:
            raise CheckpointError(
                f"{path}: part of it is lost: it has {found.bytes} bytes in {found.chunks} chunks, "
                f"{METADATA} has {stated.bytes} in {stated.chunks} (attributes.stored); {AGAIN}"
            )
        return cls(path, metadata, sizes, kept_bytes)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the slide in working px."""
        return self.resolution.height, self.resolution.width

    def read_codes(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.uint16]:
        """Read the codes of a window: (h, w) uint16, 0 for pixels that were not scored or are past the edge.

        The window is in working px; its upper left corner may be negative.

        Raises:
            CheckpointError: If the data of the window is damaged.
        """
        return merge_codes(self.read_class_codes(x0, y0, w, h))

    def read_class_codes(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.uint16]:
        """Read the codes of each class of cancer, (k, h, w), as `read_codes` does."""
        height, width = self.shape
        left, right, top, bottom = max(x0, 0), min(x0 + w, width), max(y0, 0), min(y0 + h, height)
        out = np.zeros((len(self.classes.cancer_names), h, w), np.uint16)
        if left >= right or top >= bottom:
            return out
        for row in range(top // _BLOCK, (bottom - 1) // _BLOCK + 1):
            for column in range(left // _BLOCK, (right - 1) // _BLOCK + 1):
                above, before = row * _BLOCK, column * _BLOCK
                ys = slice(max(top, above), min(bottom, above + _BLOCK))
                xs = slice(max(left, before), min(right, before + _BLOCK))
                into = out[:, ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0]
                if not self._keep(row, column):
                    into[:] = self._decode(ys, xs)
                elif (block := self._kept[row, column]) is not None:
                    into[:] = block[..., ys.start - above : ys.stop - above, xs.start - before : xs.stop - before]
        return out

    def _keep(self, row: int, column: int) -> bool:
        """Decode a block and keep it unless it is kept already; return False if there is no room for it."""
        if (row, column) in self._kept:
            return True
        if self._room < len(self.classes.cancer_names) * _BLOCK**2 * 2:
            return False
        ys, xs = slice(row * _BLOCK, (row + 1) * _BLOCK), slice(column * _BLOCK, (column + 1) * _BLOCK)
        block = self._decode(ys, xs)
        self._kept[row, column] = block if block.any() else None
        self._room -= block.nbytes if block.any() else 0
        return True

    def _decode(self, ys: slice, xs: slice) -> NDArray[np.uint16]:
        """Decode a window, (k, h, w)."""
        planes = len(self.classes.cancer_names)
        rows, columns = self.shape
        side = min(CHUNK, rows), min(CHUNK, columns)
        out = np.zeros((planes, min(ys.stop, rows) - ys.start, min(xs.stop, columns) - xs.start), np.uint16)
        for row, into_y, from_y in _cut(ys, side[0], rows):
            for column, into_x, from_x in _cut(xs, side[1], columns):
                for plane in range(planes):
                    place = (row, column) if planes == 1 else (plane, row, column)
                    if place not in self._chunks:
                        continue
                    try:
                        codes = read_chunk(self.path, place, side)
                    except Exception as exc:  # codecs raise errors of their own
                        x, y = xs.start + into_x.start, ys.start + into_y.start
                        raise CheckpointError(
                            f"{find_chunk(self.path, place)}: the map cannot be read at working px ({x}, {y}) ({exc}); "
                            f"move it away, and {AGAIN}"
                        ) from exc
                    out[plane, into_y, into_x] = codes[from_y, from_x]
        return out

    def check(self) -> None:
        """Read every chunk on the disk and verify its checksum; a damaged one raises `CheckpointError`."""
        for row, column in sorted({place[-2:] for place in self._chunks}):
            self.read_class_codes(column * CHUNK, row * CHUNK, CHUNK, CHUNK)

    def read_classes(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.float32]:
        """Read the probability of each class of cancer in a window, (k, h, w), as `read` does."""
        return dequantize(self.read_class_codes(x0, y0, w, h))

    def read_class_map(self, x0: int, y0: int, w: int, h: int, threshold: float) -> NDArray[np.uint8]:
        """Read the class of each px of a window at a threshold of the probability of cancer.

        Returns:
            (h, w) uint8: 0 if the probability of cancer is below the threshold or the px was not scored, else the
            number of the class of cancer that `choose_classes` chooses.
        """
        codes = self.read_class_codes(x0, y0, w, h)
        merged = merge_codes(codes)
        # NumPy would round a plain float to float32 before it compares.
        is_cancer = (merged > 0) & (dequantize(merged) >= np.float64(threshold))
        return np.asarray(np.where(is_cancer, choose_classes(codes, self.classes), 0), np.uint8)

    def read(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.float32]:
        """Read a window: (h, w) float32 probabilities, 0 for pixels that were not scored; see `read_codes`."""
        return dequantize(self.read_codes(x0, y0, w, h))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a canvas is on the disk: np.asarray always copies it")
        out = np.empty(self.shape, np.float32 if dtype is None else dtype)
        height, width = self.shape
        for y0 in range(0, height, CHUNK):
            out[y0 : y0 + CHUNK] = self.read(0, y0, width, min(CHUNK, height - y0))
        return out


def _cut(px: slice, side: int, size: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield the chunks along one axis that hold px of a window: number, px of the window, and px of the chunk."""
    end = min(px.stop, size)
    for number in range(px.start // side, (end - 1) // side + 1):
        start, stop = max(px.start, number * side), min(end, (number + 1) * side)
        yield number, slice(start - px.start, stop - px.start), slice(start - number * side, stop - number * side)


def measure_chunks(path: Path) -> dict[tuple[int, ...], int]:
    """Return the bytes of each chunk on the disk, by plane, if there are several, row and column.

    Raises:
        OSError: If a folder cannot be read.
        ValueError: If a file is no chunk.
    """
    folder = str(path / ARRAY / "c")
    if not os.path.isdir(folder):
        return {}
    files = (entry for entry in walk(folder) if not entry.is_dir())
    return {tuple(map(int, Path(file.path).relative_to(folder).parts)): file.stat().st_size for file in files}
