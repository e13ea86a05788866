"""Two and three processes on one output: one does the work, the others wait or are refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.torture.digests import compare, digest_folder
from tests.torture.jobs import Job
from tests.torture.outcome import Deadline, Outcome
from tests.torture.processes import Child

PART = "together"


def torture(home: Path, jobs: Sequence[Job], deadline: Deadline) -> Iterator[Outcome]:
    """Run two and three processes on one output at once, jobs that train or map first."""
    for job in sorted(jobs, key=lambda job: job.kind not in ("train", "infer")):
        if deadline.passed:
            break
        outcome = Outcome(PART, job.name)
        job.reset(home)
        Child(job.enter(home), home / "logs" / "alone.txt").wait()
        expected = digest_folder(home / job.output)
        for count in (2, 3):
            _run(home, job, count, expected, outcome)
        yield outcome


def _run(home: Path, job: Job, count: int, expected: dict[str, str], outcome: Outcome) -> None:
    job.reset(home)
    outcome.tried += 1
    children = [Child(job.enter(home), home / "logs" / f"together{number}.txt") for number in range(count)]
    ends = [child.wait() for child in children]
    refused = [ended for ended in ends if ended.status and not ended.fault]
    outcome.faults += [f"{count} processes: {ended.fault}" for ended in ends if ended.fault]
    outcome.faults += [
        f"{count} processes: a refusal does not name {job.output.name}: {ended.last_line}"
        for ended in refused
        if job.output.name not in ended.output
    ]
    outcome.note(f"{count} processes: {count - len(refused)} completed the work, {len(refused)} were refused")
    if all(ended.status for ended in ends):
        outcome.faults.append(f"{count} processes: none completed the work")
    elif difference := compare(expected, digest_folder(home / job.output)):
        outcome.faults.append(f"{count} processes: {difference}")
