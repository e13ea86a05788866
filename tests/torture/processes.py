"""Run a job in a forked process, and look at what it leaves: its status, its output, its children and its locks."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock, Timeout

from panda.errors import PandaError, find_exhaustion

T = TypeVar("T")

HANG_S = 600.0
"""Seconds after which a job counts as hanging, on a machine that has other work too."""
GRACE_S, PATIENCE_S = 1.0, 10.0
"""Seconds after a kill in which its children should have ended and its locks should be free, and must."""
_POLL_S = 0.01


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: Exit status, or minus the number of the signal; None if it hung.
        seconds: How long it ran.
        output: What it printed.
    """

    status: int | None
    seconds: float
    output: str

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL

    @property
    def fault(self) -> str:
        """What is wrong with the end of a process that nobody killed; a refusal in a sentence is no fault."""
        if self.status is None:
            return f"hung for {self.seconds:.0f} s"
        if "Traceback (most recent call last)" in self.output:
            return f"traceback: {self.last_line}"
        if self.status not in (0, 1):
            return f"ended with status {self.status}: {self.last_line}"
        return ""

    @property
    def last_line(self) -> str:
        """The last line of the output."""
        lines = [line.strip() for line in self.output.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "no output"


class Child:
    """A forked process that does some work in a session of its own.

    Args:
        work: Called in the process. `PandaError`, `OSError` and `MemoryError` end it with status 1 and a line.
        log: The file for all that it prints.
        prepare: Called in the process before the work, for example to set limits.
    """

    def __init__(self, work: Callable[[], None], log: Path, prepare: Callable[[], None] = lambda: None) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                os.setsid()
                _redirect(log)
                status = _work(work, prepare)
            finally:
                os._exit(status)

    def wait(self, seconds: float = HANG_S) -> Ended:
        """Wait for the end; a process that takes longer is killed with its children and counts as hanging."""
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            took = time.monotonic() - self.started
            if done:
                code: int | None = os.waitstatus_to_exitcode(status)
                break
            if took > seconds:
                self.end_session()
                os.waitpid(self.pid, 0)
                code = None
                break
            time.sleep(_POLL_S)
        return Ended(code, took, self.log.read_text(errors="replace"))

    def kill_after(self, seconds: float) -> Ended:
        """Send SIGKILL to the process alone, and wait for its end."""
        while (left := self.started + seconds - time.monotonic()) > 0:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return self.wait()
            time.sleep(min(left, _POLL_S))
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def list_alive(self) -> list[int]:
        """Return the living processes of the session."""
        return _list_session(self.pid)

    def end_session(self) -> None:
        """Kill all processes of the session."""
        for pid in self.list_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _redirect(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def _work(work: Callable[[], None], prepare: Callable[[], None]) -> int:
    """Work in the child; return the exit status."""
    torch.set_num_threads(1)
    try:
        prepare()
        work()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (PandaError, OSError, MemoryError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    except BaseException as error:
        if (exhausted := find_exhaustion(error)) is None:
            traceback.print_exc()
            return 70
        print(f"{type(exhausted).__name__}: {exhausted}", file=sys.stderr, flush=True)
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
    return 0


def _list_session(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            # a process may end in the meantime
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return found


def wait_for_none(find: Callable[[], list[T]]) -> tuple[list[T], float]:
    """Wait until nothing is found; return what is there after `PATIENCE_S`, and the seconds."""
    started = time.monotonic()
    while (found := find()) and time.monotonic() - started < PATIENCE_S:
        time.sleep(_POLL_S)
    return found, time.monotonic() - started


def list_held_locks(folder: Path) -> list[Path]:
    """Return the locks below a folder that are held."""
    return [path for path in folder.rglob(".*.lock") if _is_held(path)]


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    finally:
        lock.release()
    return False
