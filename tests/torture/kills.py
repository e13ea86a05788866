"""SIGKILL at random moments, then the same work again: the result must be that of an undisturbed run, to the bit."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.torture.digests import compare, digest_folder
from tests.torture.jobs import Job
from tests.torture.outcome import Deadline, Outcome
from tests.torture.processes import Child, Ended, find_held_locks

PART = "kills"
_MOST_IN_A_ROW = 5
"""Kills of one output before it is completed and compared."""


def torture(home: Path, jobs: Sequence[Job], rng: random.Random, deadline: Deadline, kills: int) -> Iterator[Outcome]:
    """Kill the jobs, each for the same time, until there were enough kills or the time is over.

    Args:
        home: Folder of the inputs.
        jobs: The jobs.
        rng: Chooses the moments.
        deadline: The time.
        kills: How many kills are wanted over all jobs.
    """
    trials = [_Trial(home, job, rng) for job in jobs]
    while not deadline.passed and sum(trial.outcome.tried for trial in trials) < kills:
        usable = [trial for trial in trials if not trial.broken]
        if not usable:
            break
        trial = min(usable, key=lambda trial: trial.spent)
        started = time.monotonic()
        trial.run_once()
        trial.spent += time.monotonic() - started
    yield from (trial.outcome for trial in trials)


class _Trial:
    """A job that is killed again and again."""

    def __init__(self, home: Path, job: Job, rng: random.Random) -> None:
        self.home, self.job, self.rng = home, job, rng
        self.outcome = Outcome(PART, job.name, "kills")
        self.expected: dict[str, str] = {}
        self.seconds = 0.0
        self.spent = 0.0
        self.broken = False

    def _start(self) -> Child:
        log = self.home / "logs" / f"{self.job.name.replace(' ', '_').replace(',', '')}.txt"
        return Child(self.job.enter(self.home), log)

    def _finish(self) -> Ended:
        """Let the job run to its end."""
        ended = self._start().wait()
        self.seconds = max(ended.seconds, 0.05)
        return ended

    def _measure(self) -> bool:
        """Run undisturbed twice: files that differ then cannot be compared, and are named."""
        found = []
        for _ in range(2):
            self.job.reset(self.home)
            ended = self._finish()
            if ended.fault or ended.status:
                self.outcome.faults.append(f"undisturbed: {ended.fault or ended.last_line}")
                self.broken = True
                return False
            found.append(digest_folder(self.home / self.job.output))
        self.expected = {name: digest for name, digest in found[0].items() if found[1].get(name) == digest}
        if unstable := sorted(set(found[0]) - set(self.expected)):
            self.outcome.note(f"differ between two undisturbed runs, not compared: {', '.join(unstable)}")
        return True

    def run_once(self) -> None:
        """Kill the job some times, complete it, and compare."""
        if not self.expected and not self._measure():
            return
        self.job.reset(self.home)
        moments: list[float] = []
        for _ in range(self.rng.randint(1, _MOST_IN_A_ROW)):
            moment = self.rng.uniform(0.0, self.seconds)
            child = self._start()
            ended = child.kill_after(moment)
            if not ended.killed:
                self._check_end(ended, moments)
                break
            moments.append(moment)
            self.outcome.tried += 1
            if orphans := child.find_orphans():
                self.outcome.faults.append(f"killed after {moment:.2f} s: {len(orphans)} processes live on")
                child.end_session()
            if held := find_held_locks(self.home):
                self.outcome.faults.append(f"killed after {moment:.2f} s: {held[0].name} is still locked")
        ended = self._finish()
        self._check_end(ended, moments)
        if ended.status:
            return
        found = digest_folder(self.home / self.job.output)
        difference = compare(self.expected, {name: found[name] for name in found if name in self.expected})
        if difference:
            self.outcome.faults.append(f"killed after {_format(moments)}: {difference}")
        if left := [path.name for path in (self.home / self.job.output).rglob(".*.partial*")]:
            self.outcome.faults.append(f"killed after {_format(moments)}: {left[0]} is left")

    def _check_end(self, ended: Ended, moments: Sequence[float]) -> None:
        if ended.fault or ended.status:
            what = ended.fault or f"refused: {ended.last_line}"
            self.outcome.faults.append(f"killed after {_format(moments)}, then {what}")


def _format(moments: Sequence[float]) -> str:
    return " and ".join(f"{moment:.2f}" for moment in moments) + " s"
