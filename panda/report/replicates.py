"""Jobs of a sweep that repeat each other: how much a figure varies from seed to seed, or from fold to fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from panda.report.sweep_jobs import Job, place, ranked
from panda.report.table import Cell, Head, Table, figure_kind, figure_name, show

REPEATS = ("seed", "data.fold")
"""Choices of which one asks how much they matter, and not which is the best."""
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Repeat:
    """Jobs alike in all but seed and fold.

    Attributes:
        choices: What they share of what was varied.
        jobs: How many of them have figures.
        failed: How many have none.
        values: Figure of each job that has it, by split and key: all that one of the jobs is judged by, the most
            important first.
    """

    choices: Mapping[str, str]
    jobs: int
    failed: int
    values: Mapping[tuple[str, str], Sequence[float]]

    def row(self) -> dict[str, Any]:
        """Give each figure's mean, standard deviation, least and greatest; None where too few of the jobs have it."""
        row: dict[str, Any] = {**self.choices, "jobs": self.jobs, "failed": self.failed}
        for (split, key), values in self.values.items():
            name = f"{split}_{key}"
            row |= {f"{name}_jobs": len(values)}
            row |= {f"{name}_mean": fmean(values) if values else None}
            row |= {f"{name}_sd": stdev(values) if len(values) > 1 else None}
            row |= {f"{name}_min": min(values, default=None), f"{name}_max": max(values, default=None)}
        return row


def repeats(jobs: Sequence[Job], varied: Sequence[str]) -> list[Repeat]:
    """Put the jobs together that differ in seed and fold alone.

    Args:
        jobs: Of a sweep.
        varied: Keys that differ between them.

    Returns:
        The best on validation first; empty where neither seed nor fold was varied.
    """
    if not set(REPEATS) & set(varied):
        return []
    shared = [key for key in varied if key not in REPEATS]
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.choices.get(key, "") for key in shared), []).append(job)
    found = []
    for choices, same in groups.items():
        keys = dict.fromkeys(job.key for job in ranked(same) if job.summary)
        values = {
            (split, key): [figure for job in same if (figure := job.figure(split, key)) is not None]
            for key in keys
            for split in SPLITS
        }
        done = sum(bool(job.summary) for job in same)
        repeat = Repeat(dict(zip(shared, choices, strict=True)), done, len(same) - done, values)
        means = ((key, fmean(v)) for (split, key), v in values.items() if split == "val" and v)
        key, mean = next(means, ("", None))
        found.append((place(ranked(same)[0], key, mean), repeat))
    return [repeat for _, repeat in sorted(found, key=lambda pair: pair[0])]


def repeats_table(found: Sequence[Repeat]) -> Table:
    """Lay the repeats out: mean and standard deviation, and from where to where."""
    figures = list(dict.fromkeys(of for repeat in found for of in repeat.values))
    rows = []
    for repeat in found:
        cells = [Cell(text, why="left as it is by default") for text in repeat.choices.values()]
        cells.append(Cell(f"{repeat.jobs}" + f", {repeat.failed} without" * bool(repeat.failed), style="num"))
        for of in figures:
            values = repeat.values.get(of, [])
            kind = figure_kind(of[1])
            if not values:
                cells.append(Cell(why="no job has it", style="num"))
                continue
            spread = f" ± {show(stdev(values), kind)}" if len(values) > 1 else ""
            ends = f"{show(min(values), kind)} to {show(max(values), kind)}"
            ends += f", of {len(values)}" * (len(values) < repeat.jobs)
            cells.append(Cell(show(fmean(values), kind) + spread, sort=fmean(values), style="num", under=ends))
        rows.append(cells)
    words = {"val": "validation", "test": "test"}
    heads = [Head(key) for key in (found[0].choices if found else ())]
    heads += [Head("Jobs", figures=True), *(Head(figure_name(key), words[split], True) for split, key in figures)]
    return Table(heads, rows)
