"""The ranks of one training, each connected to rank 0, so that none waits for one that has ended.

Rank 0 leads: it says what the others do. A rank that ends closes its connection, also if it is killed. If a machine is
lost, the system notices that it no longer answers. A job that SLURM suspends stays connected.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from panda.app.ranks import Launch, RankError
from panda.app.signals import forget_signals
from panda.errors import PandaError
from panda.soft_lock import interrupt_main_thread

log = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""A rank ends in this time after another did; then it is ended, because a collective operation may never return."""
_NOTICE_SECONDS = 2.0
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}

Message = dict[str, Any]


@dataclass
class Link:
    """A connection to another rank, which sends one JSON object a line."""

    connection: socket.socket
    rank: int = 0
    host: str = ""
    hello: Message = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # not on every system
                self.connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._lines = self.connection.makefile("r", encoding="utf-8")
        self._sending = threading.Lock()

    def send(self, kind: str, **content: Any) -> None:
        """Send a message; a lost connection is noticed by its reader."""
        with self._sending, suppress(OSError):
            self.connection.sendall(json.dumps({"kind": kind, **content}).encode() + b"\n")

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self.connection.close()

    def read(self) -> Message | None:
        """Return the next message, or None at the end of the connection."""
        with suppress(OSError, ValueError):
            if line := self._lines.readline():
                return dict(json.loads(line))
        return None


class RankGroup:
    """The ranks as one of them sees them.

    Attributes:
        failure: Why the ranks end, or None.
        status: The exit status that follows from it.
        is_explained: Whether rank 0 has said the reason.
        report: Called with the failure on rank 0, at once and in another thread.
    """

    def __init__(self, launch: Launch, links: Sequence[Link], store: Any = None) -> None:
        self.launch = launch
        self.links = list(links)
        self.failure: str | None = None
        self.status: int | None = None
        self.is_explained = False
        self.report: Callable[[str], None] = lambda text: log.error("%s", text)
        self._store = store  # it is open as long as this object lives
        self._failed, self._noticed, self._heard = threading.Event(), threading.Event(), threading.Event()
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        for link in links:
            threading.Thread(target=self._listen, args=(link,), daemon=True).start()

    @property
    def interrupts(self) -> bool:
        """Whether the ranks end, and the main thread has not noticed it."""
        return self._failed.is_set() and not self._noticed.is_set()

    def name(self, link: Link) -> str:
        """Return what a message calls the rank of a link."""
        return f"rank {link.rank} of {self.launch.size} on {link.host}"

    def send(self, kind: str, **content: Any) -> None:
        """Send a message to all connected ranks."""
        for link in self.links:
            link.send(kind, **content)

    def wait(self, seconds: float | None = None) -> Message:
        """Return the next message.

        Raises:
            RankError: If the ranks end, with the reason.
            TimeoutError: If none comes in time.
        """
        try:
            message = self._messages.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if message is None:
            self._noticed.set()
            raise RankError(self.failure)
        return message

    def ask(self, kind: str, seconds: float, **content: Any) -> dict[int, Message]:
        """Send a message to all ranks and return their answers by rank.

        Raises:
            PandaError: If a rank does not answer in time.
            RankError: If a rank ends.
        """
        self.send(kind, **content)
        return self.collect(seconds)

    def collect(self, seconds: float) -> dict[int, Message]:
        """Return one message of each rank, by rank; see `ask`."""
        answers: dict[int, Message] = {}
        end = time.monotonic() + seconds
        try:
            while len(answers) < len(self.links):
                message = self.wait(max(end - time.monotonic(), 0))
                answers[message["rank"]] = message
        except TimeoutError:
            silent = ", ".join(self.name(link) for link in self.links if link.rank not in answers)
            raise PandaError(f"{silent} did not answer within {seconds:.0f} s: look at that machine") from None
        return answers

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Raise `RankError` in place of any error inside if another rank ended, which then is the reason."""
        try:
            yield
        except BaseException as error:
            # An error of a collective operation can precede the news of the rank that caused it.
            if isinstance(error, PandaError) or not self._failed.wait(_NOTICE_SECONDS):
                raise
            self._noticed.set()
            forget_signals()  # torchrun ends all ranks after the first one
            raise RankError(self.failure) from error

    def report_failure(self, error: str) -> None:
        """Say to rank 0 why this rank ends, and wait until it has heard it."""
        self.send("failed", error=error)
        self._heard.wait(GRACE_SECONDS)

    def end(self, status: int) -> None:
        """Let the other ranks end with this exit status, and disconnect."""
        self.release()
        self.send("end", status=status)
        for link in self.links:
            with suppress(OSError):  # it has ended
                link.connection.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Take the end of another rank for no failure from now on."""
        with self._lock:
            self.status = self.status or 0
        self._noticed.set()

    def _listen(self, link: Link) -> None:
        while (message := link.read()) is not None:
            if message["kind"] == "failed":
                self._fail(f"{self.name(link)}: {message['error']}")
                link.send("heard")
            elif message["kind"] == "heard":
                self._heard.set()
            elif message["kind"] == "end":
                self.is_explained = True
                self._fail("rank 0 has ended", message["status"])
            else:
                self._messages.put({**message, "rank": link.rank})
        self._fail(
            f"{self.name(link)} ended without a word: it was killed, perhaps because memory ran out (lower "
            "data.batch_size or data.num_workers), or its machine was lost"
        )
        link.close()

    def _fail(self, text: str, status: int = 1) -> None:
        """Record why the ranks end, and end this one; only the first reason counts."""
        with self._lock:
            if self.status is not None:
                return
            self.failure, self.status = text, status
        if self.launch.rank == 0:
            self.report(text)
        self._failed.set()
        self._messages.put(None)
        threading.Thread(target=self._end_main, daemon=True).start()

    def _end_main(self) -> None:
        """Interrupt the main thread; end the process if it waits for a collective operation that never returns."""
        if self._noticed.wait(_NOTICE_SECONDS / 4):
            return
        interrupt_main_thread()
        if not self._noticed.wait(GRACE_SECONDS):
            os._exit(self.status or 1)
