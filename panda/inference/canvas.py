"""Blend overlapping tiles into the probability map of a whole slide.

`panda.inference.canvas_store` describes the result and its files.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import JsonValue
from torch import Tensor

from panda.errors import PandaError
from panda.files import check_kind, partial_path, remove, remove_leftovers, replace, sync
from panda.inference.blocks import HostCopy, Key, OpenBlocks
from panda.inference.buffers import Buffers
from panda.inference.canvas_metadata import ARRAY, CHUNK, METADATA, CanvasMetadata, StoredSize
from panda.inference.canvas_store import Canvas, measure_chunks, write_chunk
from panda.inference.quantize import quantize, read_quantized
from panda.inference.window import get_window
from panda.inference.work_queue import WorkQueue
from panda.wsi.classes import BINARY, ClassSet
from panda.wsi.geometry import Resolution

__all__ = ["Canvas", "CanvasWriter"]

BUDGET = 64 * 2**20
"""Default bytes of sums held on the device: 64 blocks of 512 px."""

_PLANES = slice(None)
"""All planes of a block or a tile, one for each class of cancer."""

_WRITERS, _MOST_WAITING = 4, 8
"""Threads that compress and write, and how many blocks may wait for them, at most 1 MiB for each class of cancer."""

_IN_FLIGHT = 2
"""Batches whose probabilities a GPU may not have checked yet."""

_ROUNDING = 1e-3
"""How far outside 0..1 a probability may be, for example by rounding a mean over augmented copies."""


class CanvasWriter:
    """Blends tiles into a canvas, on the device of the network.

    The canvas is summed in blocks of one chunk. A finished block becomes codes on the device and is copied from there
    once, beside other work. If `expected` is given, a block is written as soon as no more tile touches it, otherwise
    at the end. Memory depends neither on the height nor on the width of the slide.

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
        budget: Bytes of unfinished blocks on the device, the rest is on the disk; it changes no result.
        device: Where tiles are blended.
        classes: The classes of the network.
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
        device: torch.device | str = "cpu",
        classes: ClassSet = BINARY,
    ) -> None:
        self.path = Path(path)
        self._resolution = resolution
        self._patch = patch_size
        self._tile_shape = (*(() if classes.is_binary else (len(classes.cancer_names),)), patch_size, patch_size)
        self._planes = len(classes.cancer_names)
        self._device = torch.device(device)
        self._buffers = Buffers(self._device)
        self._window = get_window(patch_size, overlap, self._device)
        self._slide = f"slide {attrs['slide_id']}" if "slide_id" in attrs else f"canvas {self.path}"
        height, width = resolution.height, resolution.width
        self._side = (min(CHUNK, height), min(CHUNK, width))
        self._left: NDArray[np.int64] | None = None
        self._missing = 0
        if expected is not None:
            self._left = self._count_tiles(np.asarray(expected, np.int64).reshape(-1, 2))
            self._missing = len(np.asarray(expected))
        self._open = True
        check_kind(self.path, is_folder=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path.parent, self.path.name)
        self._partial = partial_path(self.path)
        self._writers = WorkQueue(_WRITERS, _MOST_WAITING)
        self.blocks = OpenBlocks(partial_path(self.path), budget, self._device, self._buffers, self._writers)
        self._touching: defaultdict[Key, list[tuple[int, int]]] = defaultdict(list)
        self._unchecked: deque[tuple[NDArray[np.int64], HostCopy]] = deque()
        self._metadata = CanvasMetadata(
            fingerprint=fingerprint,
            resolution=resolution,
            patch_size=patch_size,
            overlap=overlap,
            attrs=dict(attrs),
            classes=classes,
        )
        files = self._metadata.describe_files()
        self._partial.mkdir()
        try:
            (self._partial / ARRAY).mkdir()
            for name, data in files.items():
                (self._partial / name).write_bytes(data)
        except OSError:
            self.abort()
            raise

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

    def add(self, tiles: Tensor | ArrayLike, positions: ArrayLike) -> None:
        """Blend a batch of tiles. A GPU may still blend it when the call returns.

        Args:
            tiles: (n, p, p) probabilities of cancer in [0, 1], or (n, k, p, p) of several classes of cancer.
            positions: (n, 2) x, y of their top-left corners in working px. A tile that begins before the slide or
                reaches past it is cropped.

        Raises:
            PandaError: If a probability is not finite, or outside [0, 1], in this batch or, on a GPU, an earlier one.
            ValueError: If the shapes disagree, a tile was not expected, or the writer is closed.
        """
        prob, where = torch.as_tensor(tiles, dtype=torch.float32, device=self._device), np.asarray(positions, np.int64)
        if not self._open:
            raise ValueError(f"{self.path}: the canvas is closed")
        if prob.shape != (len(where), *self._tile_shape) or where.shape != (len(prob), 2):
            raise ValueError(
                f"tiles are {tuple(prob.shape)}, positions {where.shape}; "
                f"they must be (n, {', '.join(map(str, self._tile_shape))}) and (n, 2)"
            )
        prob = prob.reshape(len(where), self._planes, self._patch, self._patch)
        extremes = torch.stack([prob.amin((1, 2, 3)), prob.amax((1, 2, 3))], dim=1)
        self._unchecked.append((where, HostCopy(extremes)))
        self._check(_IN_FLIGHT)
        for tile, (x, y) in zip(prob, where.tolist(), strict=True):
            self._blend(tile, x, y)
            self._missing -= 1

    def _check(self, in_flight: int) -> None:
        """Refuse tiles with values that are no probabilities; wait until at most `in_flight` batches are unchecked."""
        while self._unchecked and (len(self._unchecked) > in_flight or self._unchecked[0][1].is_ready()):
            where, extremes = self._unchecked.popleft()
            for (low, high), (x, y) in zip(extremes.wait().tolist(), where.tolist(), strict=True):
                if low >= -_ROUNDING and high <= 1 + _ROUNDING:  # false for NaN, which min and max propagate
                    continue
                what = (
                    f"values reach from {low:g} to {high:g}, outside 0..1; give probabilities, not logits"
                    if np.isfinite([low, high]).all()
                    else "probabilities are NaN or infinite; the network has diverged or overflows: "
                    "try engine.precision=fp32, else train again with a lower learning rate"
                )
                x0, y0 = self._resolution.frame.to_level0(x, y)
                raise PandaError(f"{self._slide}: tile at working px ({x}, {y}), level-0 px ({x0:g}, {y0:g}): {what}")

    def _blend(self, tile: Tensor, x: int, y: int) -> None:
        height, width = self._resolution.height, self._resolution.width
        x0, x1 = max(x, 0), min(x + self._patch, width)
        y0, y1 = max(y, 0), min(y + self._patch, height)
        if x0 >= x1 or y0 >= y1:
            return
        rows, columns = self._side
        for row in range(y0 // rows, (y1 - 1) // rows + 1):
            for column in range(x0 // columns, (x1 - 1) // columns + 1):
                if self._left is not None and self._left[row, column] == 0:
                    raise ValueError(f"{self._slide}: tile at ({x}, {y}) was not expected, or comes twice")
                top, left, bottom, right = self._find_bounds(row, column)
                shape, at = (bottom - top, right - left), (y - top, x - left)
                inside, own = self._window.find_overlap(shape, at)
                block = self.blocks.get((row, column), (self._planes, *shape))
                block[_PLANES, *inside].addcmul_(tile[_PLANES, *own], self._window.weights[own])
                self._touching[row, column].append(at)
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
        """Convert a block to codes and give it to the writers."""
        sums = self.blocks.take((row, column))
        touching = sorted(self._touching.pop((row, column)))
        mean = sums.div_(self._window.sum_weights((sums.shape[-2], sums.shape[-1]), touching))
        codes = quantize(mean, self._buffers.empty(tuple(mean.shape), torch.int16))
        self._writers.submit(self._write, row, column, HostCopy(codes))

    def _write(self, row: int, column: int, codes: HostCopy) -> None:
        """Write a block, one chunk for each class of cancer."""
        planes = read_quantized(codes.wait())
        for number, plane in enumerate(planes):
            chunk = (row, column) if len(planes) == 1 else (number, row, column)
            write_chunk(self._partial, chunk, self._side, plane)

    def close(self) -> Canvas:
        """Write the last blocks, flush the files, give the canvas its name and return it, open for reading.

        Raises:
            PandaError: If tiles are missing, or another writer of the path removed the files.
        """
        if self._open:
            try:
                self._check(0)
                if self._left is not None and self._missing:
                    raise PandaError(f"{self.path}: {self._missing} of its tiles are missing; run the slide again")
                for row, column in self.blocks.list_unfinished():
                    self._finish(row, column)
                self._writers.finish()
                self.blocks.close()
                if not (self._partial / METADATA).is_file():
                    raise PandaError(
                        f"{self.path}: its unfinished files were removed while it was written; "
                        "let one run at a time write it"
                    )
                # A lost chunk reads as "not scored"; only this count reveals it.
                chunks = measure_chunks(self._partial)
                whole = self._metadata.model_copy(update={"stored": StoredSize.from_chunks(chunks)})
                (self._partial / METADATA).write_bytes(whole.describe_files()[METADATA])
                sync(self._partial)
                replace(self._partial, self.path)
            except BaseException:
                self.abort()
                raise
            self._open = False
            return Canvas(self.path, whole, chunks)
        return Canvas.open(self.path)

    def abort(self) -> None:
        """Remove the unfinished files and keep an older canvas at `path`; do nothing after `close`."""
        if self._open:
            self._open = False
            self._writers.abort()
            self.blocks.close()
            remove(self._partial)

    def __enter__(self) -> CanvasWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()
        elif self._open:
            self.close()
