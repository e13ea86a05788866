"""The sums of a canvas that is being blended: in memory up to a budget, beyond it on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from panda.files import remove

Key = tuple[int, int]
"""Row and column of a block."""


class _HeldBlocks(LRUCache[Key, NDArray[np.float32]]):
    """Blocks up to a number of bytes, or one larger block; `spill` gets each block that gives way to another."""

    def __init__(self, budget: int, spill: Callable[[Key, NDArray[np.float32]], None]) -> None:
        super().__init__(max(budget, 1), getsizeof=lambda block: min(block.nbytes, self.maxsize))
        self._spill = spill

    def popitem(self) -> tuple[Key, NDArray[np.float32]]:
        key, block = super().popitem()
        self._spill(key, block)
        return key, block


class OpenBlocks:
    """Blocks of float32 that are added to, each until it is taken out.

    If there are more than `budget` bytes, the blocks that were not used for longest are written to files in `folder`,
    exactly, and read again when they are needed: a budget changes no result. The last one used always stays in memory.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder
        self._held = _HeldBlocks(budget, self._write)
        self._away: dict[Key, tuple[int, ...]] = {}

    def list_unfinished(self) -> list[Key]:
        """Return all blocks that were begun and not taken out, by row and column."""
        return sorted([*self._held, *self._away])

    def get(self, key: Key, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return a block, zeros at first, which may be changed in place until another one is asked for."""
        block = self._held.get(key)
        if block is None:
            block = self._read(key) if key in self._away else np.zeros(shape, np.float32)
            self._held[key] = block
        return block

    def take(self, key: Key) -> NDArray[np.float32]:
        """Return a block, which is then no longer held."""
        return self._read(key) if key in self._away else self._held.pop(key)

    def _file(self, key: Key) -> Path:
        return self._folder / f"{key[0]}.{key[1]}"

    def _write(self, key: Key, block: NDArray[np.float32]) -> None:
        self._folder.mkdir(exist_ok=True)
        self._file(key).write_bytes(block.data)
        self._away[key] = block.shape

    def _read(self, key: Key) -> NDArray[np.float32]:
        block = np.empty(self._away[key], np.float32)
        with self._file(key).open("rb", buffering=0) as file:
            if file.readinto(block.data.cast("B")) != block.nbytes:
                raise OSError(f"{self._file(key)}: was shortened while the canvas was written; run the slide again")
        self._file(key).unlink()
        del self._away[key]
        return block

    def close(self) -> None:
        """Forget all blocks and remove the files."""
        for key in [*self._held]:
            del self._held[key]
        self._away.clear()
        remove(self._folder)
