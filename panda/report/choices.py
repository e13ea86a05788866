"""Rank the choices of a sweep: jobs that differ only in seed or fold are one choice, measured over all its slides.

Such jobs are never ranked against each other, because a fold is easy or hard by its slides, and a seed is luck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from panda.errors import ManifestError
from panda.report.folds import compute_figure
from panda.report.paired import Difference, Row, choose_groups, compute_difference, pair_rows, read_slide_rows
from panda.report.sweep_jobs import REPEATS, Job, label_job, rank_figure, rank_jobs
from panda.report.table import Cell, Head, Table, find_format, format_value, name_figure

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Choice:
    """Jobs that differ only in seed and fold.

    Attributes:
        values: The varied choices that they share.
        jobs: The jobs, those without figures included.
        rows: Validation slides of each job, by seed, fold and number; read if there are several jobs with tables.
        score: Figure of `key` on validation over the slides of all jobs, or else the mean of the jobs; None without.
        interval: Its bootstrap 95 % interval over groups.
        is_mean: Whether `score` is the mean of several jobs.
        missing: Number of seeds and folds that another choice has and this one lacks.
    """

    values: Mapping[str, str]
    jobs: Sequence[Job]
    rows: Mapping[tuple[str, ...], Sequence[Row]] = field(default_factory=dict)
    score: float | None = None
    interval: tuple[float, float] | None = None
    is_mean: bool = False
    missing: int = 0

    @property
    def first(self) -> Job:
        """The job by whose most important figure the choice is judged."""
        return rank_jobs(self.jobs)[0]

    @property
    def key(self) -> str:
        """The key of that figure."""
        return self.first.key

    @property
    def done(self) -> list[Job]:
        """The jobs with figures."""
        return [job for job in self.jobs if job.summary]

    @property
    def name(self) -> str:
        """The name of its only job, or the choices in words."""
        return self.jobs[0].name if len(self.jobs) == 1 else self.label(tuple(self.values))

    def label(self, varied: Sequence[str]) -> str:
        """Name the choice by its varied choices."""
        shared = [key for key in varied if key not in REPEATS]
        text = label_job(self.jobs[0], shared if len(self.jobs) > 1 else varied)
        return "all jobs" if len(self.jobs) > 1 and not shared else text

    def list_figures(self, split: str, key: str) -> list[float]:
        """Return a figure of each job that has it."""
        return [figure for job in self.jobs if (figure := job.find_figure(split, key)) is not None]

    def average(self, split: str, key: str) -> float | None:
        """Return the mean of a figure over the jobs that have it."""
        return fmean(values) if (values := self.list_figures(split, key)) else None

    def take_mean(self) -> Choice:
        """Return the choice with the mean of its jobs as its score; it has no interval."""
        return replace(self, score=self.average("val", self.key), interval=None, is_mean=len(self.done) > 1)


def find_choices(sweep_dir: Path, jobs: Sequence[Job], varied: Sequence[str]) -> list[Choice]:
    """Group jobs that differ only in seed and fold, and rank the groups by validation; those without a figure last.

    A choice that lacks a seed or fold of another one comes after those that have all, because its figure is of fewer or
    other slides.
    """
    shared = [key for key in varied if key not in REPEATS]
    groups: dict[tuple[str, ...], dict[str, list[Job]]] = {}
    for job in sorted(jobs, key=lambda job: job.summary is None):  # what a job without figures learns is not known
        same = groups.setdefault(tuple(job.choices.get(key, "") for key in shared), {})
        subject = job.subject if job.summary or not same else next(iter(same))
        same.setdefault(subject, []).append(job)
    found = [
        _measure(sweep_dir, dict(zip(shared, values, strict=True)), same)
        for values, by_subject in groups.items()
        for same in by_subject.values()
    ]
    repeats: dict[str, set[tuple[str, ...]]] = {}
    for choice in found:
        repeats.setdefault(choice.first.subject, set()).update(map(name_repeat, choice.done))
    ranked = [
        replace(one, missing=len(repeats[one.first.subject].difference(map(name_repeat, one.done))))
        for one in _measure_alike(found)
    ]
    return sorted(ranked, key=rank_choice)


def _measure_alike(found: Sequence[Choice]) -> list[Choice]:
    """Take the mean of the jobs for each choice if it is the score of one that it is compared with."""
    means = {(choice.first.subject, choice.key) for choice in found if choice.is_mean}
    return [
        choice.take_mean() if len(choice.jobs) > 1 and (choice.first.subject, choice.key) in means else choice
        for choice in found
    ]


def group_comparable(found: Sequence[Choice]) -> list[list[Choice]]:
    """Group the choices with a figure on validation whose figures can be compared, the best first."""
    groups: dict[tuple[str, str], list[Choice]] = {}
    for choice in found:
        if choice.score is not None:
            groups.setdefault((choice.first.subject, choice.key), []).append(choice)
    return list(groups.values())


def rank_choice(choice: Choice) -> tuple[bool, int, tuple[float, str, float]]:
    """Return the rank of a choice by validation; the lowest is best, and choices without a figure come last."""
    return choice.score is None, choice.missing, rank_figure(choice.first, choice.key, choice.score)


def _measure(sweep_dir: Path, values: Mapping[str, str], jobs: Sequence[Job]) -> Choice:
    """Compute the figure of a choice over the slides of all its jobs."""
    choice = Choice(values, jobs)
    key, first = choice.key, choice.first
    if len(jobs) == 1:
        return Choice(values, jobs, {}, first.find_score("val"), first.find_interval("val"))
    rows = _read_all_rows(sweep_dir, choice)
    is_whole = all(rows.values())
    found = compute_figure([row for part in rows.values() for row in part], first.scoring, key) if is_whole else None
    if found is None:
        return replace(choice, rows=rows if is_whole else {}).take_mean()
    return Choice(values, jobs, rows, found.value, found.interval)


def name_repeat(job: Job) -> tuple[str, ...]:
    """Return seed and fold of a job."""
    return tuple(job.choices.get(key, "") for key in REPEATS)


def _read_rows(sweep_dir: Path, job: Job) -> list[dict[str, str]]:
    """Read the validation slides of a job; none if the table is missing or faulty."""
    try:
        return read_slide_rows(sweep_dir / job.name / "val_slides.csv", job.scoring)
    except ManifestError:
        return []


def pair_with_best(sweep_dir: Path, found: Sequence[Choice], most: int) -> dict[str, Difference]:
    """Compare each of the first choices with the best one, slide by slide, by the name of the choice.

    They are compared on the seeds and folds that both have. A choice that was scored on other slides or other pixels is
    left out.
    """
    gaps = {}
    for same in group_comparable(found):
        best = _collect_rows(sweep_dir, same[0])
        for choice in same[1:most]:
            gap = _pair(same[0], best, choice, _collect_rows(sweep_dir, choice))
            if gap is not None:
                gaps[choice.name] = gap
    return gaps


def _collect_rows(sweep_dir: Path, choice: Choice) -> Mapping[tuple[str, ...], Sequence[Row]]:
    """Return the validation slides of each job of a choice, as they are known or from their files."""
    return choice.rows or _read_all_rows(sweep_dir, choice)


def _read_all_rows(sweep_dir: Path, choice: Choice) -> dict[tuple[str, ...], Sequence[Row]]:
    """Read the validation slides of each job of a choice, by seed, fold, and the number of the job among the same."""
    same = Counter[tuple[str, ...]]()
    rows: dict[tuple[str, ...], Sequence[Row]] = {}
    for job in choice.done:
        repeat = name_repeat(job)
        rows[(*repeat, str(same[repeat]))] = _read_rows(sweep_dir, job)
        same[repeat] += 1
    return rows


def _pair(
    best: Choice,
    best_rows: Mapping[tuple[str, ...], Sequence[Row]],
    other: Choice,
    other_rows: Mapping[tuple[str, ...], Sequence[Row]],
) -> Difference | None:
    common = [repeat for repeat in best_rows if repeat in other_rows]
    # The same slide under two seeds has two rows, which belong to one group.
    tables = [
        [
            {**row, "slide_id": " ".join((*repeat, row["slide_id"])), "group": row.get("group") or row["slide_id"]}
            for repeat in common
            for row in rows[repeat]
        ]
        for rows in (best_rows, other_rows)
    ]
    scoring = best.first.scoring
    try:
        pairs = pair_rows((best.name, other.name), (tables[0], tables[1]), scoring)
        return compute_difference(pairs, choose_groups(pairs)[0], scoring, best.key) if pairs else None
    except ManifestError:
        return None


def list_repeat_rows(found: Sequence[Choice], gaps: Mapping[str, Difference]) -> list[dict[str, Any]]:
    """Return the rows of `repeats.csv`: mean, standard deviation, minimum and maximum of each figure of a choice."""
    rows = []
    for choice in found:
        row: dict[str, Any] = {**choice.values, "jobs": len(choice.done), "failed": len(choice.jobs) - len(choice.done)}
        row["val_all_slides"] = None if choice.is_mean else choice.score
        row |= list_gap(gaps.get(choice.name))
        for split, key in _list_keys([choice]):
            values = choice.list_figures(split, key)
            mean, sd = fmean(values) if values else None, stdev(values) if len(values) > 1 else None
            ends = {"min": min(values, default=None), "max": max(values, default=None)}
            figures = {"jobs": len(values), "mean": mean, "sd": sd} | ends
            row |= {f"{split}_{key}_{name}": figure for name, figure in figures.items()}
        rows.append(row)
    return rows


def list_gap(gap: Difference | None) -> dict[str, Any]:
    """Return the columns of the difference to the best choice; none without one."""
    if gap is None:
        return {}
    low, high = gap.interval or ("", "")
    return {"val_less_best": gap.difference, "val_less_best_low": low, "val_less_best_high": high}


def _list_keys(found: Sequence[Choice]) -> list[tuple[str, str]]:
    """Return split and key of every figure that a job is judged by, the most important first."""
    jobs = rank_jobs([job for choice in found for job in choice.done])
    return [(split, key) for key in dict.fromkeys(job.key for job in jobs) for split in SPLITS]


def make_choices_table(found: Sequence[Choice], gaps: Mapping[str, Difference], more: Sequence[str]) -> Table:
    """Lay out the choices in their order: figure over all slides, difference to the best, mean and range of the jobs.

    `more` are keys of further figures, of which the mean over the jobs is given.
    """
    keys, rows = _list_keys(found), []
    best = [same[0] for same in group_comparable(found)]
    for choice in found:
        cells = [Cell(text, why="the default") for text in choice.values.values()]
        count, lacking = len(choice.done), len(choice.jobs) - len(choice.done)
        cells.append(Cell(f"{count}" + f", {lacking} without" * bool(lacking), style="num"))
        whole = find_format(choice.key)
        ends = "mean of the jobs" * choice.is_mean
        ends = ends if choice.interval is None else " to ".join(format_value(end, whole) for end in choice.interval)
        cells.append(Cell(format_value(choice.score, whole), choice.score, "no job has it", style="num", under=ends))
        cells.append(make_gap_cell(gaps.get(choice.name), choice in best, "not scored on the same slides as the best"))
        cells += [make_spread_cell(choice, *key) for key in keys]
        cells += [
            Cell(format_value(mean, find_format(key)), mean, "no job has it", style="num")
            for key in more
            for mean in (choice.average("val", key),)
        ]
        rows.append(cells)
    words = {"val": "validation, mean of jobs", "test": "test, mean of jobs"}
    heads = [Head(key) for key in (found[0].values if found else ())]
    heads += [Head("Jobs", figures=True), Head("All slides", "validation", True)]
    heads += [Head("Less the best", "paired, validation", True)]
    heads += [Head(name_figure(key), words[split], True) for split, key in keys]
    heads += [Head(name_figure(key), words["val"], True) for key in more]
    return Table(heads, rows)


def make_spread_cell(choice: Choice, split: str, key: str) -> Cell:
    """Make the cell of mean, standard deviation and range of a figure over the jobs of a choice."""
    values, kind = choice.list_figures(split, key), find_format(key)
    if not values:
        return Cell(why="no job has it", style="num")
    spread = f" ± {format_value(stdev(values), kind)}" if len(values) > 1 else ""
    ends = f"{format_value(min(values), kind)} to {format_value(max(values), kind)}"
    ends += f", of {len(values)}" * (len(values) < len(choice.done))
    return Cell(format_value(fmean(values), kind) + spread, sort=fmean(values), style="num", under=ends)


def make_gap_cell(gap: Difference | None, best: bool, why: str) -> Cell:
    """Make the cell of the difference to the best choice."""
    if best:
        return Cell("the best", sort=0.0, style="num")
    if gap is None or gap.difference is None:
        return Cell(why=why, style="num")
    under = "" if gap.interval is None else f"{gap.interval[0]:+.3f} to {gap.interval[1]:+.3f}"
    return Cell(f"{gap.difference:+.3f}", sort=gap.difference, style="num", under=under)
