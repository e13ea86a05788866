"""Run work in processes: if one crashes, the others continue, and the item that crashed it is known."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

import cv2

from panda.data.worker_process import end_with_parent
from panda.errors import PandaError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # submitted items per process, so that none waits for this one


def run_in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[tuple[Item, Result | None], None, None]:
    """Call a function for each item in new processes; yield item and result in the order of finishing.

    If a process crashes (a segmentation fault of a decoder, no memory), the unfinished items are run again one by one,
    so that the item at fault is known: its result is None. Items are taken when needed and results are yielded at once,
    so memory does not grow with their number. The processes end with this one in any case. After Ctrl-C they finish
    their present items. `work` is a function of a module and never returns None; items are pickled.

    Raises:
        PandaError: If no process can be started.
        Exception: If `work` raises it.
    """
    rest = iter(items)
    while suspects := (yield from _run_until_crash(work, rest, workers, _AHEAD * workers)):
        alone = iter(suspects)
        while culprit := (yield from _run_until_crash(work, alone, 1, 1)):
            yield culprit[0], None


def _run_until_crash(
    work: Callable[[Item], Result], items: Iterator[Item], workers: int, at_once: int
) -> Generator[tuple[Item, Result], None, list[Item]]:
    """Run items until all are done or a process crashes; return the items that were unfinished then."""
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
            "`if __name__ == '__main__':`, and the system must allow another process"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    """Prepare a worker process: no log of tifffile, one thread for OpenCV, and it ends with its parent."""
    # A scheduler signals all processes. SIGTERM is how a pool ends its processes, so it keeps its effect.
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    cv2.setNumThreads(1)
    end_with_parent()
