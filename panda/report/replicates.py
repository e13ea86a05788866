"""Find the jobs of a sweep that differ only in seed or fold: how much their figures vary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from panda.report.sweep_jobs import Job, rank_figure, rank_jobs
from panda.report.table import Cell, Head, Table, find_format, format_value, name_figure

REPEATS = ("seed", "data.fold")
"""Choices whose variation matters, not their best value."""
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Repeat:
    """Jobs that differ only in seed and fold.

    Attributes:
        choices: The varied choices that they share.
        jobs: Number of jobs with figures.
        failed: Number of jobs without.
        values: Figures of the jobs by split and key, for every key that one of the jobs is judged by. The most
            important comes first.
    """

    choices: Mapping[str, str]
    jobs: int
    failed: int
    values: Mapping[tuple[str, str], Sequence[float]]

    def to_row(self) -> dict[str, Any]:
        """Return mean, standard deviation, minimum and maximum of each figure; None if too few jobs have it."""
        row: dict[str, Any] = {**self.choices, "jobs": self.jobs, "failed": self.failed}
        for (split, key), values in self.values.items():
            mean, sd = fmean(values) if values else None, stdev(values) if len(values) > 1 else None
            ends = {"min": min(values, default=None), "max": max(values, default=None)}
            found = {"jobs": len(values), "mean": mean, "sd": sd} | ends
            row |= {f"{split}_{key}_{name}": figure for name, figure in found.items()}
        return row


def find_repeats(jobs: Sequence[Job], varied: Sequence[str]) -> list[Repeat]:
    """Group the jobs that differ only in seed and fold, the best on validation first; none if neither was varied."""
    if not set(REPEATS) & set(varied):
        return []
    shared = [key for key in varied if key not in REPEATS]
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.choices.get(key, "") for key in shared), []).append(job)
    found = []
    for choices, same in groups.items():
        keys = dict.fromkeys(job.key for job in rank_jobs(same) if job.summary)
        values = {
            (split, key): [figure for job in same if (figure := job.find_figure(split, key)) is not None]
            for key in keys
            for split in SPLITS
        }
        done = sum(bool(job.summary) for job in same)
        repeat = Repeat(dict(zip(shared, choices, strict=True)), done, len(same) - done, values)
        means = ((key, fmean(v)) for (split, key), v in values.items() if split == "val" and v)
        key, mean = next(means, ("", None))
        found.append((rank_figure(rank_jobs(same)[0], key, mean), repeat))
    return [repeat for _, repeat in sorted(found, key=lambda pair: pair[0])]


def make_repeats_table(found: Sequence[Repeat]) -> Table:
    """Lay out the repeats: mean, standard deviation and range."""
    figures = list(dict.fromkeys(key for repeat in found for key in repeat.values))
    rows = []
    for repeat in found:
        cells = [Cell(text, why="the default") for text in repeat.choices.values()]
        cells.append(Cell(f"{repeat.jobs}" + f", {repeat.failed} without" * bool(repeat.failed), style="num"))
        for split, key in figures:
            values = repeat.values.get((split, key), [])
            kind = find_format(key)
            if not values:
                cells.append(Cell(why="no job has it", style="num"))
                continue
            spread = f" ± {format_value(stdev(values), kind)}" if len(values) > 1 else ""
            ends = f"{format_value(min(values), kind)} to {format_value(max(values), kind)}"
            ends += f", of {len(values)}" * (len(values) < repeat.jobs)
            cells.append(Cell(format_value(fmean(values), kind) + spread, sort=fmean(values), style="num", under=ends))
        rows.append(cells)
    words = {"val": "validation", "test": "test"}
    heads = [Head(key) for key in (found[0].choices if found else ())]
    heads += [Head("Jobs", figures=True), *(Head(name_figure(key), words[split], True) for split, key in figures)]
    return Table(heads, rows)
