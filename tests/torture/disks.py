"""A disk that is too small: one sentence, and the same command completes the work when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from panda.files import remove
from tests.torture.digests import compare, digest_folder
from tests.torture.jobs import Job
from tests.torture.outcome import Deadline, Outcome
from tests.torture.processes import Child

PART = "disk"
_ROOMY = "2g"


def _mount(path: Path, size: str, *, again: bool = False) -> str:
    """Mount a disk of a size, or resize it; return the reason if this is impossible."""
    command = ["mount", "-t", "tmpfs", "-o", f"{'remount,' if again else ''}size={size}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def _measure_kib(folder: Path) -> int:
    return sum(path.stat().st_blocks for path in folder.rglob("*") if path.is_file()) // 2


def torture(home: Path, jobs: Sequence[Job], deadline: Deadline, sizes: int) -> Iterator[Outcome]:
    """Run each job on disks from almost nothing to almost enough, then with room.

    Args:
        home: Folder of the inputs; each output becomes the root of a disk.
        jobs: The jobs.
        deadline: The time.
        sizes: How many sizes over all jobs.
    """
    each = -(-sizes // max(1, len(jobs)))
    for job in jobs:
        outcome, until = Outcome(PART, job.name, "sizes"), deadline.share(len(jobs))
        output = home / job.output
        job.reset(home)
        if (ended := Child(job.enter(home), home / "logs" / "disk.txt").wait()).status:
            outcome.faults.append(f"undisturbed: {ended.last_line}")
            yield outcome
            continue
        expected, needed = digest_folder(output), _measure_kib(output)
        for number in range(each):
            if until.passed:
                break
            job.reset(home)
            remove(output)
            output.mkdir(parents=True)
            size = f"{max(16, round(needed * (number + 0.5) / each))}k"
            if reason := _mount(output, size):
                outcome.note(f"no disk can be mounted here: {reason}")
                break
            try:
                _run(home, job, size, expected, outcome)
            finally:
                subprocess.run(["umount", "--lazy", str(output)], check=True)
        job.reset(home)
        yield outcome


def _run(home: Path, job: Job, size: str, expected: dict[str, str], outcome: Outcome) -> None:
    """Run a job on the small disk and, if it did not fit, again on a large one."""
    output = home / job.output
    outcome.tried += 1
    ended = Child(job.enter(home), home / "logs" / "disk.txt").wait()
    if ended.fault:
        outcome.faults.append(f"{size}: {ended.fault}")
    elif ended.status and not any(word in ended.output for word in ("No space left", "room", "disk")):
        outcome.faults.append(f"{size}: the message does not name the disk: {ended.last_line}")
    if reason := _mount(output, _ROOMY, again=True):
        outcome.note(f"the disk cannot be resized: {reason}")
        return
    ended = Child(job.enter(home), home / "logs" / "disk.txt").wait()
    if ended.fault or ended.status:
        outcome.faults.append(f"{size}, then with room: {ended.fault or ended.last_line}")
    elif difference := compare(expected, digest_folder(output)):
        outcome.faults.append(f"{size}, then with room: {difference}")
