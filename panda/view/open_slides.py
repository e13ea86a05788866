"""Slides that are open at a time: few, shared by threads, and closed when no thread uses them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from panda.wsi.handles import Closable

Opened = TypeVar("Opened", bound=Closable)


@dataclass
class _Held(Generic[Opened]):
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    slide: Opened | None = None


class OpenSlides(Generic[Opened]):
    """Opens slides by number, and keeps those that were used last.

    Args:
        opener: Opens the slide of a number. Its errors pass through `lease`, and the next one tries again.
        most: Number of slides that stay open.
    """

    def __init__(self, opener: Callable[[int], Opened], most: int = 4) -> None:
        self._opener, self._most = opener, most
        self._held: dict[int, _Held[Opened]] = {}  # the one that was used last is the last one
        self._lock = threading.Lock()

    @contextmanager
    def lease(self, number: int) -> Iterator[Opened]:
        """Give a slide to the block; no other thread closes it before the end of the block."""
        with self._lock:
            held = self._held.pop(number, None) or _Held()
            self._held[number] = held
            held.users += 1
        try:
            with held.lock:  # one thread opens, the others wait
                slide = held.slide = held.slide or self._opener(number)
            yield slide
        finally:
            with self._lock:
                held.users -= 1
            self._drop(self._most)

    def close(self) -> None:
        """Close all slides that no thread uses."""
        self._drop(0)

    def _drop(self, most: int) -> None:
        """Close the slides that were used longest ago until at most so many are open, except those in use."""
        with self._lock:
            idle = [number for number, held in self._held.items() if not held.users]
            dropped = [self._held.pop(number) for number in idle[: max(0, len(self._held) - most)]]
        for held in dropped:
            if held.slide is not None:
                held.slide.close()
