"""Read tiles ahead of a network, in threads, into batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panda.inference.buffers import Buffers

TileReader = Callable[[], NDArray[np.uint8]]
"""Reads one tile, (side, side, 3)."""

_MOST_AHEAD = 2
"""Batches that are read ahead; more would not help a network that takes them at a steady rate."""

_BYTES_AHEAD = 128 * 2**20
"""Bytes that are read ahead, or one larger batch."""


def read_batches(
    tiles: Iterable[TileReader],
    side: int,
    batch_size: int,
    *,
    threads: int,
    device: torch.device,
    dtype: torch.dtype = torch.uint8,
) -> Generator[Tensor]:
    """Yield tiles in batches, in their order, while threads read the next ones; see `read_groups`."""
    return read_groups([tiles], side, batch_size, threads=threads, device=device, dtype=dtype)


def read_groups(
    groups: Iterable[Iterable[TileReader]],
    side: int,
    batch_size: int,
    *,
    threads: int,
    device: torch.device,
    dtype: torch.dtype = torch.uint8,
) -> Generator[Tensor]:
    """Yield tiles in batches, in their order, while threads read the next ones. No batch has tiles of two groups.

    Tiles may be of several slides. Groups are read lazily, one batch of readers at a time, by the thread that iterates.
    Threads read until the generator is closed, so close it before the slides: a traceback keeps a generator alive.

    Args:
        groups: One reader a tile.
        side: Side of a tile in px.
        batch_size: Tiles in a batch; the last one of a group can have fewer.
        threads: Threads that read.
        device: Where the batches are used. If it is a CUDA device, they are page-locked and can be copied to it beside
            other work.
        dtype: `torch.float32` for values in [0, 1], which the threads convert beside other work.

    Returns:
        Batches, (n, side, side, 3), in the memory of the host.
    """
    upcoming = _cut(groups, batch_size)
    ahead = max(1, min(_MOST_AHEAD, _BYTES_AHEAD // (batch_size * side * side * 3 * dtype.itemsize)))
    waiting: deque[tuple[Tensor, list[Future[None]]]] = deque()
    buffers = Buffers(torch.device("cpu"), pinned=device.type == "cuda")
    pool = ThreadPoolExecutor(threads)

    def submit() -> None:
        if readers := next(upcoming, None):
            images = buffers.empty((batch_size, side, side, 3), dtype)[: len(readers)]
            slots = images.numpy()
            waiting.append((images, [pool.submit(_fill, slots[at], reader) for at, reader in enumerate(readers)]))

    try:
        for _ in range(ahead):
            submit()
        while waiting:
            images, filled = waiting.popleft()
            submit()
            for tile in filled:
                tile.result()
            yield images
    finally:
        pool.shutdown(cancel_futures=True)


def _cut(groups: Iterable[Iterable[TileReader]], size: int) -> Iterator[list[TileReader]]:
    for group in groups:
        left = iter(group)
        while batch := list(islice(left, size)):
            yield batch


def _fill(slot: NDArray[Any], read: TileReader) -> None:
    if slot.dtype == np.uint8:
        slot[...] = read()
    else:
        np.divide(read(), np.float32(255), out=slot)
