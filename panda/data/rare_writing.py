"""Write the files of a run again while it goes, without much of its time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_PAUSE = 30
"""Least time between two calls, in times that the last one took."""


class RareWriting:
    """Calls a function again and again during a run, so rarely that it takes at most a thirtieth of the time.

    Args:
        never: Whether it is never called, because other processes write the same files.
    """

    def __init__(self, *, never: bool) -> None:
        self._next = math.inf if never else 0.0

    def call(self, write: Callable[[], object]) -> None:
        """Call a function, unless it was called a short time ago."""
        if (started := time.monotonic()) >= self._next:
            write()
            now = time.monotonic()
            self._next = now + _PAUSE * (now - started)
