"""Work spread over processes, any of which may crash: the rest of the work goes on, and it is known what crashed it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection
from typing import TypeVar

import cv2

from panda.errors import PandaError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items handed out per process, so that none waits for this one


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[tuple[Item, Result | None], None, None]:
    """Do a piece of work for each item in new processes, which share nothing with this one.

    Where a process crashes (a decoder's segmentation fault, the system out of memory), what was under way then is
    done again one by one, and what crashes its process even so is told. Items are taken as they are needed and
    results handed on at once, so memory does not grow with their number. The processes end when this one does,
    however it ends; Ctrl-C lets them finish the items they are at.

    Args:
        work: Function of a module, called with an item; it never returns None.
        items: Picklable.
        workers: Number of processes.

    Yields:
        Item and result in the order of finishing; None for an item that crashes its process.

    Raises:
        PandaError: No process can be started.
        Exception: What `work` raised.
    """
    rest = iter(items)
    while suspects := (yield from _until_broken(work, rest, workers, _AHEAD * workers)):
        alone = iter(suspects)
        while culprit := (yield from _until_broken(work, alone, 1, 1)):
            yield culprit[0], None


def _until_broken(
    work: Callable[[Item], Result], items: Iterator[Item], workers: int, at_once: int
) -> Generator[tuple[Item, Result], None, list[Item]]:
    """Do the work until all is done or a process crashes; the items that were under way then, else none."""
    running: dict[Future[Result], Item] = {}
    lost: list[Item] = []
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare)
    try:
        pool.submit(os.getpid).result()
        while True:
            for item in islice(items, 0 if lost else at_once - len(running)):
                try:
                    running[pool.submit(work, item)] = item
                except BrokenProcessPool:
                    lost.append(item)
                    break
            if not running:
                return lost
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    lost.append(item)
                else:
                    yield item, result
    except BrokenProcessPool as error:
        raise PandaError(
            "no worker process can be started, or it ends at once; a script that calls this needs "
            "`if __name__ == '__main__':`, and the system room for another process"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    """Make a new process a worker: quiet, one thread for OpenCV, gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended: killed, it could tell nobody, and the pool would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
