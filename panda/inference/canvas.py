"""Blends overlapping tiles into the probability map over a whole slide.

`Canvas`, what comes out, and what lies on disk are described in `panda.inference.canvas_store`.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import ZstdCodec

from panda.errors import PandaError
from panda.files import remove, replace, sync
from panda.inference.canvas_store import CHUNK, FORMAT, Canvas, quantise, stored_size
from panda.wsi.geometry import Resolution

__all__ = ["Canvas", "CanvasWriter", "blend_window"]

WINDOW_FLOOR = 0.01
"""Smallest weight along one axis: what only the rim of one tile covers still has its own value."""

_FINISH_ROWS = 64
"""Rows normalised at once, which bounds the temporary arrays."""

_ROUNDING = 1e-3
"""How far outside 0..1 a probability may lie: the rounding of a mean over augmented copies, say."""


def blend_window(patch_size: int, overlap: int) -> NDArray[np.float32]:
    """Weights of a tile along one axis: a raised cosine over the overlap, flat between.

    The same for both axes; a pixel's weight is the product of the two. Strictly positive, so that every pixel
    that any tile covers has a value, whatever the stride and wherever the slide ends.

    Args:
        patch_size: Side of a tile in working px.
        overlap: Working px that neighbouring tiles share, ``patch_size - stride``; 0 gives a flat window.

    Returns:
        (patch_size,) float32, symmetric, in [0.01, 1].

    Raises:
        ValueError: ``overlap`` is negative, or not smaller than ``patch_size``.
    """
    if not 0 <= overlap < patch_size:
        raise ValueError(f"overlap is {overlap} px; it must be at least 0 and less than the patch, {patch_size}")
    if overlap == 0:
        return np.ones(patch_size, np.float32)
    centre = np.arange(patch_size) + 0.5
    to_edge = np.minimum(centre, patch_size - centre)
    ramp = np.clip(to_edge / min(overlap, patch_size / 2), 0, 1)
    return np.asarray(WINDOW_FLOOR + (1 - WINDOW_FLOOR) * (0.5 - 0.5 * np.cos(np.pi * ramp)), np.float32)


class CanvasWriter:
    """Blends tiles into a canvas, from the top of the slide to its bottom.

    Only the rows that a later tile can still touch are held as floats (``patch_size`` rows of value and
    weight), and one row of chunks as codes: memory is O(slide width × patch), whatever the slide's height. It
    writes under a partial name beside ``path`` and takes the final name in `close`; used in a ``with``
    statement, it closes at the end of the block, or leaves nothing behind where the block raises.

    One writer at a time may write a given path: what a killed run left there unfinished is removed.

    Args:
        path: The zarr folder to make. What lies there is replaced when the new canvas is complete, not
            before.
        resolution: The network's working resolution on this slide.
        patch_size: Side of a tile in working px.
        fingerprint: Of all that makes this canvas, see `panda.files.fingerprint`.
        attrs: Plain data (JSON) kept with the canvas; ``slide_id`` is named in messages.
        overlap: Working px that neighbouring tiles share, ``patch_size - stride``; shapes the window.

    Raises:
        ValueError: ``patch_size`` or ``overlap`` is impossible, or ``attrs`` is not plain data.
    """

    def __init__(
        self,
        path: Path | str,
        resolution: Resolution,
        patch_size: int,
        fingerprint: str,
        attrs: Mapping[str, Any],
        *,
        overlap: int = 0,
    ) -> None:
        self.path = Path(path)
        self._resolution = resolution
        self._patch = patch_size
        self._window = blend_window(patch_size, overlap)
        self._slide = f"slide {attrs['slide_id']}" if "slide_id" in attrs else f"canvas {self.path}"
        height, width = resolution.height, resolution.width
        self._values = np.zeros((patch_size, width), np.float32)
        self._weights = np.zeros((patch_size, width), np.float32)
        self._chunk_rows = min(CHUNK, height)
        self._pending = np.zeros((self._chunk_rows, width), np.uint16)
        self._row = 0  # rows above are final
        self._touched = 0  # rows from here on have met no tile yet
        self._last_y: int | None = None
        self._open = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.parent.glob(f"{self.path.name}.*.partial"):
            remove(leftover)
        self._partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:12]}.partial")
        meta: dict[str, Any] = {
            "panda_canvas": FORMAT,
            "fingerprint": fingerprint,
            "resolution": dataclasses.asdict(resolution),
            "patch_size": patch_size,
            "overlap": overlap,
            "attrs": dict(attrs),
        }
        json.dumps(meta, allow_nan=False)
        self._array = zarr.create_array(
            str(self._partial),
            shape=(height, width),
            chunks=(self._chunk_rows, min(CHUNK, width)),
            dtype="uint16",
            compressors=ZstdCodec(level=3, checksum=True),
            fill_value=0,
            attributes=meta,
            dimension_names=("y", "x"),
        )

    def add(self, tiles: ArrayLike, positions: ArrayLike) -> None:
        """Blend a batch of tiles in.

        Args:
            tiles: (n, p, p) probabilities in [0, 1].
            positions: (n, 2) x, y of their top-left corners in working px, sorted by y within a call and from
                one call to the next. A tile may begin before the slide or reach past it: it is cropped.

        Raises:
            PandaError: A probability is not finite, or outside [0, 1]; names the slide and the tile.
            ValueError: The shapes disagree, the tiles are not sorted by y, or the writer is closed.
        """
        prob, where = np.asarray(tiles, np.float32), np.asarray(positions, np.int64)
        if not self._open:
            raise ValueError(f"{self.path}: the canvas is closed")
        if prob.shape != (len(where), self._patch, self._patch) or where.shape != (len(prob), 2):
            raise ValueError(
                f"tiles are {prob.shape}, positions {where.shape}; "
                f"they must be (n, {self._patch}, {self._patch}) and (n, 2)"
            )
        for tile, (x, y) in zip(prob, where.tolist(), strict=True):
            self._check(tile, x, y)
            self._blend(tile, x, y)

    def _check(self, tile: NDArray[np.float32], x: int, y: int) -> None:
        """Refuse a tile that is out of order or holds what is no probability."""
        if self._last_y is not None and y < self._last_y:
            raise ValueError(f"tile at y={y} comes after one at y={self._last_y}; sort the tiles by y")
        self._last_y = y
        low, high = float(tile.min()), float(tile.max())
        if low >= -_ROUNDING and high <= 1 + _ROUNDING:  # false for NaN, which min and max hand on
            return
        bad = int(np.count_nonzero(~np.isfinite(tile)))
        what = (
            f"{bad} of {tile.size} probabilities are NaN or infinite; the network has diverged or overflows: "
            "try engine.precision=fp32, else train again with a lower learning rate"
            if bad
            else f"values reach from {low:g} to {high:g}, outside 0..1; give probabilities, not logits"
        )
        x0, y0 = self._resolution.frame.to_level0(x, y)
        raise PandaError(f"{self._slide}: tile at working px ({x}, {y}), level-0 px ({x0:g}, {y0:g}): {what}")

    def _blend(self, tile: NDArray[np.float32], x: int, y: int) -> None:
        height, width = self._resolution.height, self._resolution.width
        x0, x1 = max(x, 0), min(x + self._patch, width)
        y0, y1 = max(y, 0), min(y + self._patch, height)
        if x0 >= x1 or y0 >= y1:
            return
        self._advance(y0)
        rows, columns = self._window[y0 - y : y1 - y], self._window[x0 - x : x1 - x]
        for ring, part in self._ring(y0, y1):
            weight = rows[part, None] * columns
            source = tile[y0 - y + part.start : y0 - y + part.stop, x0 - x : x1 - x]
            self._values[ring, x0:x1] += np.clip(source, 0, 1) * weight
            self._weights[ring, x0:x1] += weight
        self._touched = max(self._touched, y1)

    def _ring(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """Where rows ``start..stop`` (at most a patch of them) lie in the rolling band: one piece or two."""
        done = start
        while done < stop:
            at = done % self._patch
            count = min(stop - done, self._patch - at)
            yield slice(at, at + count), slice(done - start, done - start + count)
            done += count

    def _advance(self, row: int) -> None:
        """Make all rows above ``row`` final; whole rows of chunks go to the disk."""
        while self._row < row:
            chunk_start = self._row - self._row % self._chunk_rows
            chunk_stop = min(chunk_start + self._chunk_rows, self._resolution.height)
            stop = min(row, chunk_stop, self._row + _FINISH_ROWS)
            final = min(stop, self._touched)
            for ring, part in self._ring(self._row, final):
                values, weights = self._values[ring], self._weights[ring]
                scored = weights > 0
                prob = np.divide(values, weights, out=values, where=scored)
                first = self._row - chunk_start + part.start
                block = self._pending[first : first + part.stop - part.start]
                block[:] = np.where(scored, quantise(np.clip(prob, 0, 1)), 0)
                values[:] = 0
                weights[:] = 0
            self._row = stop
            if stop == chunk_stop:
                self._flush(chunk_start, chunk_stop)

    def _flush(self, start: int, stop: int) -> None:
        """Write a row of chunks; chunks in which nothing was scored take no space."""
        rows = self._pending[: stop - start]
        if rows.any():
            self._array[start:stop] = rows
            self._pending[:] = 0

    def close(self) -> Canvas:
        """Finish the last rows, bring all to the disk and give the canvas its name.

        Returns:
            The canvas, open for reading.

        Raises:
            PandaError: Its files were removed meanwhile, as another writer of the same path does.
        """
        if self._open:
            try:
                self._advance(self._resolution.height)
                if not (self._partial / "zarr.json").is_file():
                    raise PandaError(
                        f"{self.path}: its unfinished files were removed while it was written; "
                        "let one run at a time write it"
                    )
                # A missing chunk reads as "not scored": only the tally tells it from a lost one.
                self._array.attrs["stored"] = stored_size(self._partial)
                sync(self._partial)
                replace(self._partial, self.path)
            except BaseException:
                self.abort()
                raise
            self._open = False
        return Canvas.open(self.path)

    def abort(self) -> None:
        """Leave nothing behind; what lay at ``path`` before stays. Does nothing once closed."""
        if self._open:
            self._open = False
            remove(self._partial)

    def __enter__(self) -> CanvasWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.abort()
        elif self._open:
            self.close()
