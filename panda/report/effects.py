"""What each choice of a sweep did: jobs that differ in nothing else, set beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from panda.report.run_folder import natural, number

MOST_VALUES = 12
"""Values of a choice beyond which no picture of it is drawn."""


@dataclass(frozen=True)
class Scored:
    """A job as far as its choices are judged: what was chosen, what came of it, and how it is called."""

    choices: Mapping[str, str]
    score: float
    label: str


@dataclass(frozen=True)
class Effect:
    """What one choice did.

    Attributes:
        choice: The key.
        values: That it took, in order.
        threads: Jobs that differ in this choice alone, each as (index of its value, job), by value.
        gains: For each value how far the jobs of its threads lie above the mean of their thread, on average.
        wins: In how many threads the value with the highest gain is the best.
        compared: In how many threads it occurs beside another value.
    """

    choice: str
    values: list[str]
    threads: list[list[tuple[int, Scored]]]
    gains: list[float]
    wins: int
    compared: int

    @property
    def best(self) -> int:
        """Index of the value with the highest gain."""
        return max(range(len(self.gains)), key=lambda k: self.gains[k])

    @property
    def span(self) -> float:
        """From the lowest gain to the highest: how much the choice mattered."""
        return max(self.gains) - min(self.gains)

    def medians(self) -> list[float]:
        """The median score of each value's jobs."""
        return [
            median(job.score for thread in self.threads for k, job in thread if k == v) for v in range(len(self.values))
        ]


def effects(jobs: Sequence[Scored], varied: Sequence[str]) -> list[Effect]:
    """Part the influence of each choice from that of the others.

    Args:
        jobs: Of one task, scored by one figure.
        varied: Keys that differ between jobs.

    Returns:
        One a choice of 2 to 12 values that some jobs differ in alone; the one that mattered most comes first.
    """
    found = [effect for choice in varied if (effect := _effect(jobs, choice, varied)) is not None]
    return sorted(found, key=lambda effect: -effect.span)


def _effect(jobs: Sequence[Scored], choice: str, varied: Sequence[str]) -> Effect | None:
    values = sorted({job.choices.get(choice, "default") for job in jobs}, key=_order)
    if not 1 < len(values) <= MOST_VALUES:
        return None
    threads: dict[tuple[str | None, ...], list[tuple[int, Scored]]] = {}
    for job in jobs:
        rest = tuple(job.choices.get(key) for key in varied if key != choice)
        threads.setdefault(rest, []).append((values.index(job.choices.get(choice, "default")), job))
    gains: list[list[float]] = [[] for _ in values]
    several = [thread for thread in threads.values() if len({k for k, _ in thread}) > 1]
    for thread in several:
        middle = mean(job.score for _, job in thread)
        for k, job in thread:
            gains[k].append(job.score - middle)
    if not all(gains):
        return None  # a value stands alone: what else differs there would be laid to it
    means = [mean(gain) for gain in gains]
    best = max(range(len(means)), key=lambda k: means[k])
    beside = [thread for thread in several if any(k == best for k, _ in thread)]
    wins = sum(max(thread, key=lambda entry: entry[1].score)[0] == best for thread in beside)
    ordered = [sorted(thread, key=lambda entry: entry[0]) for thread in threads.values()]
    return Effect(choice, values, ordered, means, wins, len(beside))


def _order(value: str) -> tuple[bool, float, list[tuple[int, int, str]]]:
    """Numbers by size, before words."""
    figure = number(value)
    return figure is None, figure or 0.0, natural(value)
