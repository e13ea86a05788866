"""Find the effect of each choice of a sweep from jobs that differ in nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from markupsafe import Markup

from panda.report.axes import VALIDATION, Axis, draw, pick_ticks
from panda.report.run_folder import make_natural_key, parse_number
from panda.report.sweep_jobs import REPEATS

MOST_VALUES = 12
"""A choice with more values has no chart."""


@dataclass(frozen=True)
class ScoredJob:
    """A job with its choices, its score and its label."""

    choices: Mapping[str, str]
    score: float
    label: str


@dataclass(frozen=True)
class Effect:
    """The effect of one choice.

    Attributes:
        choice: The key.
        values: Its values, in order.
        threads: Groups of jobs that differ only in this choice, each as (index of its value, job), by value.
        gains: For each value how much its jobs exceed the mean of their thread, on average.
        wins: Number of threads in which the value with the highest gain is the best.
        comparisons: Number of threads in which it occurs together with another value.
    """

    choice: str
    values: list[str]
    threads: list[list[tuple[int, ScoredJob]]]
    gains: list[float]
    wins: int
    comparisons: int

    @property
    def best(self) -> int:
        """Return the index of the value with the highest gain."""
        return self.gains.index(max(self.gains))

    @property
    def span(self) -> float:
        """Return the highest less the lowest gain: how much the choice mattered."""
        return max(self.gains) - min(self.gains)

    def compute_medians(self) -> list[float]:
        """Return the median score of each value's jobs."""
        return [
            median(job.score for thread in self.threads for k, job in thread if k == v) for v in range(len(self.values))
        ]

    def explain(self) -> str:
        """Say which value is best, and how much the values differ."""
        if self.span == 0:
            return "no difference"
        best = f"{self.values[self.best]} is best in {self.wins} of {self.comparisons}"
        return f"{best}; values differ by {self.span:.3f} on average"


def find_effects(jobs: Sequence[ScoredJob], varied: Sequence[str]) -> list[Effect]:
    """Separate the influence of each choice from that of the others. Seeds and folds are no choices.

    A choice has an effect if it has 2 to 12 values and is the only difference between some jobs. The jobs are of one
    task, scored by one figure. The effect that mattered most comes first.
    """
    measured = (_measure_effect(jobs, choice, varied) for choice in varied if choice not in REPEATS)
    found = [effect for effect in measured if effect is not None]
    return sorted(found, key=lambda effect: -effect.span)


def _measure_effect(jobs: Sequence[ScoredJob], choice: str, varied: Sequence[str]) -> Effect | None:
    values = sorted({job.choices.get(choice, "default") for job in jobs}, key=_order)
    if not 1 < len(values) <= MOST_VALUES:
        return None
    threads: dict[tuple[str | None, ...], list[tuple[int, ScoredJob]]] = {}
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
        return None  # a value never compared alone would get the credit of other choices
    means = [mean(gain) for gain in gains]
    best = means.index(max(means))
    together = [thread for thread in several if any(k == best for k, _ in thread)]
    wins = sum(max(thread, key=lambda entry: entry[1].score)[0] == best for thread in together)
    ordered = [sorted(thread, key=lambda entry: entry[0]) for thread in threads.values()]
    return Effect(choice, values, ordered, means, wins, len(together))


def _order(value: str) -> tuple[bool, float, list[tuple[int, int, str]]]:
    """Sort numbers by size, before words."""
    figure = parse_number(value)
    return figure is None, figure or 0.0, make_natural_key(value)


def draw_effect(effect: Effect, y_range: tuple[float, float], figure: str) -> Markup:
    """Draw the jobs of each value of a choice, with a line through those that differ in it alone.

    `y_range` is the least range of the y axis. It is the same for all choices of a sweep, so that they can be compared.
    `figure` is the label of the axis.
    """
    width, height = max(370, 58 + 62 * len(effect.values)), 270
    frame = (64, 10, width - 10, height - 44)
    levels = pick_ticks(*y_range)
    up, room = Axis.fit(levels, frame[3], frame[1]), (frame[2] - frame[0]) / len(effect.values)
    middles = [round(frame[0] + (k + 0.5) * room, 1) for k in range(len(effect.values))]
    return draw(
        "effect_chart.html",
        effect.choice,
        (width, height),
        frame,
        reading=effect.explain(),
        most=max(6, int(room / 7)),
        y_ticks=up.mark(levels),
        y_label=figure,
        threads=[" ".join(f"{middles[k]},{up.place(job.score)}" for k, job in thread) for thread in effect.threads],
        values=[
            (x, up.place(middle), value, f"{middle:.3f}")
            for x, value, middle in zip(middles, effect.values, effect.compute_medians(), strict=True)
        ],
        dots=[
            (middles[k], up.place(job.score), VALIDATION, f"{job.label}: {job.score:.3f}")
            for thread in effect.threads
            for k, job in thread
        ],
    )
