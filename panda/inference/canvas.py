"""Blend overlapping tiles into the probability map of a whole slide.

`panda.inference.canvas_store` describes the result and its files.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import JsonValue

from panda.errors import PandaError
from panda.files import partial_path, remove, remove_leftovers, replace, sync
from panda.inference.blocks import OpenBlocks
from panda.inference.canvas_store import (
    CHUNK,
    FORMAT,
    METADATA,
    Canvas,
    CanvasMetadata,
    create_array,
    measure_stored_size,
    quantize,
)
from panda.wsi.geometry import Resolution

__all__ = ["Canvas", "CanvasWriter", "blend_window"]

WINDOW_FLOOR = 0.01
"""Smallest weight along one axis: a pixel that only the rim of one tile covers still gets a value."""

BUDGET = 128 * 2**20
"""Default bytes of sums held in memory: 64 blocks of 512 px."""

_WRITERS, _MOST_WAITING = 6, 12
"""Threads that compress and write finished blocks, and how many blocks may wait for them, 3 MiB each."""

_ROUNDING = 1e-3
"""How far outside 0..1 a probability may be, for example by rounding a mean over augmented copies."""


def blend_window(patch_size: int, overlap: int) -> NDArray[np.float32]:
    """Return the weights of a tile along one axis: a raised cosine over the overlap, flat between.

    The weight of a pixel is the product of both axes. It is positive, so every pixel that a tile covers gets a value.

    Args:
        patch_size: Side of a tile in working px.
        overlap: Working px that neighbouring tiles share, `patch_size - stride`; 0 gives a flat window.

    Returns:
        (patch_size,) float32, symmetric, in [0.01, 1].
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
    """Blends tiles into a canvas.

    The canvas is summed in blocks of one chunk. If `expected` is given, a block is written as soon as no more tile
    touches it, otherwise at the end. Memory depends neither on the height nor on the width of the slide.

    The files have a partial name beside `path` until `close`. A `with` statement closes the canvas at its end, or
    removes the files if it raises. Only one writer at a time may write a path: it removes the unfinished files of a
    killed run.

    Args:
        path: The zarr folder. An older one is replaced when the new canvas is complete.
        resolution: The network's working resolution on this slide.
        patch_size: Side of a tile in working px.
        fingerprint: Hash of everything that determines the canvas.
        attrs: Plain data (JSON) stored with the canvas; messages name `slide_id`.
        overlap: Working px that neighbouring tiles share, `patch_size - stride`; shapes the window.
        expected: (n, 2) x, y of all tiles that will be added, in any order; None if unknown.
        budget: Bytes of unfinished blocks in memory, the rest is on the disk; it changes no result.
    """

    def __init__(
        self,
        path: Path | str,
        resolution: Resolution,
        patch_size: int,
        fingerprint: str,
        attrs: Mapping[str, JsonValue],
        *,
        overlap: int = 0,
        expected: ArrayLike | None = None,
        budget: int = BUDGET,
    ) -> None:
        self.path = Path(path)
        self._resolution = resolution
        self._patch = patch_size
        window = blend_window(patch_size, overlap)
        self._window = np.outer(window, window)
        self._slide = f"slide {attrs['slide_id']}" if "slide_id" in attrs else f"canvas {self.path}"
        height, width = resolution.height, resolution.width
        self._side = (min(CHUNK, height), min(CHUNK, width))
        self._left: NDArray[np.int64] | None = None
        self._missing = 0
        if expected is not None:
            self._left = self._count_tiles(np.asarray(expected, np.int64).reshape(-1, 2))
            self._missing = len(np.asarray(expected))
        self._open = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path.parent, self.path.name)
        self._partial = partial_path(self.path)
        self.blocks = OpenBlocks(partial_path(self.path), budget)
        self._writers = ThreadPoolExecutor(_WRITERS)
        self._writing: deque[Future[None]] = deque()
        metadata = CanvasMetadata(
            fingerprint=fingerprint, resolution=resolution, patch_size=patch_size, overlap=overlap, attrs=dict(attrs)
        )
        meta = {"panda_canvas": FORMAT, **metadata.model_dump(mode="json", exclude={"stored"})}
        json.dumps(meta, allow_nan=False)
        self._array = create_array(str(self._partial), resolution, meta)

    def _count_tiles(self, corners: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many tiles touch each block, (rows, columns)."""
        size, side = np.array([self._resolution.width, self._resolution.height]), np.array(self._side[::-1])
        first, last = np.maximum(corners, 0), np.minimum(corners + self._patch, size)
        inside = (first < last).all(axis=1)
        (x0, y0), (x1, y1) = (first[inside] // side).T, ((last[inside] - 1) // side + 1).T
        columns, rows = -(-size // side)
        edges = np.zeros((rows + 1, columns + 1), np.int64)
        for y, x, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
            np.add.at(edges, (y, x), sign)
        return edges.cumsum(0).cumsum(1)[:-1, :-1]

    def add(self, tiles: ArrayLike, positions: ArrayLike) -> None:
        """Blend a batch of tiles.

        Args:
            tiles: (n, p, p) probabilities in [0, 1].
            positions: (n, 2) x, y of their top-left corners in working px. A tile that begins before the slide or
                reaches past it is cropped.

        Raises:
            PandaError: If a probability is not finite, or outside [0, 1].
            ValueError: If the shapes disagree, a tile was not expected, or the writer is closed.
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
            self._missing -= 1

    def _check(self, tile: NDArray[np.float32], x: int, y: int) -> None:
        """Refuse a tile with values that are no probabilities."""
        low, high = float(tile.min()), float(tile.max())
        if low >= -_ROUNDING and high <= 1 + _ROUNDING:  # false for NaN, which min and max propagate
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
        rows, columns = self._side
        for row in range(y0 // rows, (y1 - 1) // rows + 1):
            for column in range(x0 // columns, (x1 - 1) // columns + 1):
                top, left, bottom, right = self._find_bounds(row, column)
                if self._left is not None and self._left[row, column] == 0:
                    raise ValueError(f"{self._slide}: tile at ({x}, {y}) was not expected, or comes twice")
                sums = self.blocks.get((row, column), (2, bottom - top, right - left))
                upper, lower, start, stop = max(y0, top), min(y1, bottom), max(x0, left), min(x1, right)
                weight = self._window[upper - y : lower - y, start - x : stop - x]
                into = sums[:, upper - top : lower - top, start - left : stop - left]
                into[0] += np.clip(tile[upper - y : lower - y, start - x : stop - x], 0, 1) * weight
                into[1] += weight
                if self._left is not None:
                    self._left[row, column] -= 1
                    if self._left[row, column] == 0:
                        self._finish(row, column)

    def _find_bounds(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Return top, left, bottom and right of a block in working px."""
        top, left = row * self._side[0], column * self._side[1]
        bottom, right = top + self._side[0], left + self._side[1]
        return top, left, min(bottom, self._resolution.height), min(right, self._resolution.width)

    def _finish(self, row: int, column: int) -> None:
        """Give a block to the writers, which are slower than the blending."""
        if len(self._writing) == _MOST_WAITING:
            self._writing.popleft().result()
        self._writing.append(self._writers.submit(self._write, row, column, *self.blocks.take((row, column))))

    def _write(self, row: int, column: int, values: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        """Write a block; pixels that were not scored stay 0."""
        scored = weights > 0
        prob = np.divide(values, weights, out=values, where=scored)
        top, left, bottom, right = self._find_bounds(row, column)
        self._array[top:bottom, left:right] = np.where(scored, quantize(np.clip(prob, 0, 1)), 0)

    def close(self) -> Canvas:
        """Write the last blocks, flush the files, give the canvas its name and return it, open for reading.

        Raises:
            PandaError: If tiles are missing, or another writer of the path removed the files.
        """
        if self._open:
            try:
                if self._left is not None and self._missing:
                    raise PandaError(f"{self.path}: {self._missing} of its tiles are missing; run the slide again")
                for row, column in self.blocks.list_unfinished():
                    self._finish(row, column)
                for block in self._writing:
                    block.result()
                self._writers.shutdown()
                self.blocks.close()
                if not (self._partial / METADATA).is_file():
                    raise PandaError(
                        f"{self.path}: its unfinished files were removed while it was written; "
                        "let one run at a time write it"
                    )
                # A lost chunk reads as "not scored"; only this count reveals it.
                self._array.attrs["stored"] = measure_stored_size(self._partial).model_dump()
                sync(self._partial)
                replace(self._partial, self.path)
            except BaseException:
                self.abort()
                raise
            self._open = False
        return Canvas.open(self.path)

    def abort(self) -> None:
        """Remove the unfinished files and keep an older canvas at `path`; do nothing after `close`."""
        if self._open:
            self._open = False
            self._writers.shutdown(cancel_futures=True)
            self.blocks.close()
            remove(self._partial)

    def __enter__(self) -> CanvasWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()
        elif self._open:
            self.close()
