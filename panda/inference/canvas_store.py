"""Store the probability map of a whole slide on disk.

A canvas is a zarr 3 array of uint16 in the working frame of the network. 0 means "not scored", a value v of 1..65535
means the probability `(v - 1) / 65534`. One step is 1.5e-5, far below the agreement of two runs of a network, and
takes half the bytes of float32. 0.5 is exactly one of the steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel, JsonValue, NonNegativeInt, PositiveInt, ValidationError

from panda.errors import CheckpointError
from panda.wsi.geometry import Resolution

FORMAT = 1
"""Version of the files; a canvas of another version is refused."""

CHUNK = 512
"""Side of a stored chunk in working px."""

STEPS = 65534
"""Quantization steps between probability 0 and 1."""


def quantize(prob: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """Convert probabilities in [0, 1] to the codes 1..65535 of a canvas."""
    return np.asarray(np.rint(prob * STEPS) + 1, np.uint16)


def dequantize(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Convert codes of a canvas to float32 probabilities; 0 for a pixel that was not scored."""
    return np.asarray((np.maximum(codes, 1) - 1) / np.float32(STEPS), np.float32)


class StoredSize(BaseModel, frozen=True):
    """Number and bytes of the chunks on the disk."""

    chunks: int
    bytes: int


class CanvasMetadata(BaseModel, frozen=True):
    """Attributes of the zarr array, as they were given to its `CanvasWriter`."""

    fingerprint: str
    resolution: Resolution
    patch_size: PositiveInt
    overlap: NonNegativeInt
    attrs: dict[str, JsonValue]


class Canvas:
    """A finished probability map, opened with `Canvas.open`; can be pickled to workers.

    Attributes:
        path: The zarr folder.
        resolution: Its working resolution.
        fingerprint: Hash of everything that determined it.
        patch_size: Side of the tiles in working px.
        attrs: The plain data that its writer stored.
    """

    def __init__(self, path: Path, array: Any, metadata: CanvasMetadata) -> None:
        self.path = path
        self._array = array
        self.resolution = metadata.resolution
        self.fingerprint = metadata.fingerprint
        self.patch_size = metadata.patch_size
        self.attrs = metadata.attrs

    @classmethod
    def open(cls, path: Path | str) -> Canvas:
        """Open the canvas in a zarr folder.

        Raises:
            CheckpointError: If there is none, it is of another format, or a part of it is lost.
        """
        path = Path(path)
        again = "remove it and run the slide again"
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such canvas; run the slide first")
        try:
            array = zarr.open_array(str(path), mode="r")
            meta = array.attrs.asdict()
        except Exception as exc:  # zarr raises the errors of its JSON, its codecs and the file system
            raise CheckpointError(f"{path}: this is no canvas, or a broken one ({exc}); {again}") from exc
        if meta.get("panda_canvas") != FORMAT:
            raise CheckpointError(
                f"{path}: its format is {meta.get('panda_canvas')!r}, this version reads {FORMAT}; {again}"
            )
        try:
            canvas = cls(path, array, CanvasMetadata.model_validate(meta))
            stated = StoredSize.model_validate(meta.get("stored"))
        except ValidationError as exc:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()[:3])
            raise CheckpointError(f"{path}: its attributes are incomplete or were edited ({faults}); {again}") from exc
        if array.shape != canvas.shape or array.dtype != np.uint16:
            raise CheckpointError(
                f"{path}: holds {array.dtype} {array.shape}, its attributes say uint16 {canvas.shape}; {again}"
            )
        if (found := measure_stored_size(path)) != stated:
            raise CheckpointError(
                f"{path}: part of it is lost: it has {found.bytes} bytes in {found.chunks} chunks, "
                f"{stated.bytes} in {stated.chunks} were written; {again}"
            )
        return canvas

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the slide in working px."""
        return self.resolution.height, self.resolution.width

    def read_codes(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.uint16]:
        """Read a window as stored: (h, w) uint16, 0 for pixels that were not scored or are past the edge.

        The window is in working px; its upper left corner may be negative.

        Raises:
            CheckpointError: If the data of the window is damaged.
        """
        height, width = self.shape
        left, right, top, bottom = max(x0, 0), min(x0 + w, width), max(y0, 0), min(y0 + h, height)
        out = np.zeros((h, w), np.uint16)
        if left < right and top < bottom:
            try:
                block = self._array[top:bottom, left:right]
            except Exception as exc:  # codecs raise RuntimeError and others
                raise CheckpointError(
                    f"{self.path}: cannot be read at working px ({left}, {top}) ({exc}); "
                    "remove it and run the slide again"
                ) from exc
            out[top - y0 : bottom - y0, left - x0 : right - x0] = block
        return out

    def check(self) -> None:
        """Read every chunk on the disk and verify its checksum; a damaged one raises `CheckpointError`."""
        for chunk in sorted((self.path / "c").glob("*/*")):
            self.read_codes(int(chunk.name) * CHUNK, int(chunk.parent.name) * CHUNK, CHUNK, CHUNK)

    def read(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.float32]:
        """Read a window: (h, w) float32 probabilities, 0 for pixels that were not scored; see `read_codes`."""
        return dequantize(self.read_codes(x0, y0, w, h))

    def read_bands(self, rows: int = CHUNK) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the canvas in bands from the top: (y0, (≤ rows, width) float32); multiples of 512 rows are fastest."""
        height, width = self.shape
        for y0 in range(0, height, rows):
            yield y0, self.read(0, y0, width, min(rows, height - y0))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a canvas is on the disk: np.asarray always copies it")
        out = np.empty(self.shape, np.float32 if dtype is None else dtype)
        for y0, band in self.read_bands():
            out[y0 : y0 + len(band)] = band
        return out


def measure_stored_size(path: Path) -> StoredSize:
    """Return the number and the bytes of the chunks on the disk."""
    sizes = [entry.stat().st_size for entry in (path / "c").rglob("*") if entry.is_file()]
    return StoredSize(chunks=len(sizes), bytes=sum(sizes))
