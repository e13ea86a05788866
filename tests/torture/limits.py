"""Limits of the system on memory, open files, threads and the size of a file: one sentence, or the right result."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import resource
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from panda.errors import ExhaustedError
from tests.torture.jobs import Job
from tests.torture.outcome import Deadline, Outcome
from tests.torture.processes import Child

PART = "limits"
_MIB = 2**20
_NOBODY = 54_321
"""A user that owns no process: the limit on threads counts those of the user, and root has none."""
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAPABILITY_VERSION_3 = 8, 47, 2, 0x20080522
_CAPABILITIES = (1, 3)
"""CAP_DAC_OVERRIDE and CAP_FOWNER, by their numbers in Linux."""
_BLAMED = ("damaged", "corrupt", "is not a checkpoint", "cannot be decoded")
"""Words that would blame a sound file."""


def _limit_memory(extra: int) -> None:
    size = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _become_nobody() -> None:
    """Become a user that the limit on threads holds for, and that can write all files as root can."""
    if os.getuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_KEEPCAPS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)
    sets = (sum(1 << capability for capability in _CAPABILITIES),) * 3
    if libc.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), struct.pack("6I", *sets, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "the capabilities of root cannot be kept")
    for capability in _CAPABILITIES:
        libc.prctl(_PR_CAP_AMBIENT, *map(ctypes.c_ulong, (_PR_CAP_AMBIENT_RAISE, capability, 0, 0)))


def _start_thread() -> None:
    threading.Thread(target=int).start()


def _limit_threads(extra: int) -> None:
    _become_nobody()
    resource.setrlimit(resource.RLIMIT_NPROC, (extra, extra))


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, value))


# the limit on the size of a file holds for the log too, so none is smaller than a log
_LIMITS: dict[str, tuple[Callable[[int], None], tuple[int, ...]]] = {
    "MiB of address space above the start": (lambda mib: _limit_memory(mib * _MIB), (8, 32, 64, 128, 256, 512)),
    "open files": (functools.partial(_limit, resource.RLIMIT_NOFILE), (8, 16, 24, 32, 64)),
    "threads": (_limit_threads, (1, 2, 4, 8)),
    "bytes a file": (functools.partial(_limit, resource.RLIMIT_FSIZE), (100_000, 300_000, 1_000_000)),
}


def torture(home: Path, jobs: Sequence[Job], rng: random.Random, deadline: Deadline) -> Iterator[Outcome]:
    """Run jobs under limits, as many as the time allows in random order; then each must complete without."""
    for name, (prepare, values) in _LIMITS.items():
        outcome, until = Outcome(PART, name), deadline.share(len(_LIMITS))
        if prepare is _limit_threads and not _run_limited(_start_thread, home, 1):
            outcome.note("not tried: no limit on threads holds here")
            yield outcome
            continue
        trials = [(job, value) for job in jobs for value in values]
        for job, value in rng.sample(trials, len(trials)):
            if until.passed:
                break
            _run(home, job, functools.partial(prepare, value), f"{job.name}, {value} {name}", outcome)
        yield outcome


def _run_limited(work: Callable[[], None], home: Path, threads: int) -> int | None:
    """Run some work under a limit on threads; return its exit status."""
    return Child(work, home / "logs" / "limits.txt", functools.partial(_limit_threads, threads)).wait().status


def _run(home: Path, job: Job, prepare: Callable[[], None], case: str, outcome: Outcome) -> None:
    job.reset(home)
    outcome.tried += 1
    ended = Child(job.enter(home), home / "logs" / "limits.txt", prepare).wait()
    if ended.fault and (ended.status == 0 or (ended.status == 1 and f"{ExhaustedError.__name__}: " in ended.output)):
        # Python's own queues and pools print the error of a thread or process that they lose
        outcome.note(f"{case}: {'refused' if ended.status else 'completed'}, beside a traceback of Python's own")
    elif ended.fault:
        outcome.faults.append(f"{case}: {ended.fault}")
    elif ended.status and (word := next((word for word in _BLAMED if word in ended.output), None)):
        outcome.faults.append(f"{case}: a sound file is said to be {word!r}: {ended.last_line}")
    elif ended.status:
        outcome.note(f"{case}: refused")
    if ended.status:
        again = Child(job.enter(home), home / "logs" / "limits_after.txt").wait()
        if again.fault or again.status:
            outcome.faults.append(f"{case}, then without: {again.fault or again.last_line}")
