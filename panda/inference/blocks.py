"""The sums of a canvas that is being blended: in memory as far as a budget goes, beyond it on the disk."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.files import remove

Key = tuple[int, int]
"""Row and column of a block."""


class OpenBlocks:
    """Blocks of float32 that are added to, each until it is taken out.

    Where there are more than the budget holds, those that were not used for longest are written to files, exactly,
    and read again when they are asked for: a budget changes no result. The last one asked for always stays.

    Args:
        folder: Gets the files; made when the first is written.
        budget: Bytes of all blocks in memory.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder
        self._budget = budget
        self._held: OrderedDict[Key, NDArray[np.float32]] = OrderedDict()
        self._bytes = 0
        self._away: dict[Key, tuple[int, ...]] = {}
        self.peak_bytes = 0
        self.spilled = 0

    def unfinished(self) -> list[Key]:
        """All blocks that were begun and not taken out, by row and column."""
        return sorted([*self._held, *self._away])

    def get(self, key: Key, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The block, zeros at first, to be changed where it lies until another one is asked for.

        Args:
            key: Which one.
            shape: Of it; always the same for a key.

        Raises:
            OSError: The disk is full, or lost a file.
        """
        block = self._held.get(key)
        if block is None:
            block = self._read(key) if key in self._away else np.zeros(shape, np.float32)
            self._held[key] = block
            self._bytes += block.nbytes
        self._held.move_to_end(key)
        while self._bytes > self._budget and len(self._held) > 1:
            oldest, sums = self._held.popitem(last=False)
            self._write(oldest, sums)
            self._bytes -= sums.nbytes
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        return block

    def take(self, key: Key) -> NDArray[np.float32]:
        """The block as it was left, which is no longer held.

        Raises:
            KeyError: There is no such block.
            OSError: The disk lost a file.
        """
        if key in self._away:
            return self._read(key)
        block = self._held.pop(key)
        self._bytes -= block.nbytes
        return block

    def _file(self, key: Key) -> Path:
        return self._folder / f"{key[0]}.{key[1]}"

    def _write(self, key: Key, block: NDArray[np.float32]) -> None:
        self._folder.mkdir(exist_ok=True)
        self._file(key).write_bytes(block.data)
        self._away[key] = block.shape
        self.spilled += 1

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
        self._held.clear()
        self._away.clear()
        self._bytes = 0
        remove(self._folder)
