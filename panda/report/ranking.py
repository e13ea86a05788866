"""Rank the choices of a sweep in a few lines, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from panda.report.choices import SPLITS, Choice, find_choices
from panda.report.sweep_jobs import Job, split_choices
from panda.report.table import format_value, name_figure
from panda.report.trivial_answers import list_alarms

MOST = 10
"""Number of choices that are listed."""
_MEAN = " on average over the jobs"


def describe_ranking(sweep_dir: Path, jobs: Sequence[Job]) -> list[str]:
    """Return a line for each of the best choices on validation; none if no job has a figure there."""
    varied = split_choices(jobs)[0]
    found = [choice for choice in find_choices(sweep_dir, jobs, varied) if choice.score is not None]
    lines = [f"{place}. {_describe(choice, varied)}" for place, choice in enumerate(found[:MOST], 1)]
    return [*lines, *[f"and {len(found) - MOST} more"] * (len(found) > MOST)]


def _describe(choice: Choice, varied: Sequence[str]) -> str:
    figures = [f"validation {format_value(choice.score, 'headline')}" + _MEAN * choice.is_mean]
    if (tested := choice.average("test", choice.key)) is not None:
        figures.append(f"test {format_value(tested, 'headline')}" + _MEAN * (len(choice.done) > 1))
    scores = [scores for job in choice.done for split in SPLITS if (scores := job.find_scores(split))]
    alarms = list(dict.fromkeys(alarm.kind for own in scores for alarm in list_alarms(own)))
    jobs = f"job{'s' * (len(choice.done) > 1)} {', '.join(job.name for job in choice.done)}"
    lacking = [f"{choice.missing} seeds or folds are missing"] * bool(choice.missing)
    notes = "; ".join([name_figure(choice.key), jobs, *lacking, *alarms])
    return f"{choice.label(varied)}: {', '.join(figures)} ({notes})"
