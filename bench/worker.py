"""Run each contender in a process of its own, so that none can slow, break or silence another.

A contender is named as `module:function`; the function returns the one that answers questions in the process. Its
output goes to a log.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

START_S = 180.0


class LeftOutError(Exception):
    """A contender cannot take part; the message says why."""


class Worker:
    """A process that answers questions, one at a time.

    Args:
        name: Of the contender, for messages.
        target: `module:function`; called once in the process, it returns the function that answers each question.
        args: Of that function.
        log: Where the process prints to.

    Raises:
        LeftOutError: If the contender is not installed, or does not start.
    """

    def __init__(self, name: str, target: str, args: tuple[Any, ...], log: Path) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target, args, str(log)))
        self._process.start()
        theirs.close()
        self._answer(START_S)

    def ask(self, *question: Any, timeout_s: float) -> Any:
        """Put a question and wait for the answer.

        Raises:
            LeftOutError: If it failed, died or took longer than `timeout_s`; the process is gone then.
        """
        self._pipe.send(question)
        return self._answer(timeout_s)

    def _answer(self, timeout_s: float) -> Any:
        try:
            if not self._pipe.poll(timeout_s):
                raise LeftOutError(f"no answer within {timeout_s:g} s")
            good, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            good, answer = False, f"its process died (exit code {self._exit_code()})"
        except LeftOutError:
            self.close()
            raise
        if not good:
            self.close()
            raise LeftOutError(f"{answer}; what it printed is in {self.log}")
        return answer

    def _exit_code(self) -> int | None:
        self._process.join(5)
        return self._process.exitcode

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def workers(
    contenders: dict[str, tuple[str, tuple[Any, ...]]], logs: Path, left_out: dict[str, str]
) -> Iterator[dict[str, Worker]]:
    """Start a process for each contender and end them all afterwards.

    Args:
        contenders: Name → target and arguments, as of `Worker`.
        logs: Folder of the logs.
        left_out: Gets the reason for each contender that does not start.

    Yields:
        The processes that did start, in the order of the contenders.
    """
    started: dict[str, Worker] = {}
    try:
        for name, (target, args) in contenders.items():
            try:
                started[name] = Worker(name, target, args, logs / f"{name}.txt")
            except LeftOutError as error:
                left_out[name] = str(error)
        yield started
    finally:
        for worker in started.values():
            worker.close()


def confine(cores: int) -> None:
    """Keep all threads of this process, and those to come, on that number of cores (if the system can)."""
    if hasattr(os, "sched_setaffinity"):
        chosen = sorted(_CORES)[:cores]
        for thread in os.listdir("/proc/self/task"):
            # a thread may end in the meantime
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), chosen)


def time_work(work: Callable[[], int]) -> tuple[float, int]:
    """Do some work, and return its seconds and its result."""
    start = time.perf_counter()
    done = work()
    return time.perf_counter() - start, done


_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


def _serve(pipe: Connection[Any, Any], target: str, args: tuple[Any, ...], log: str) -> None:
    """Make the contender, then answer until the pipe is closed: the main function of the process."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    module, function = target.split(":")
    try:
        answer = getattr(import_module(module), function)(*args)
    except Exception as error:
        pipe.send((False, _format_error(error)))
        return
    pipe.send((True, None))
    # the other end may be closed at any time
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            question = pipe.recv()
            try:
                pipe.send((True, answer(*question)))
            except Exception as error:
                pipe.send((False, _format_error(error)))


def _format_error(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
