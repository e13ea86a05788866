"""Write the page of a sweep: every job with its varied choices and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from panda.files import hold_lock, remove_leftovers
from panda.report.axes import GREY, PALETTE
from panda.report.charts import Line, draw_lines
from panda.report.choices import (
    Choice,
    find_choices,
    group_comparable,
    list_repeat_rows,
    make_choices_table,
    make_gap_cell,
    pair_with_best,
)
from panda.report.effects import ScoredJob, draw_effect, find_effects
from panda.report.interpretation import format_interval
from panda.report.job_rows import (
    MORE,
    MOST_BARS,
    Gaps,
    draw_choices,
    find_alarms,
    list_more,
    shorten_error,
    warn_of_best,
    write_jobs,
)
from panda.report.page import require_folder, write_page
from panda.report.run_facts import describe_sweep
from panda.report.run_page import read_threshold_line
from panda.report.sweep_jobs import REPEATS, Job, label_job, read_jobs, split_choices
from panda.report.table import Cell, Head, Table, find_format, format_value, make_cell, name_figure
from panda.tables import write_table

_UNPAIRED = f"not scored on the same pixels of the same slides as the best, or not among the first {MOST_BARS}"


def _make_table(jobs: Sequence[Job], varied: Sequence[str], found: Sequence[Choice], gaps: Gaps | None) -> Table:
    """Lay out the jobs in the order of their choices; `gaps` is None if a choice has several jobs."""
    judged = list(dict.fromkeys(job.key for job in jobs if job.summary))
    figures = [*judged, *list_more(jobs)]
    failed, taken = any(job.error for job in jobs), any(job.summary and job.summary.trained_by for job in jobs)
    alarmed = any(find_alarms(job) for job in jobs)
    best = {same[0].name for same in group_comparable(found)}
    rows = []
    for job in jobs:
        state = Cell(job.state, style="bad" if job.error else "")
        row = [Cell(job.name, href=job.report), state]
        if alarmed:
            alarms = find_alarms(job)
            text = ", ".join(dict.fromkeys(alarm.kind for alarm in alarms))
            row.append(Cell(text or " ", style="bad", why=" ".join(alarm.text for alarm in alarms)))
        row += [Cell(job.choices.get(k, ""), why="the default") for k in varied]
        unscored = "the job failed" if job.state == "failed" else f"the job is {job.state}"
        why = unscored if job.error else "this split was not scored"
        for key in figures:
            for split in ("val", "test"):
                scores = job.find_scores(split)
                lacking = f"the job has no {name_figure(key)}" if scores and key in MORE else why
                figure = make_cell(job.find_figure(split, key), find_format(key), lacking)
                row.append(replace(figure, under=format_interval(scores.find_interval(key) if scores else None)))
                if split == "val" and gaps and key in judged:
                    gap = gaps.get(job.name) if key == job.key else None
                    row.append(make_gap_cell(gap, key == job.key and job.name in best, why if job.error else _UNPAIRED))
        threshold = job.summary.threshold if job.summary else None
        row.append(make_cell(threshold, "score", unscored if job.error else "the task has no threshold"))
        row.append(make_cell(job.summary.seconds if job.summary else None, "seconds", unscored))
        if taken:
            by = job.summary.trained_by if job.summary else None
            row.append(Cell(f"job {by}" if by else " "))
        if failed:
            row.append(Cell(shorten_error(job.error), style="pre") if job.error else Cell(" "))
        rows.append(row)
    heads = [Head("Job"), Head("State"), *[Head("Beware")] * alarmed, *(Head(k) for k in varied)]
    for key in figures:
        name = name_figure(key)
        for split in ("validation", "test"):
            heads += [Head(name, split, True)]
            if split == "validation" and gaps and key in judged:
                heads += [Head("Less the best", "paired, validation", True)]
    heads += [Head("Threshold", figures=True), Head("Took", figures=True)]
    heads += [Head("Trained by")] * taken + [Head("Error")] * failed
    return Table(heads, rows)


def _list_errors(jobs: Sequence[Job], varied: Sequence[str]) -> list[tuple[str, str]]:
    """Return the errors that the table cuts short, each once, with the jobs that it ended."""
    ended: dict[str, list[str]] = {}
    for job in jobs:
        if shorten_error(job.error).endswith("…"):
            ended.setdefault(job.error, []).append(f"{job.name} ({label_job(job, varied)})")
    return [(", ".join(names), error) for error, names in ended.items()]


def _draw_effects(jobs: Sequence[Job], varied: Sequence[str]) -> tuple[list[Markup], str]:
    """Draw the effect of each choice, the most important first, and write the uncertainty of a single job."""
    done = [job for job in jobs if job.find_score("val") is not None]
    if len({(job.subject, job.key) for job in done}) != 1:
        return [], ""
    scored = [
        ScoredJob(job.choices, job.find_score("val") or 0.0, f"job {job.name}, {label_job(job, varied)}")
        for job in done
    ]
    found = find_effects(scored, varied)
    ends = (min(job.score for job in scored), max(job.score for job in scored))
    intervals = [pair for job in done if (pair := job.find_interval("val"))]
    unsure = ""
    if intervals:
        half = median((high - low) / 2 for low, high in intervals)
        unsure = f"For scale: the 95 % interval of a single job on these validation slides is about ± {half:.3f}."
    return [draw_effect(effect, ends, f"{name_figure(done[0].key)}, validation") for effect in found], unsure


def _draw_curves(sweep_dir: Path, jobs: Sequence[Job], varied: Sequence[str]) -> Markup:
    """Draw the threshold curves of the first jobs in one chart, the best by validation in colour, the rest in grey.

    Jobs of one training share a curve, on which their thresholds are marked.
    """
    curves: dict[tuple[Any, ...], tuple[Line, list[Job]]] = {}
    for job in jobs[:MOST_BARS]:
        line = read_threshold_line(sweep_dir / job.name / "threshold_curve.csv", "", GREY)
        if job.summary and line.xs:
            curves.setdefault((tuple(line.xs), tuple(line.ys)), (line, []))[1].append(job)
    lines = []
    for rank, (line, same) in enumerate(curves.values()):
        shared = [key for key in varied if len({job.choices.get(key) for job in same}) == 1]
        first = rank < len(PALETTE)
        name, colour = (label_job(same[0], shared), PALETTE[rank]) if first else ("the others", GREY)
        marks = []
        for job in same:
            at = job.summary.threshold if job.summary else None
            nearest = min(range(len(line.xs)), key=lambda k: abs(line.xs[k] - (at or 0.0)))
            if first and at is not None:
                text = f"job {job.name}, {label_job(job, varied)}: threshold {at:g}, pooled Dice {line.ys[nearest]:.3f}"
                marks.append((line.xs[nearest], line.ys[nearest], text))
        lines.append(Line(name, line.xs, line.ys, colour, marks))
    title = "Pooled Dice on validation; a ring is the threshold of a job"
    title += f"; the best {MOST_BARS} of {len(jobs)} jobs" if len(jobs) > MOST_BARS else ""
    return draw_lines(title, lines, "threshold", y_label="pooled Dice", y_range=(0.0, 1.0), size=(1100, 400))


def write_sweep(sweep_dir: Path, jobs: Sequence[Job] | None = None) -> Path:
    """Write `sweep.csv` and `sweep.html` from the folder of a sweep, or from its jobs if they were read already.

    Each job has a subfolder with `overrides.txt` and either `summary.json` or, if the job failed, `error.json`.
    """
    sweep_dir = Path(sweep_dir).absolute()
    require_folder(sweep_dir)
    with hold_lock(sweep_dir / "sweep.csv"):
        remove_leftovers(sweep_dir)
        return _write_sweep(sweep_dir, read_jobs(sweep_dir) if jobs is None else jobs)


def _write_sweep(sweep_dir: Path, jobs: Sequence[Job]) -> Path:
    varied, constant = split_choices(jobs)
    found = find_choices(sweep_dir, jobs, varied)
    gaps = pair_with_best(sweep_dir, found, MOST_BARS)
    repeated = bool(set(REPEATS) & set(varied))
    write_jobs(sweep_dir / "sweep.csv", jobs, varied, {} if repeated else gaps)
    if repeated:
        write_table(sweep_dir / "repeats.csv", list_repeat_rows(found, gaps))
    groups = group_comparable(found)
    best = groups[0][0] if len({same[0].first.subject for same in groups}) == 1 else None
    ordered = [job for choice in found for job in choice.jobs]
    charts, unsure = _draw_effects(jobs, varied)
    return write_page(
        sweep_dir / "sweep.html",
        "sweep.html",
        head=describe_sweep(sweep_dir, jobs, varied, constant, best.done if best else ()),
        jobs=len(jobs),
        errors=_list_errors(jobs, varied),
        alarms=warn_of_best(best, jobs, varied),
        best=best and _lay_out_best(best, varied),
        table=_make_table(ordered, varied, found, None if repeated else gaps),
        gaps=len(gaps),
        undecided=sum(gap.interval is None or gap.interval[0] <= 0 <= gap.interval[1] for gap in gaps.values()),
        bars=draw_choices(found, varied),
        effects=charts,
        repeats=make_choices_table(found, gaps, list_more(jobs)) if repeated else None,
        unsure=unsure,
        curves=_draw_curves(sweep_dir, ordered, varied),
    )


def _lay_out_best(best: Choice, varied: Sequence[str]) -> tuple[str, str, str, str, str, int, bool]:
    """Return name, address, figure, its values on validation and test, and the number of jobs of the best choice.

    The last value is whether that on validation is the mean of the jobs.
    """
    values = (best.score, best.average("test", best.key))
    val, test = (format_value(value, "headline") for value in values)
    report = best.jobs[0].report if len(best.jobs) == 1 else ""
    return best.label(varied), report, name_figure(best.key), val, test, len(best.done), best.is_mean
