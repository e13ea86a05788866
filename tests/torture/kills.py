"""SIGKILL at random moments, then the same work again: the result must be that of an undisturbed run, to the bit."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.torture.digests import compare, digest_folder
from tests.torture.jobs import Job
from tests.torture.outcome import Deadline, Outcome
from tests.torture.processes import GRACE_S, Child, Ended, list_held_locks, wait_for_none

PART = "kills"
_MOST_IN_A_ROW = 5
"""Kills of one output before it is completed and compared."""


SHARES = {
    "draw": (0.04, 25),
    "extract": (0.08, 75),
    "train": (0.42, 90),
    "threshold": (0.07, 20),
    "infer": (0.1, 25),
    "infer and grade": (0.1, 25),
    "audit": (0.05, 20),
    "sweep": (0.14, 25),
}
"""Kinds of jobs: share of the time, and the kills after which a kind leaves the rest of its time to the others."""
KILLS = sum(kills for _, kills in SHARES.values())


def torture(home: Path, jobs: Sequence[Job], rng: random.Random, deadline: Deadline, kills: int) -> Iterator[Outcome]:
    """Kill the jobs, each kind for its share of the time, until there were enough kills or the time is over.

    Args:
        home: Folder of the inputs.
        jobs: The jobs.
        rng: Chooses the moments.
        deadline: The time.
        kills: How many kills are wanted, if all kinds of `SHARES` are there.
    """
    kinds = [
        _Kind([_Trial(home, job, rng) for job in jobs if job.kind == kind], share, math.ceil(wanted * kills / KILLS))
        for kind, (share, wanted) in SHARES.items()
        if any(job.kind == kind for job in jobs)
    ]
    while not deadline.passed and (open_kinds := [kind for kind in kinds if kind.is_open]):
        min(open_kinds, key=lambda kind: kind.spent / kind.share).run_once()
    yield from (trial.outcome for kind in kinds for trial in kind.trials)


class _Kind:
    """The jobs of a kind, which share its time."""

    def __init__(self, trials: Sequence[_Trial], share: float, wanted: int) -> None:
        self.trials, self.share, self.wanted = trials, share, wanted

    @property
    def spent(self) -> float:
        return sum(trial.spent for trial in self.trials)

    @property
    def is_open(self) -> bool:
        """Whether more kills are wanted and possible."""
        few = sum(trial.outcome.tried for trial in self.trials) < self.wanted
        return few and not all(trial.broken for trial in self.trials)

    def run_once(self) -> None:
        """Run the job that has had the least time."""
        trial = min((trial for trial in self.trials if not trial.broken), key=lambda trial: trial.spent)
        started = time.monotonic()
        trial.run_once()
        trial.spent += time.monotonic() - started


class _Trial:
    """A job that is killed again and again."""

    def __init__(self, home: Path, job: Job, rng: random.Random) -> None:
        self.home, self.job, self.rng = home, job, rng
        self.outcome = Outcome(PART, job.name, "kills")
        self.expected: dict[str, str] = {}
        self.seconds = 0.0
        self.spent = 0.0
        self.broken = False
        self.slowest = 0.0

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
            self._check_rest(child, moment)
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

    def _check_rest(self, child: Child, moment: float) -> None:
        """Check that the killed process leaves no process and no lock; a slow machine ends them later, with a note."""
        orphans, seconds = wait_for_none(child.list_alive)
        if orphans:
            self.outcome.faults.append(f"killed after {moment:.2f} s: {len(orphans)} processes live on")
            child.end_session()
        held, more = wait_for_none(lambda: list_held_locks(self.home))
        if held:
            self.outcome.faults.append(f"killed after {moment:.2f} s: {held[0].name} is still locked")
        if (waited := seconds + more) > max(GRACE_S, self.slowest):
            self.outcome.note(f"killed after {moment:.2f} s: processes and locks were gone after {waited:.1f} s")
        self.slowest = max(self.slowest, waited)

    def _check_end(self, ended: Ended, moments: Sequence[float]) -> None:
        if ended.fault or ended.status:
            what = ended.fault or f"refused: {ended.last_line}"
            self.outcome.faults.append(f"killed after {_format(moments)}, then {what}")


def _format(moments: Sequence[float]) -> str:
    return " and ".join(f"{moment:.2f}" for moment in moments) + " s"
