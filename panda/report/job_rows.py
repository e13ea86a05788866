"""The figures of jobs, of a sweep or of several runs, for tables and charts: what is shown, and what is marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from panda.report.charts import Bar, draw_bars
from panda.report.choices import Choice, group_comparable, list_gap
from panda.report.paired import Difference
from panda.report.sweep_jobs import Job, label_job
from panda.report.table import name_figure
from panda.report.trivial_answers import Alarm, list_alarms
from panda.tables import write_table

MORE = ("slide_specificity", "fp_mm2_benign_slides", "rule_qwk", "ece", "aurc")
"""Figures of the table that judge no job, each if a job has it."""
MOST_BARS = 40
_MOST_ERROR = 110
_MOST_LINES = 4
Gaps = Mapping[str, Difference]


def list_more(jobs: Sequence[Job]) -> list[str]:
    """Return the figures of `MORE` that a job has and is not judged by."""
    judged, splits = {job.key for job in jobs}, ("val", "test")
    known = [key for key in MORE if any(job.find_figure(split, key) is not None for job in jobs for split in splits)]
    return [key for key in known if key not in judged]


def find_alarms(job: Job) -> list[Alarm]:
    """Return what must not be overlooked in the figures of a job on validation, and on test if it was scored."""
    return [alarm for split in ("val", "test") if (scores := job.find_scores(split)) for alarm in list_alarms(scores)]


def warn_of_best(best: Choice | None, jobs: Sequence[Job], varied: Sequence[str]) -> list[str]:
    """Say what must not be overlooked in the best choice, and how many other jobs the table marks."""
    if best is None:
        return []
    lines = []
    for job in best.done:
        which = "" if len(best.jobs) == 1 else f" (job {job.name}, {label_job(job, varied)})"
        for split, name in (("val", "validation"), ("test", "test")):
            if scores := job.find_scores(split):
                lines += [f"The best on validation{which}, on {name}: {alarm.text}" for alarm in list_alarms(scores)]
    lines[_MOST_LINES:] = [f"{len(lines) - _MOST_LINES} more of its figures are marked."] * (len(lines) > _MOST_LINES)
    marked = sum(bool(find_alarms(job)) for job in jobs)
    return [*lines, *([f"{marked} of {len(jobs)} jobs are marked in the table of all jobs."] if lines else [])]


def shorten_error(text: str) -> str:
    """Write the begin of an error on one line."""
    text = " ".join(text.split()).replace("1 fault in the configuration: - ", "")
    return text if len(text) <= _MOST_ERROR else f"{text[: _MOST_ERROR - 1]}…"


def draw_choices(found: Sequence[Choice], varied: Sequence[str]) -> list[Markup]:
    """Draw one chart for each figure: validation, which ranks a choice, with its interval; and test."""
    charts = []
    groups = group_comparable(found)
    subjects = {same[0].first.subject for same in groups}
    for same in groups:
        key, bars = same[0].key, []
        for choice in same[:MOST_BARS]:
            low, high = choice.interval or (None, None)
            report = choice.jobs[0].report if len(choice.jobs) == 1 else ""
            bars.append(Bar(choice.label(varied), choice.score or 0.0, low, high, choice.average("test", key), report))
        title = name_figure(key) + f", {same[0].first.subject}" * (len(subjects) > 1)
        title += f": the best {MOST_BARS} of {len(same)}" if len(same) > MOST_BARS else ""
        tested = any(bar.other is not None for bar in bars)
        unsure = any(bar.low is not None for bar in bars)
        name = "validation, with its 95 % interval" if unsure else "validation"
        charts.append(draw_bars(title, bars, (name, "test" if tested else "")))
    return [chart for chart in charts if chart]


def write_jobs(
    path: Path, jobs: Sequence[Job], varied: Sequence[str], gaps: Gaps, places: Mapping[str, Mapping[str, Any]] = {}
) -> None:
    """Write every figure of every job as a table, each with the ends of its interval if it has one.

    `places` are further columns of a job by its name, after its state.
    """
    columns_by_key = {"task": "task", "seed": "seed", "threshold": "threshold_used", "trained_by": "trained_by"}
    columns_by_key = {key: column for key, column in columns_by_key.items() if column not in varied}
    placed = dict.fromkeys(column for place in places.values() for column in place)
    columns = ["job", "state", *placed, *varied, *columns_by_key.values()]
    rows = []
    for job in jobs:
        row: dict[str, Any] = {"job": job.name, "state": job.state, **places.get(job.name, {})}
        row |= {k: job.choices.get(k, "") for k in varied}
        row |= {column: getattr(job.summary, key, None) for key, column in columns_by_key.items()}
        for split in ("val", "test"):
            if (scores := job.find_scores(split)) is None:
                continue
            for key, value in scores.numbers.items():
                if value is not None:
                    row[f"{split}_{key}"] = value
                    if ends := scores.find_interval(key):
                        row[f"{split}_{key}_low"], row[f"{split}_{key}_high"] = ends
        row["beware"] = ", ".join(dict.fromkeys(alarm.kind for alarm in find_alarms(job)))
        rows.append(
            row
            | list_gap(gaps.get(job.name))
            | {"seconds": getattr(job.summary, "seconds", None), "lost_slides": job.lost_slides, "error": job.error}
        )
    last = ["seconds", "lost_slides", "error"]
    columns += [key for key in dict.fromkeys(key for row in rows for key in row) if key not in {*columns, *last}]
    write_table(path, rows, [*columns, *last])
