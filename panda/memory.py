"""Memory for large arrays that is used again, apart from the heap of the process.

The system clears memory page by page when it is first touched. That takes fifty times as long as to write into memory
that was touched before. Memory that the heap gives back to the system has to be cleared again.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_PRIVATE: dict[str, Any] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)  # so that a process that was forked does not share it


_LARGE = 2**17
"""Bytes from which the heap gives memory back to the system at once."""


def clear_after_fork(clear: Callable[[], None]) -> None:
    """Call a function in each process that is forked from this one, where a lock may have been copied while held."""
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=clear)


class MemoryPool:
    """Arrays whose memory is used again, for one of as many bytes, when nothing refers to it any more.

    Args:
        most_unused: Bytes that the pool holds while no array uses them.
    """

    def __init__(self, most_unused: int) -> None:
        self._most_unused = most_unused
        self.clear()
        clear_after_fork(self.clear)

    def clear(self) -> None:
        """Give the unused memory back to the system."""
        self._lock = threading.Lock()
        self._unused: deque[mmap.mmap] = deque()  # the last used at the right
        self._bytes = 0
        # Apart and without a lock, because garbage can be collected by a thread that holds the lock.
        self._returned: deque[mmap.mmap] = deque()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """Return an array with any values."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < _LARGE:
            return np.empty(shape, dtype)
        memory = self._take(size) or mmap.mmap(-1, size, **_PRIVATE)
        lease = np.frombuffer(memory, np.uint8)  # the array and all its views refer to it
        weakref.finalize(lease, self._returned.append, memory).atexit = False
        return lease.view(dtype).reshape(shape)

    def _take(self, size: int) -> mmap.mmap | None:
        """Return unused memory of a size, if there is any."""
        with self._lock:
            while self._returned:
                self._unused.append(self._returned.popleft())
                self._bytes += len(self._unused[-1])
            found = next((memory for memory in reversed(self._unused) if len(memory) == size), None)
            if found is not None:
                self._unused.remove(found)
                self._bytes -= size
            while self._bytes > self._most_unused:
                self._bytes -= len(self._unused.popleft())
        return found


POOL = MemoryPool(256 * 2**20)
"""The pool of this process. It holds what the map of one slide leaves to the next one."""
