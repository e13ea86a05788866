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
from panda.report.charts import GREY, PALETTE, Bar, Line, bar_chart, effect_chart, line_chart
from panda.report.effects import Effect, Scored, effects
from panda.report.folder import link, mapping, natural, number, read_csv, read_json, read_text
from panda.report.page import need_folder, write_page
from panda.report.run_page import threshold_line
from panda.report.table import Cell, Head, Table, cell, figure_kind, figure_name, show
from panda.report.words import headline_keys, interval, interval_text

_JOB_FILES = ("overrides.txt", "summary.json", "config.yaml", "error.txt")
_MOST_BARS = 40
_MOST_ERROR = 110


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        name: Of its folder.
        choices: What was overridden, value by key.
        summary: What it left; empty where it failed.
        error: Text of its error; empty where it ended well.
        report: Address of its own page, empty where it has none.
        lost: Slides that it passed over.
    """

    name: str
    choices: dict[str, str]
    summary: dict[str, Any]
    error: str
    report: str
    lost: int = 0

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


def read_choices(text: str) -> dict[str, str]:
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
    lost = len(read_csv(folder / "failures.csv"))
    return Job(folder.name, read_choices(read_text(folder / "overrides.txt")), summary, error, report, lost)


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
        bare = number(value) is None and value.lower() not in {"true", "false", "null", "auto"}
        parts.append(value if bare else f"{key.rsplit('.', 1)[-1]} {value}")
    return " · ".join(part for part in parts if part) or job.name


def _ranked(jobs: Sequence[Job]) -> list[Job]:
    """Order by the validation figure, the best first, those without one last: never by test."""
    return sorted(jobs, key=lambda job: -score if (score := job.score("val")) is not None else float("inf"))


def _table(jobs: Sequence[Job], varied: Sequence[str]) -> Table:
    figures = list(dict.fromkeys(job.key for job in jobs if job.summary))
    failed, taken = any(job.error for job in jobs), any(job.summary.get("trained_by") for job in jobs)
    rows = []
    for job in _ranked(jobs):
        state = Cell("failed", style="bad") if job.error else Cell("done")
        row = [Cell(job.name, href=job.report), state]
        row += [Cell(job.choices.get(k, ""), why="left as it is by default") for k in varied]
        why = "the job failed" if job.error else "this split was not scored"
        for key in figures:
            for split in ("val", "test"):
                scores = mapping(job.summary.get(split))
                ends = interval(scores, key)
                row.append(cell(scores.get(key), figure_kind(key), why))
                unsure = why if scores.get(key) is None else "needs two groups of slides"
                row.append(Cell(interval_text(ends), sort=ends[0] if ends else None, why=unsure, style="num"))
        row.append(
            cell(job.summary.get("threshold"), "score", "the job failed" if job.error else "not a threshold task")
        )
        seconds = job.summary.get("seconds")
        row.append(cell(seconds, "seconds", "the job failed" if job.error else "was not recorded"))
        if taken:
            by = job.summary.get("trained_by")
            row.append(Cell(f"job {by}" if by else " "))
        if failed:
            row.append(Cell(_short(job.error), style="pre") if job.error else Cell(" "))
        rows.append(row)
    heads = [Head("Job"), Head("State"), *(Head(k) for k in varied)]
    for key in figures:
        name = figure_name(key)
        for split in ("validation", "test"):
            heads += [Head(name, split, True), Head("95 % interval", split, True)]
    heads += [Head("Threshold", figures=True), Head("Took", figures=True)]
    heads += [Head("Trained by")] * taken + [Head("Error")] * failed
    return Table(heads, rows)


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("1 fault in the configuration: - ", "")
    return text if len(text) <= _MOST_ERROR else f"{text[: _MOST_ERROR - 1]}…"


def _errors(failed: Sequence[Job], varied: Sequence[str]) -> list[tuple[str, str]]:
    """The errors that the table cuts short, each once, below the jobs that it ended."""
    jobs: dict[str, list[str]] = {}
    for job in failed:
        if _short(job.error).endswith("…"):
            jobs.setdefault(job.error, []).append(f"{job.name} ({_label(job, varied)})")
    return [(", ".join(names), error) for error, names in jobs.items()]


def _bars(jobs: Sequence[Job], varied: Sequence[str]) -> list[Markup]:
    """Draw one chart a figure: validation, by which a job is chosen, with its interval, and the test beside it."""
    charts = []
    for key in dict.fromkeys(job.key for job in jobs if job.summary):
        same = [job for job in _ranked(jobs) if job.key == key and job.score("val") is not None]
        bars = []
        for job in same[:_MOST_BARS]:
            low, high = interval(mapping(job.summary.get("val")), key) or (None, None)
            bars.append(Bar(_label(job, varied), job.score("val") or 0.0, low, high, job.score("test"), job.report))
        title = figure_name(key) + (f": the best {_MOST_BARS} of {len(same)} jobs" if len(same) > _MOST_BARS else "")
        tested = any(bar.other is not None for bar in bars)
        unsure = any(bar.low is not None for bar in bars)
        name = "validation, with its 95 % interval" if unsure else "validation"
        charts.append(bar_chart(title, bars, (name, "test" if tested else "")))
    return [chart for chart in charts if chart]


def _effects(jobs: Sequence[Job], varied: Sequence[str]) -> tuple[list[Markup], str]:
    """Small multiples of the choices, the one that mattered most first, and how sure a single job is."""
    done = [job for job in jobs if job.score("val") is not None]
    if len({job.key for job in done}) != 1:
        return [], ""
    scored = [Scored(job.choices, job.score("val") or 0.0, f"job {job.name}, {_label(job, varied)}") for job in done]
    found = effects(scored, varied)
    ends = (min(job.score for job in scored), max(job.score for job in scored))
    intervals = [pair for job in done if (pair := interval(mapping(job.summary.get("val")), job.key))]
    unsure = ""
    if intervals:
        half = median((high - low) / 2 for low, high in intervals)
        unsure = f"For scale: the 95 % interval of a single job on these validation slides is about ± {half:.3f}."
    return [effect_chart(effect, _reading(effect), ends) for effect in found], unsure


def _reading(effect: Effect) -> str:
    if effect.span == 0:
        return "no difference"
    best = effect.values[effect.best]
    return f"{best} is best in {effect.wins} of {effect.compared}; values differ by {effect.span:.3f} on average"


def _curves(sweep_dir: Path, jobs: Sequence[Job], varied: Sequence[str]) -> Markup:
    """Lay the threshold curves over each other, the best by validation in colour and the rest in grey.

    Jobs of one training share a curve, on which their thresholds are marked.
    """
    curves: dict[tuple[Any, ...], tuple[Line, list[Job]]] = {}
    for job in _ranked(jobs):
        line = threshold_line(sweep_dir / job.name / "threshold_curve.csv", "", GREY)
        if job.summary and line.xs:
            curves.setdefault((tuple(line.xs), tuple(line.ys)), (line, []))[1].append(job)
    lines = []
    for rank, (line, same) in enumerate(curves.values()):
        shared = [key for key in varied if len({job.choices.get(key) for job in same}) == 1]
        first = rank < len(PALETTE)
        name, colour = (_label(same[0], shared), PALETTE[rank]) if first else ("the others", GREY)
        marks = []
        for job in same:
            at = number(job.summary.get("threshold"))
            nearest = min(range(len(line.xs)), key=lambda k: abs(line.xs[k] - (at or 0.0)))
            if first and at is not None:
                text = f"job {job.name}, {_label(job, varied)}: threshold {at:g}, pooled Dice {line.ys[nearest]:.3f}"
                marks.append((line.xs[nearest], line.ys[nearest], text))
        lines.append(Line(name, line.xs, line.ys, colour, marks))
    title = "Pooled Dice on validation; a ring is the threshold of a job"
    return line_chart(title, lines, "threshold", y_range=(0.0, 1.0), size=(1100, 400))


def _csv(jobs: Sequence[Job], varied: Sequence[str]) -> str:
    """Write every figure of every job as a table, each with the ends of its interval where it has one."""
    said = {"task": "task", "seed": "seed", "threshold": "threshold_used", "trained_by": "trained_by"}
    said = {key: column for key, column in said.items() if column not in varied}
    columns = ["job", "state", *varied, *said.values()]
    rows = []
    for job in jobs:
        row: dict[str, Any] = {"job": job.name, "state": "failed" if job.error else "done"}
        row |= {k: job.choices.get(k, "") for k in varied}
        row |= {column: job.summary.get(key) for key, column in said.items()}
        for split in ("val", "test"):
            scores = mapping(job.summary.get(split))
            for key, value in scores.items():
                if number(value) is not None:
                    row[f"{split}_{key}"] = value
                    if ends := interval(scores, key):
                        row[f"{split}_{key}_low"], row[f"{split}_{key}_high"] = ends
        rows.append(row | {"seconds": job.summary.get("seconds"), "lost_slides": job.lost, "error": job.error})
    last = ["seconds", "lost_slides", "error"]
    columns += [key for key in dict.fromkeys(key for row in rows for key in row) if key not in {*columns, *last}]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, *last], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_sweep_table(sweep_dir: Path) -> list[Job]:
    """Make the table of a sweep from its folder.

    Args:
        sweep_dir: Folder with one sub-folder a job, each with ``overrides.txt`` and either ``summary.json`` or, where
            the job failed, ``error.txt``.

    Returns:
        The jobs, as ``sweep.csv`` in that folder has them.

    Raises:
        PandaError: There is no such folder.
    """
    need_folder(sweep_dir)
    jobs = read_jobs(sweep_dir)
    write_whole(sweep_dir / "sweep.csv", _csv(jobs, _varied(jobs)[0]))
    return jobs


def write_sweep(sweep_dir: Path) -> Path:
    """Make the table and the page of a sweep from its folder.

    Args:
        sweep_dir: As for `write_sweep_table`.

    Returns:
        ``sweep.html`` in that folder, beside ``sweep.csv``.

    Raises:
        PandaError: There is no such folder.
    """
    sweep_dir = Path(sweep_dir).absolute()
    jobs = write_sweep_table(sweep_dir)
    varied, constant = _varied(jobs)
    failed = [job for job in jobs if job.error]
    best = next((job for job in _ranked(jobs) if job.score("val") is not None), None)
    charts, unsure = _effects(jobs, varied)
    return write_page(
        sweep_dir / "sweep.html",
        "sweep.html",
        name=sweep_dir.name,
        jobs=len(jobs),
        failed=len(failed),
        trainings=sum(bool(job.summary) and not job.summary.get("trained_by") for job in jobs),
        errors=_errors(failed, varied),
        constant=constant,
        best=None if best is None else (_label(best, varied), best.report, figure_name(best.key), *_both(best)),
        table=_table(jobs, varied),
        bars=_bars(jobs, varied),
        effects=charts,
        unsure=unsure,
        curves=_curves(sweep_dir, jobs, varied),
    )


def _both(job: Job) -> tuple[str, str]:
    return show(job.score("val"), "headline"), show(job.score("test"), "headline")
