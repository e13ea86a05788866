"""The page of a sweep: every job with what was varied and what came of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from panda.files import write_whole
from panda.report.charts import GREY, PALETTE, Bar, Line, bar_chart, line_chart
from panda.report.folder import link, mapping, natural, number, read_json, read_text
from panda.report.page import need_folder, write_page
from panda.report.run_page import threshold_line
from panda.report.table import Cell, Head, Table, cell, figure_kind, figure_name, show
from panda.report.words import headline_keys, interval, interval_text

_JOB_FILES = ("overrides.txt", "summary.json", "config.yaml", "error.txt")
_MOST_VALUES = 12
_MOST_ERROR = 240


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        name: Of its folder.
        choices: What was overridden, value by key.
        summary: What it left; empty where it failed.
        error: Text of its error; empty where it ended well.
        report: Address of its own page, empty where it has none.
    """

    name: str
    choices: dict[str, str]
    summary: dict[str, Any]
    error: str
    report: str

    @property
    def task(self) -> str:
        """The task, as the summary says."""
        return str(self.summary.get("task") or "segmentation")

    @property
    def key(self) -> str:
        """The figure that its task is judged by."""
        splits = [mapping(self.summary.get(split)) for split in ("val", "test")]
        keys = headline_keys(self.summary)
        return next((k for scores in splits for k in keys if number(scores.get(k)) is not None), keys[0])

    def score(self, split: str) -> float | None:
        """Its figure on ``val`` or ``test``."""
        return number(mapping(self.summary.get(split)).get(self.key))


def _choices(text: str) -> dict[str, str]:
    """Read overrides, one a line, ``key=value`` (with ``+``, ``++`` or ``~`` before the key as Hydra has it)."""
    choices = {}
    for line in text.splitlines():
        key, _, value = line.strip().removeprefix("- ").partition("=")
        if key:
            choices[key.lstrip("+")] = value.strip("'\"")
    return choices


def _job(folder: Path) -> Job:
    summary, fault = read_json(folder / "summary.json")
    error = ""
    if fault:
        error = read_text(folder / "error.txt").strip() or fault
    report = link(folder.name, "report.html") if (folder / "report.html").is_file() else ""
    return Job(folder.name, _choices(read_text(folder / "overrides.txt")), summary, error, report)


def read_jobs(sweep_dir: Path) -> list[Job]:
    """Read the jobs of a sweep: every sub-folder that bears the marks of one, in natural order of their names."""
    folders = [f for f in sweep_dir.iterdir() if f.is_dir() and any((f / name).is_file() for name in _JOB_FILES)]
    return [_job(folder) for folder in sorted(folders, key=lambda f: natural(f.name))]


def _varied(jobs: Sequence[Job]) -> tuple[list[str], list[tuple[str, str]]]:
    """Part the overridden keys into those that differ between jobs and those that are the same in all."""
    keys = list(dict.fromkeys(k for job in jobs for k in job.choices))
    varied = [k for k in keys if len({job.choices.get(k) for job in jobs}) > 1]
    return varied, [(k, jobs[0].choices[k]) for k in keys if k not in varied]


def _label(job: Job, varied: Sequence[str]) -> str:
    """Name a job by its varied choices: a word stands for itself, a number or flag needs its key."""
    parts = []
    for key in varied:
        value = job.choices.get(key, "")
        bare = number(value) is None and value.lower() not in {"true", "false", "null"}
        parts.append(value if bare else f"{key.rsplit('.', 1)[-1]} {value}")
    return " · ".join(part for part in parts if part) or job.name


def _ranked(jobs: Sequence[Job]) -> list[Job]:
    """Order by the validation figure, the best first, those without one last: never by test."""
    return sorted(jobs, key=lambda job: -score if (score := job.score("val")) is not None else float("inf"))


def _table(jobs: Sequence[Job], varied: Sequence[str]) -> Table:
    figures = list(dict.fromkeys(job.key for job in jobs if job.summary))
    failed = any(job.error for job in jobs)
    rows = []
    for job in _ranked(jobs):
        state = Cell("failed", style="bad") if job.error else Cell("done")
        row = [Cell(job.name, href=job.report), state]
        row += [Cell(job.choices.get(k, ""), why="left as it is by default") for k in varied]
        why = "the job failed" if job.error else "this split was not scored"
        for key in figures:
            scores = [mapping(job.summary.get(split)) for split in ("val", "test")]
            ends = interval(scores[1], key)
            row += [cell(s.get(key), figure_kind(key), why) for s in scores]
            row.append(Cell(interval_text(ends), sort=ends[0] if ends else None, why=why, style="num"))
        row.append(
            cell(job.summary.get("threshold"), "score", "the job failed" if job.error else "not a threshold task")
        )
        seconds = job.summary.get("seconds")
        row.append(cell(seconds, "seconds", "the job failed" if job.error else "was not recorded"))
        if failed:
            row.append(Cell(_short(job.error), style="pre") if job.error else Cell(" "))
        rows.append(row)
    heads = [Head("Job"), Head("State"), *(Head(k) for k in varied)]
    for key in figures:
        name = figure_name(key)
        heads += [Head(name, "validation", True), Head(name, "test", True), Head("95 % interval", "test", True)]
    heads += [Head("Threshold", figures=True), Head("Took", figures=True)]
    return Table([*heads, Head("Error")] if failed else heads, rows)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_ERROR else f"{text[: _MOST_ERROR - 1]}…"


def _bars(jobs: Sequence[Job], varied: Sequence[str]) -> list[Markup]:
    """Draw one chart a figure: the test figure where there is one, else that of validation."""
    charts = []
    for key in dict.fromkeys(job.key for job in jobs if job.summary):
        same = [job for job in _ranked(jobs) if job.summary and job.key == key]
        tested = any(job.score("test") is not None for job in same)
        bars = []
        for job in same:
            value = job.score("test" if tested else "val")
            if value is None:
                continue
            low, high = interval(mapping(job.summary.get("test")), key) or (None, None)
            bars.append(Bar(_label(job, varied), value, low, high, job.score("val") if tested else None, job.report))
        names = ("test, with its 95 % interval", "validation") if tested else ("validation", "")
        charts.append(bar_chart(figure_name(key), bars, names))
    return [chart for chart in charts if chart]


def _effects(jobs: Sequence[Job], varied: Sequence[str]) -> list[tuple[str, Table]]:
    """For each varied choice with repeated values: how the jobs of each value did on validation."""
    effects = []
    done = [job for job in jobs if job.score("val") is not None]
    for choice in varied:
        values: dict[str, list[Job]] = {}
        for job in done:
            values.setdefault(job.choices.get(choice, "default"), []).append(job)
        same_figure = len({job.key for job in done}) == 1
        if not same_figure or not 1 < len(values) <= _MOST_VALUES or len(values) == len(done):
            continue
        rows = []
        for value, group in sorted(values.items(), key=lambda item: natural(item[0])):
            scores = [s for job in group if (s := job.score("val")) is not None]
            figures = [median(scores), min(scores), max(scores)]
            rows.append([Cell(value), cell(len(scores), "count"), *(cell(f, "score") for f in figures)])
        heads = [Head("Value"), *(Head(name, figures=True) for name in ("Jobs", "Median", "Lowest", "Highest"))]
        effects.append((choice, Table(heads, rows)))
    return effects


def _curves(sweep_dir: Path, jobs: Sequence[Job], varied: Sequence[str]) -> Markup:
    """Lay the threshold curves over each other, the best by validation in colour and the rest in grey."""
    ranked = [job for job in _ranked(jobs) if job.summary]
    lines: list[Line] = []
    for job in ranked:
        rank = len(lines)
        first = rank < len(PALETTE)
        name, colour = (_label(job, varied), PALETTE[rank]) if first else ("the others", GREY)
        line = threshold_line(sweep_dir / job.name / "threshold_curve.csv", name, colour)
        if line.xs:
            lines.append(line)
    return line_chart("Pooled Dice on validation", lines, "threshold", y_range=(0.0, 1.0), size=(1100, 400))


def _csv(jobs: Sequence[Job], varied: Sequence[str]) -> str:
    """Write every figure of every job as a table."""
    figures: dict[str, None] = {}
    for job in jobs:
        for split in ("val", "test"):
            scores = mapping(job.summary.get(split))
            figures.update(dict.fromkeys(f"{split}_{k}" for k, v in scores.items() if number(v) is not None))
    columns = ["job", "state", *varied, "task", "seed", "threshold", *figures, "test_interval_of"]
    columns += ["test_low", "test_high", "seconds", "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for job in jobs:
        row: dict[str, Any] = {"job": job.name, "state": "failed" if job.error else "done", "error": job.error}
        row |= {k: job.choices.get(k, "") for k in varied}
        row |= {k: job.summary.get(k) for k in ("task", "seed", "threshold", "seconds")}
        for split in ("val", "test"):
            row |= {f"{split}_{k}": v for k, v in mapping(job.summary.get(split)).items() if f"{split}_{k}" in figures}
        ends = interval(mapping(job.summary.get("test")), job.key) if job.summary else None
        if ends:
            row |= {"test_interval_of": job.key, "test_low": ends[0], "test_high": ends[1]}
        writer.writerow(row)
    return text.getvalue()


def write_sweep(sweep_dir: Path) -> Path:
    """Make the table and the page of a sweep from its folder.

    Args:
        sweep_dir: Folder with one sub-folder a job, each with ``overrides.txt`` and either ``summary.json`` or, where
            the job failed, ``error.txt``.

    Returns:
        ``sweep.html`` in that folder, beside ``sweep.csv``.

    Raises:
        PandaError: There is no such folder.
    """
    sweep_dir = Path(sweep_dir).absolute()
    need_folder(sweep_dir)
    jobs = read_jobs(sweep_dir)
    varied, constant = _varied(jobs)
    write_whole(sweep_dir / "sweep.csv", _csv(jobs, varied))
    failed = [job for job in jobs if job.error]
    best = next((job for job in _ranked(jobs) if job.score("val") is not None), None)
    return write_page(
        sweep_dir / "sweep.html",
        "sweep.html",
        name=sweep_dir.name,
        jobs=len(jobs),
        failed=len(failed),
        errors=[(job.name, _label(job, varied), job.error) for job in failed if len(job.error) > _MOST_ERROR],
        constant=constant,
        best=None if best is None else (_label(best, varied), best.report, figure_name(best.key), *_both(best)),
        table=_table(jobs, varied),
        bars=_bars(jobs, varied),
        effects=_effects(jobs, varied),
        curves=_curves(sweep_dir, jobs, varied),
    )


def _both(job: Job) -> tuple[str, str]:
    return show(job.score("val"), "headline"), show(job.score("test"), "headline")
