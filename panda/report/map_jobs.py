"""Read the jobs of a multirun of `infer.py` from their folders: what each found on every slide."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from panda.errors import PandaError
from panda.report.inference_summary import INFERENCE_FILE, InferenceSummary
from panda.report.job_end import END_FILE, JobEnd
from panda.report.run_folder import make_link, make_natural_key, parse_number
from panda.report.run_summary import EvaluationSummary, read_json_summary
from panda.report.sweep_jobs import Job
from panda.tables import OutputTable

SLIDE_COLUMNS = ("tumor_percent_of_tissue", "tumor_mm2", "num_regions", "isup_predicted", "rule_isup", "dice")
"""Figures of a slide that are compared between jobs."""
_UNFINISHED = "Slides without a result yet"
"""Begins the note of `panda.app.slide_tables` on such slides."""
Row = Mapping[str, float]


@dataclass(frozen=True)
class MapJob:
    """A job of a multirun of `infer.py`.

    Attributes:
        job: Its name, choices and state. It has no summary of a training.
        slides: Figures of `SLIDE_COLUMNS` of each slide by its name, those that it has.
        evaluation: Figures of the slides with labels; None without any.
    """

    job: Job
    slides: Mapping[str, Row]
    evaluation: EvaluationSummary | None

    def list_values(self, key: str) -> list[float]:
        """Return a figure of each slide that has it."""
        return [row[key] for row in self.slides.values() if key in row]

    def find_quartiles(self, key: str) -> tuple[float, float, float] | None:
        """Return lower quartile, median and upper quartile of a figure over the slides; None if no slide has it."""
        values = self.list_values(key)
        if len(values) < 2:
            return (values[0], values[0], values[0]) if values else None
        low, _, high = quantiles(values, method="inclusive")
        return low, median(values), high


def read_map_jobs(output: Path) -> list[MapJob]:
    """Read the jobs of a multirun of `infer.py` in natural order of their names; none in another folder."""
    names = sorted((entry.name for entry in os.scandir(output) if entry.is_dir()), key=make_natural_key)
    homes = [output / name for name in names if not name.startswith(".")]
    if not any((home / INFERENCE_FILE).is_file() for home in homes):
        return []
    return [_read_job(home) for home in homes if (home / INFERENCE_FILE).is_file() or (home / END_FILE).is_file()]


def _read_job(home: Path) -> MapJob:
    choices, error, state = dict(_parse_name(home.name)), "", "done"
    try:
        summary: InferenceSummary | None = InferenceSummary.read(home)
    except FileNotFoundError:
        summary, state, error = None, "lost", "The job has no results."
    except (OSError, PandaError) as fault:
        summary, state, error = None, "failed", str(fault)
    if summary:
        choices.setdefault("threshold", f"{summary.threshold:g}")
        if missing := next((note for note in summary.notes if note.startswith(_UNFINISHED)), ""):
            state, error = "lost", missing
    if end := JobEnd.read(home):
        state, error = end.state, end.message
    failed = {row.get("slide_id") for row in OutputTable(home / "failures.csv")}
    report = make_link(home.name, "report.html") if (home / "report.html").is_file() else ""
    found = read_json_summary(home)[0]
    return MapJob(
        Job(home.name, choices, state, None, error, report, len(failed)),
        {row["slide_id"]: _read_figures(row) for row in OutputTable(home / "quantification.csv") if "slide_id" in row},
        found if isinstance(found, EvaluationSummary) else None,
    )


def _parse_name(name: str) -> Iterator[tuple[str, str]]:
    """Yield key and value of the overrides that name the folder of a job."""
    for part in re.split(r",(?=[\w.+/@]+=)", name):
        key, equals, value = part.partition("=")
        if equals:
            yield key.lstrip("+"), value


def _read_figures(row: Mapping[str, str]) -> Row:
    values = ((key, parse_number(row.get(key))) for key in SLIDE_COLUMNS)
    return {key: value for key, value in values if value is not None}


def list_slides(jobs: Sequence[MapJob]) -> list[str]:
    """Return the slides of all jobs, those whose share of tumour differs most between the jobs first."""
    names = dict.fromkeys(name for job in jobs for name in job.slides)
    return sorted(names, key=lambda name: (-measure_spread(jobs, name), make_natural_key(name)))


def measure_spread(jobs: Sequence[MapJob], name: str, key: str = "tumor_percent_of_tissue") -> float:
    """Return the highest less the lowest value of a slide over the jobs; 0 with fewer than two."""
    values = [job.slides[name][key] for job in jobs if key in job.slides.get(name, {})]
    return max(values) - min(values) if values else 0.0
