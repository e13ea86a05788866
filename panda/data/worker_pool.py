"""Run work in processes beside this one; a process that dies loses its own item only."""

from __future__ import annotations

import _thread
import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any, Generic, TypeVar

import cv2

from panda.data.call_outcome import CallOutcome, collect_logs
from panda.data.worker_process import end_with_parent
from panda.errors import PandaError

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger("panda")

_GRACE_S = 0.7
"""Seconds for a worker to remove its unfinished files before it is killed."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_IGNORED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
_starting = threading.Lock()


class WorkerPool(Generic[Item, Result]):
    """Calls a function for items in processes of one thread each.

    A worker starts when the first item needs it. Log messages of the workers are logged here. The workers ignore the
    signals that a scheduler or Ctrl-C sends to all processes. They end with the `with` statement: after all
    items, or at once if it raises. If this process is killed, they end too.

    Args:
        work: A function of a module. Items, which are never None, results and errors are pickled.
        workers: The number of processes; with 0 the work is done by `submit`, in this process.
        remedy: The end of the message about a process that died.
    """

    def __init__(self, work: Callable[[Item], Result], workers: int, remedy: str) -> None:
        self._work = work
        self._workers: list[_Worker[Item, Result]] = [_Worker(work, remedy) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker[Item, Result]] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(max(1, workers))

    def submit(self, item: Item, after: Future[Any] | None = None) -> Future[Result]:
        """Give an item to the next free worker, when `after` is done, whose error becomes that of the item.

        A `PandaError` of the future says that the process of the worker died.
        """
        if self._workers:
            return self._threads.submit(self._run, item, after)
        future: Future[Result] = Future()
        try:
            if after:
                after.result()
            future.set_result(self._work(item))
        except Exception as error:
            future.set_exception(error)
        return future

    def _run(self, item: Item, after: Future[Any] | None) -> Result:
        if after:
            after.result()
        worker = self._idle.get()
        try:
            return worker.run(item)
        finally:
            self._idle.put(worker)

    def __enter__(self) -> WorkerPool[Item, Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._threads.shutdown()
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            for worker in self._workers:
                worker.stop()
            until = time.monotonic() + _GRACE_S
            for worker in self._workers:
                worker.end(max(0.0, until - time.monotonic()))


class _Worker(Generic[Item, Result]):
    """One process, started when an item needs it and again after its death."""

    def __init__(self, work: Callable[[Item], Result], remedy: str) -> None:
        self._work = work
        self._remedy = remedy
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._lock = threading.Lock()  # of the connection, which two threads may send to
        self._stopped = threading.Event()

    def run(self, item: Item) -> Result:
        """Do the work for an item in the process.

        Raises:
            PandaError: If the process dies.
            Exception: If the work raises it.
        """
        if self._process is not None and not self._process.is_alive():
            self._process = None
        process, connection = self._start() if self._process is None else (self._process, self._connection)
        assert connection is not None
        try:
            with self._lock:
                connection.send(item)
            outcome: CallOutcome[Result] = connection.recv()
        except (EOFError, OSError) as broken:
            raise PandaError(f"{_describe_death(process)}; {self._remedy}") from broken
        return outcome.unpack()

    def _start(self) -> tuple[SpawnProcess, Connection]:
        own, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_serve, args=(self._work, other, log.getEffectiveLevel()), daemon=True)
        with self._lock, other:
            if self._stopped.is_set():
                raise EOFError("the pool has ended")
            with _starting, _limit_threads(), _hold_signals():
                process.start()
            if self._stopped.is_set():  # while it started
                process.kill()
                raise EOFError("the pool has ended")
            self._process, self._connection = process, own
        return process, own

    def stop(self) -> None:
        """Let the process end, also in the middle of an item; do nothing if it does not receive one yet."""
        self._stopped.set()
        if self._lock.acquire(timeout=_GRACE_S):
            try:
                if self._connection is not None:
                    with contextlib.suppress(OSError):
                        self._connection.send(None)
            finally:
                self._lock.release()

    def end(self, timeout_s: float) -> None:
        """Wait for the end of the process after `stop`, and kill it if it takes longer."""
        process = self._process
        if process is not None:
            process.join(timeout_s)
            if process.is_alive():
                process.kill()
                process.join()


def _describe_death(process: SpawnProcess) -> str:
    process.join(1)
    code = process.exitcode or 0
    how = f"exit status {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = signal.Signals(-code).name
    return f"the process that worked on it died ({how})" + ("; most likely memory ran out" if how == "SIGKILL" else "")


@contextlib.contextmanager
def _limit_threads() -> Iterator[None]:
    """Give processes that start inside one thread for numerical libraries, which read it when they are imported."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _hold_signals() -> Iterator[None]:
    """Hold back `_IGNORED` in this thread: a process that starts inside does the same until it ignores them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield  # Windows has none
        return
    resource_tracker.ensure_running()  # its start lets signals through, so it comes before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Callable[[Any], Any], connection: Connection, level: int) -> None:
    """Do the work for items from a connection, until it gives None."""
    end_with_parent()
    cv2.setNumThreads(1)
    is_stopped = threading.Event()

    def stop(_: int, frame: FrameType | None) -> None:
        if is_stopped.is_set():
            raise SystemExit(1)

    for number in _IGNORED:
        signal.signal(number, stop if number == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    records = collect_logs(level)
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive() -> None:
        with contextlib.suppress(EOFError, OSError):
            while (item := connection.recv()) is not None:
                items.put(item)
        is_stopped.set()
        items.put(None)
        _thread.interrupt_main(signal.SIGTERM)

    threading.Thread(target=receive, daemon=True).start()
    while (item := items.get()) is not None:
        connection.send(CallOutcome.record_call(work, item, records))
