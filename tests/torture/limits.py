"""Limits of the system on memory, open files, threads and the size of a file: one sentence, or the right result."""

from __future__ import annotations

import functools
import os
import random
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.torture.digests import compare, digest_folder
from tests.torture.jobs import Job
from tests.torture.outcome import Deadline, Outcome
from tests.torture.processes import Child

PART = "limits"
_MIB = 2**20
_NOBODY = 54_321
"""A user that owns no process: the limit on threads counts those of the user, and root has none."""
_BLAMED = ("damaged", "corrupt", "is not a checkpoint", "cannot be decoded")
"""Words that would blame a sound file."""


def _limit_memory(extra: int) -> None:
    size = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _become_nobody() -> None:
    if os.getuid() == 0:
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)


def _read_library() -> None:
    """Read a file of Python's library, from which modules are imported when they are needed."""
    Path(os.__file__).read_bytes()


def _limit_threads(extra: int) -> None:
    _become_nobody()
    resource.setrlimit(resource.RLIMIT_NPROC, (extra, extra))


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, value))


_LIMITS: dict[str, tuple[Callable[[int], None], tuple[int, ...]]] = {
    "MiB of address space above the start": (lambda mib: _limit_memory(mib * _MIB), (8, 32, 64, 128, 256, 512)),
    "open files": (functools.partial(_limit, resource.RLIMIT_NOFILE), (8, 16, 24, 32, 64)),
    "threads": (_limit_threads, (1, 2, 4, 8)),
    "bytes a file": (functools.partial(_limit, resource.RLIMIT_FSIZE), (2000, 20_000, 300_000)),
}


def torture(home: Path, jobs: Sequence[Job], rng: random.Random, deadline: Deadline) -> Iterator[Outcome]:
    """Run jobs under limits, as many as the time allows in random order; then each must complete without."""
    for name, (prepare, values) in _LIMITS.items():
        outcome, until = Outcome(PART, name), deadline.share(len(_LIMITS))
        if (
            prepare is _limit_threads
            and Child(_read_library, home / "logs" / "limits.txt", _become_nobody).wait().status
        ):
            outcome.note("not tried: root has no limit on threads, and another user cannot read this Python")
            yield outcome
            continue
        trials = [(job, value) for job in jobs for value in values]
        for job, value in rng.sample(trials, len(trials)):
            if until.passed:
                break
            _run(home, job, functools.partial(prepare, value), f"{job.name}, {value} {name}", outcome)
        yield outcome


def _run(home: Path, job: Job, prepare: Callable[[], None], case: str, outcome: Outcome) -> None:
    job.reset(home)
    for folder in (home, home / "runs", home / "runs" / "segmentation", *(home / name for name in ("data", "few"))):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
    outcome.tried += 1
    ended = Child(job.enter(home), home / "logs" / "limits.txt", prepare).wait()
    if ended.fault:
        outcome.faults.append(f"{case}: {ended.fault}")
    elif ended.status and (word := next((word for word in _BLAMED if word in ended.output), None)):
        outcome.faults.append(f"{case}: a sound file is said to be {word!r}: {ended.last_line}")
    elif ended.status:
        outcome.note(f"{case}: refused")
    if ended.status:
        again = Child(job.enter(home), home / "logs" / "limits.txt").wait()
        if again.fault or again.status:
            outcome.faults.append(f"{case}, then without: {again.fault or again.last_line}")


def torture_together(home: Path, jobs: Sequence[Job], deadline: Deadline) -> Iterator[Outcome]:
    """Run two and three processes on one output at once."""
    for job in jobs:
        outcome, until = Outcome("together", job.name), deadline.share(len(jobs))
        job.reset(home)
        Child(job.enter(home), home / "logs" / "alone.txt").wait()
        expected = digest_folder(home / job.output)
        for count in (2, 3):
            if until.passed:
                break
            job.reset(home)
            outcome.tried += 1
            children = [Child(job.enter(home), home / "logs" / f"together{number}.txt") for number in range(count)]
            ends = [child.wait() for child in children]
            for ended in ends:
                if ended.fault:
                    outcome.faults.append(f"{count} processes: {ended.fault}")
                elif ended.status:
                    outcome.note(f"refused beside another: {ended.last_line}")
            if all(ended.status for ended in ends):
                outcome.faults.append(f"{count} processes: none completed the work")
            elif difference := compare(expected, digest_folder(home / job.output)):
                outcome.faults.append(f"{count} processes: {difference}")
        yield outcome
