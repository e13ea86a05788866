"""The probability map over a whole slide, blended from overlapping tiles and kept on disk.

A canvas is a zarr 3 array of uint16 in the working frame of the network: 0 says "not scored", 1..65535 stand
for the probability `(v - 1) / 65534`. One step is 1.5e-5, far below what two runs of a network agree to, at
half the bytes of float32; and 0.5 is a step exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from panda.errors import CheckpointError
from panda.wsi.geometry import Resolution

FORMAT = 1
"""Version of what lies on disk; a canvas of another version is refused."""

CHUNK = 512
"""Side of a stored chunk in working px."""

STEPS = 65534
"""Quantisation steps between probability 0 and 1."""


def quantise(prob: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """Probabilities in [0, 1] to the codes 1..65535 that a canvas holds."""
    return np.asarray(np.rint(prob * STEPS) + 1, np.uint16)


def probability(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Codes of a canvas to float32 probabilities; 0 where a pixel was not scored."""
    return np.asarray((np.maximum(codes, 1) - 1) / np.float32(STEPS), np.float32)


class Canvas:
    """A finished probability map, opened with `Canvas.open`; can be pickled to workers.

    Attributes:
        path: The zarr folder.
        resolution: The working frame it lies in.
        fingerprint: Of all that made it.
        patch_size: Side of the tiles in working px.
        attrs: The plain data its writer was given.
    """

    def __init__(self, path: Path, array: Any, meta: Mapping[str, Any]) -> None:
        self.path = path
        self._array = array
        plain = dict(meta["resolution"])
        plain["mpp"] = None if plain["mpp"] is None else tuple(plain["mpp"])
        self.resolution = Resolution(**plain)
        self.fingerprint = str(meta["fingerprint"])
        self.patch_size = int(meta["patch_size"])
        self.attrs: dict[str, Any] = dict(meta["attrs"])

    @classmethod
    def open(cls, path: Path | str) -> Canvas:
        """Open a canvas.

        Args:
            path: The zarr folder.

        Raises:
            CheckpointError: There is none, it is of another format, or some of it is lost.
        """
        path = Path(path)
        again = "remove it and run the slide again"
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such canvas; run the slide first")
        try:
            array = zarr.open_array(str(path), mode="r")
            meta: dict[str, Any] = dict(array.attrs.asdict())
        except Exception as exc:  # zarr raises whatever its JSON, its codecs or the file system raise
            raise CheckpointError(f"{path}: is no canvas, or a broken one ({exc}); {again}") from exc
        if meta.get("panda_canvas") != FORMAT:
            raise CheckpointError(
                f"{path}: its format is {meta.get('panda_canvas')!r}, this version reads {FORMAT}; {again}"
            )
        try:
            canvas = cls(path, array, meta)
            stated = dict(meta["stored"])
        except (KeyError, TypeError, ValueError) as exc:
            raise CheckpointError(f"{path}: its attributes are incomplete ({exc!r}); {again}") from exc
        if array.shape != canvas.shape or array.dtype != np.uint16:
            raise CheckpointError(
                f"{path}: holds {array.dtype} {array.shape}, its attributes say uint16 {canvas.shape}; {again}"
            )
        if (found := stored_size(path)) != stated:
            raise CheckpointError(
                f"{path}: part of it is lost: {found['bytes']} bytes in {found['chunks']} chunks are there, "
                f"{stated.get('bytes')} in {stated.get('chunks')} were written; {again}"
            )
        return canvas

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the slide in working px."""
        return self.resolution.height, self.resolution.width

    def codes(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.uint16]:
        """Read a window as stored: (h, w) uint16, 0 where not scored and past the edge.

        Args:
            x0: Left edge in working px; may be negative.
            y0: Top edge in working px; may be negative.
            w: Width in working px.
            h: Height in working px.

        Raises:
            CheckpointError: The data there is damaged.
        """
        height, width = self.shape
        left, right, top, bottom = max(x0, 0), min(x0 + w, width), max(y0, 0), min(y0 + h, height)
        out = np.zeros((h, w), np.uint16)
        if left < right and top < bottom:
            try:
                block = self._array[top:bottom, left:right]
            except Exception as exc:  # codecs raise RuntimeError and what not
                raise CheckpointError(
                    f"{self.path}: cannot be read at working px ({left}, {top}) ({exc}); "
                    "remove it and run the slide again"
                ) from exc
            out[top - y0 : bottom - y0, left - x0 : right - x0] = block
        return out

    def check(self) -> None:
        """Read every chunk that lies on the disk; each carries a checksum.

        Raises:
            CheckpointError: The data is damaged.
        """
        for chunk in sorted((self.path / "c").glob("*/*")):
            self.codes(int(chunk.name) * CHUNK, int(chunk.parent.name) * CHUNK, CHUNK, CHUNK)

    def read(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.float32]:
        """Read a window: (h, w) float32 probabilities, 0 where not scored; arguments as for `codes`."""
        return probability(self.codes(x0, y0, w, h))

    def bands(self, rows: int = CHUNK) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the canvas in bands from the top: (y0, (≤ rows, width) float32), working px.

        Args:
            rows: Height of a band; multiples of 512 read each chunk once.
        """
        height, width = self.shape
        for y0 in range(0, height, rows):
            yield y0, self.read(0, y0, width, min(rows, height - y0))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a canvas lies on disk: making an array of it always copies")
        out = np.empty(self.shape, np.float32 if dtype is None else dtype)
        for y0, band in self.bands():
            out[y0 : y0 + len(band)] = band
        return out

    def __repr__(self) -> str:
        return f"Canvas({str(self.path)!r}, {self.shape[1]} x {self.shape[0]} working px)"


def stored_size(path: Path) -> dict[str, int]:
    """Number and bytes of the chunks that lie on disk."""
    sizes = [entry.stat().st_size for entry in (path / "c").rglob("*") if entry.is_file()]
    return {"chunks": len(sizes), "bytes": sum(sizes)}
