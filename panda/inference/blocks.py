"""The sums of a canvas that is being blended: on the device up to a budget, beyond it on the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray
from torch import Tensor

from panda.files import remove
from panda.inference.buffers import Buffers
from panda.inference.work_queue import WorkQueue

Key = tuple[int, int]
"""Row and column of a block."""


class HostCopy:
    """A copy of a tensor in the memory of the host, which a GPU makes when the work before it is done."""

    def __init__(self, tensor: Tensor) -> None:
        self._copied: Any = None  # the event that ends the copy
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.cpu()

    def is_ready(self) -> bool:
        """Return whether the copy is made."""
        return self._copied is None or bool(self._copied.query())

    def wait(self) -> NDArray[Any]:
        """Return the copy as soon as it is made."""
        if self._copied is not None:
            self._copied.synchronize()
        return np.asarray(self._host.numpy())


class _HeldBlocks(LRUCache[Key, Tensor]):
    """Blocks up to a number of bytes, or one larger block; `spill` gets each block that gives way to another."""

    def __init__(self, budget: int, spill: Callable[[Key, Tensor], None]) -> None:
        super().__init__(max(budget, 1), getsizeof=lambda block: min(block.nbytes, self.maxsize))
        self._spill = spill

    def popitem(self) -> tuple[Key, Tensor]:
        key, block = super().popitem()
        self._spill(key, block)
        return key, block


class OpenBlocks:
    """Blocks of float32 on a device that are added to, each until it is taken out.

    If there are more than `budget` bytes, the blocks that were not used for longest are written to files in `folder`,
    exactly, and read again when they are needed: a budget changes no result. The last one used always stays on the
    device.
    """

    def __init__(self, folder: Path, budget: int, device: torch.device, buffers: Buffers, writers: WorkQueue) -> None:
        self._folder = folder
        self._device = device
        self._buffers = buffers
        self._writers = writers
        self._held = _HeldBlocks(budget, self._spill)
        self._away: dict[Key, tuple[torch.Size, Future[None]]] = {}

    def list_unfinished(self) -> list[Key]:
        """Return all blocks that were begun and not taken out, by row and column."""
        return sorted([*self._held, *self._away])

    def get(self, key: Key, shape: tuple[int, ...]) -> Tensor:
        """Return a block, zeros at first, which may be changed in place until another one is asked for."""
        block = self._held.get(key)
        if block is None:
            block = self._read(key) if key in self._away else self._buffers.zeros(shape)
            self._held[key] = block
        return block

    def take(self, key: Key) -> Tensor:
        """Return a block, which is then no longer held."""
        return self._read(key) if key in self._away else self._held.pop(key)

    def _file(self, key: Key) -> Path:
        return self._folder / f"{key[0]}.{key[1]}"

    def _spill(self, key: Key, block: Tensor) -> None:
        self._away[key] = block.shape, self._writers.submit(self._write, key, HostCopy(block))

    def _write(self, key: Key, block: HostCopy) -> None:
        self._folder.mkdir(exist_ok=True)
        self._file(key).write_bytes(block.wait().data)

    def _read(self, key: Key) -> Tensor:
        shape, written = self._away.pop(key)
        written.result()
        pinned = self._device.type == "cuda"
        block = torch.empty(shape, pin_memory=True) if pinned else self._buffers.empty(shape, torch.float32)
        with self._file(key).open("rb", buffering=0) as file:
            if file.readinto(block.numpy().data.cast("B")) != block.nbytes:
                raise OSError(f"{self._file(key)}: was shortened while the canvas was written; run the slide again")
        self._file(key).unlink()
        return block.to(self._device, non_blocking=True)

    def close(self) -> None:
        """Forget all blocks and remove the files."""
        for key in [*self._held]:
            del self._held[key]
        self._away.clear()
        remove(self._folder)
