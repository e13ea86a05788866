"""Open files that are shared by the threads of a process and never by two processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """A handle of a file."""

    def close(self) -> None:
        """Close the file."""


Handle = TypeVar("Handle", bound=Closable)


class PerProcess(Generic[Handle]):
    """A handle that is opened on first use, once in every process, and shared by its threads.

    Pickling keeps only the opener, whose errors pass through `get`.
    """

    def __init__(self, opener: Callable[[], Handle]) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._handle: Handle | None = None
        self._inherited: Handle | None = None

    def __reduce__(self) -> tuple[type[PerProcess[Handle]], tuple[Callable[[], Handle]]]:
        return type(self), (self._opener,)

    def get(self) -> Handle:
        """Return this process's handle, opened if necessary."""
        if self._pid != os.getpid():
            # A forked worker shares file positions with its parent, and may have copied a lock that was held.
            # The parent's handle is kept, unused: closing it here could wait for such a lock for ever.
            self._inherited, self._handle = self._handle, None
            self._lock = threading.Lock()
            self._pid = os.getpid()
        with self._lock:
            if self._handle is None:
                self._handle = self._opener()
            return self._handle

    def drop(self, handle: Handle) -> None:
        """Forget a handle that has failed; the next `get` opens a new one."""
        with self._lock:
            if self._handle is handle:
                self._handle = None

    def close(self) -> None:
        """Close this process's handle; a later `get` opens it again."""
        if self._pid == os.getpid():
            with self._lock:
                handle, self._handle = self._handle, None
            if handle is not None:
                handle.close()
