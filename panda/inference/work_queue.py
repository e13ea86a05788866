"""Work that threads do beside the thread that runs the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class WorkQueue:
    """Threads that call functions. If too many calls wait, `submit` waits too, so that memory is bounded.

    A `with` statement drops the calls that wait at its end.

    Args:
        threads: The number of threads. One thread does all calls in their order.
        most: How many calls may wait or run.
    """

    def __init__(self, threads: int, most: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._most = most
        self._waiting: deque[Future[None]] = deque()

    def submit(self, call: Callable[..., None], *given: Any) -> Future[None]:
        """Call a function with its arguments in a thread. The error of an earlier call may be raised here."""
        if len(self._waiting) == self._most:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(call, *given))
        return self._waiting[-1]

    def finish(self) -> None:
        """Wait for all calls, and raise the error of the first that failed."""
        while self._waiting:
            self._waiting.popleft().result()
        self._pool.shutdown()

    def abort(self) -> None:
        """Wait for the calls that run, and drop the others."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> WorkQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


def make_blending_queue(most: int) -> WorkQueue:
    """Return a queue of one thread in which torch computes without further threads on a CPU.

    The blending of a tile is so short that the other threads of torch would mostly wait, and they wait actively.
    """
    threads = torch.get_num_threads()
    queue = WorkQueue(1, most)
    queue.submit(_take_one_thread).result()
    torch.set_num_threads(threads)  # the call in the queue set it for all threads that start later, too
    return queue


def _take_one_thread() -> None:
    """Let torch compute without further threads in this one."""
    torch.get_num_threads()  # otherwise the first computation sets the number of all threads here
    torch.set_num_threads(1)
