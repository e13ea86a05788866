"""Read the jobs of a sweep from their folders.

The record of a job that ended well is its `summary.json`, the only file that is opened then.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panda.files import is_locked
from panda.report.interpretation import list_headlines
from panda.report.job_end import END_FILE, JobEnd
from panda.report.run_folder import make_link, make_natural_key, parse_number, read_text
from panda.report.run_summary import GradingSummary, RunSummary, read_summary
from panda.report.trivial_answers import LESS_IS_BETTER
from panda.tables import read_output_table
from panda.tasks.figures import Figures

JOB_FILES = frozenset({"overrides.txt", "summary.json", "config.yaml", END_FILE})
STATES = {
    "done": "",
    "failed": "",
    "interrupted": "",
    "pruned": "",
    "running": "The job is running.",
    "waiting": "The job waits for another one, which trains for both and then evaluates it.",
    "lost": "The job was killed: the command of the sweep with its name continues it.",
}
"""State of a job, and its error if no file has one."""
REPEATS = ("seed", "data.seed", "data.fold", "tiles.seed")
"""Choices whose variation matters, not their best value."""
WAITING = ".training-*.waiting"
"""Folders of a sweep with an empty file for each job that another job is to evaluate."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        name: Name of its folder.
        choices: Overridden keys and their values.
        state: One of `STATES`.
        summary: None if it failed or is unfinished.
        error: Text of its error, or why it has no figures; empty if it ended well.
        report: Address of its own page, empty if it has none.
        lost_slides: Number of slides that it skipped.
    """

    name: str
    choices: dict[str, str]
    state: str
    summary: RunSummary | None
    error: str
    report: str
    lost_slides: int = 0

    @property
    def scoring(self) -> str:
        """Return which figures the job has; those of segmentation if there is no summary."""
        return self.summary.scoring if self.summary else "segmentation"

    @property
    def subject(self) -> str:
        """Return what the job learns. Figures of two subjects are not compared."""
        if isinstance(self.summary, GradingSummary):
            return self.summary.target.describe_source()
        return "segmentation"

    @property
    def key(self) -> str:
        """Return the key of the figure that its task is judged by."""
        keys = list_headlines(self.summary)
        return next((k for split in ("val", "test") for k in keys if self.find_figure(split, k) is not None), keys[0])

    def find_score(self, split: str) -> float | None:
        """Return the figure of `key` on `val` or `test`."""
        return self.find_figure(split, self.key)

    def find_figure(self, split: str, key: str) -> float | None:
        """Return any figure on `val` or `test`."""
        scores = self.find_scores(split)
        return None if scores is None else scores.numbers.get(key)

    def find_scores(self, split: str) -> Figures | None:
        """Return the figures of `val` or `test`."""
        if self.summary is None:
            return None
        return self.summary.test if split == "test" else self.summary.val

    def find_interval(self, split: str) -> tuple[float, float] | None:
        """Return the 95 % interval of the figure of `key` on `val` or `test`."""
        scores = self.find_scores(split)
        return None if scores is None else scores.find_interval(self.key)


def list_waiting(sweep_dir: Path) -> Collection[str]:
    """Return the names of the jobs that another job is to evaluate."""
    return {path.name for folder in sweep_dir.glob(WAITING) for path in folder.iterdir()}


def parse_overrides(text: str) -> dict[str, str]:
    """Read overrides, one on each line: `key=value`, with `+`, `++` or `~` before the key as in Hydra."""
    choices = {}
    for line in text.splitlines():
        key, _, value = line.strip().removeprefix("- ").partition("=")
        if key:
            choices[key.lstrip("+")] = value.strip("'\"")
    return choices


def read_job(folder: Path, waits: bool) -> Job | None:
    """Read a job from its folder; None if the folder has none of its files. `waits`: another job is to evaluate it."""
    names = {entry.name for entry in os.scandir(folder)}
    if not names & JOB_FILES:
        return None
    summary, fault = read_summary(folder) if "summary.json" in names else (None, "")
    state, error = "done", ""
    if summary is None:
        if end := JobEnd.read(folder) if END_FILE in names else None:
            state, error = end.state, end.message
        elif fault:
            state, error = "failed", fault
        else:
            state = "running" if is_locked(folder / "run") else "waiting" if waits else "lost"
            error = STATES[state]
    overrides = summary.overrides if summary else None
    if overrides is None:
        overrides = read_text(folder / "overrides.txt").splitlines()
    lost = summary.lost_slides if summary else None
    if lost is None:
        lost = len(read_output_table(folder / "failures.csv")) if "failures.csv" in names else 0
    report = make_link(folder.name, "report.html") if "report.html" in names else ""
    return Job(folder.name, parse_overrides("\n".join(overrides)), state, summary, error, report, lost)


def read_jobs(sweep_dir: Path) -> list[Job]:
    """Read the jobs of a sweep: every subfolder with a file of a job, in natural order of their names."""
    waiting = list_waiting(sweep_dir)
    folders = sorted((f for f in sweep_dir.iterdir() if f.is_dir()), key=lambda f: make_natural_key(f.name))
    return [job for folder in folders if (job := read_job(folder, folder.name in waiting)) is not None]


def is_successful(job: Job) -> bool:
    """Return whether a job is done and used all its slides, or was pruned."""
    return job.state in ("done", "pruned") and not job.lost_slides


def describe_states(jobs: Sequence[Job]) -> str:
    """Return how many jobs are in which state, as a sentence."""
    counts = Counter(job.state for job in jobs)
    return f"{len(jobs)} jobs: {', '.join(f'{count} {state}' for state, count in counts.items()) or 'none has begun'}"


def split_choices(jobs: Sequence[Job]) -> tuple[list[str], list[tuple[str, str]]]:
    """Split the overridden keys into those that differ between jobs and those that are the same in all."""
    keys = list(dict.fromkeys(k for job in jobs for k in job.choices))
    varied = [k for k in keys if len({job.choices.get(k) for job in jobs}) > 1]
    return varied, [(k, jobs[0].choices[k]) for k in keys if k not in varied]


def align_choices(
    typed: Sequence[Mapping[str, str]], configs: Sequence[Mapping[str, Any]], ignored: Collection[str] = ()
) -> list[dict[str, str]]:
    """Give a choice the same text in all runs whose configurations have the same value for it.

    What one run typed, another may have by default, by an experiment or in other words. The text is that of the first
    run that typed the key. A group, such as `model`, is compared without the keys in it that a run typed. A key that
    the configuration of a run lacks keeps its own text.

    Args:
        typed: Choices of each run.
        configs: Content of the `config.yaml` of each run; empty if it cannot be read.
        ignored: Keys that are left out of groups.
    """
    keys = dict.fromkeys(key for own in typed for key in own)
    aligned = [dict(own) for own in typed]
    for key in keys:
        values = [_find_value(config, key, {*keys, *ignored}) for config in configs]
        texts: dict[str, str] = {}
        for own, value in zip(typed, values, strict=True):
            if value and key in own:
                texts.setdefault(value, own[key])
        for choices, value in zip(aligned, values, strict=True):
            if value in texts:
                choices[key] = texts[value]
    return aligned


def _find_value(config: Mapping[str, Any], key: str, apart: Collection[str]) -> str:
    """Return the value of a key as text, a group without the keys in `apart`; empty if it is absent."""
    node: Any = config
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return ""
        node = node[name]
    return repr(_drop(node, key, apart))


def _drop(node: Any, key: str, apart: Collection[str]) -> Any:
    if not isinstance(node, Mapping):
        return node
    return {
        name: _drop(node[name], inner, apart)
        for name in sorted(node, key=str)
        if (inner := f"{key}.{name}") not in apart
    }


def label_job(job: Job, varied: Sequence[str]) -> str:
    """Name a job by its varied choices: a word alone, a number or flag with its key."""
    parts = []
    for key in varied:
        value = job.choices.get(key, "")
        bare = parse_number(value) is None and value.lower() not in {"true", "false", "null", "auto"}
        parts.append(value if bare else f"{key.rsplit('.', 1)[-1]} {value}")
    return " · ".join(part for part in parts if part) or job.name


def rank_figure(job: Job, key: str, figure: float | None) -> tuple[float, str, float]:
    """Return the rank of a job with a figure on validation; the lowest is best.

    Figures of two kinds or subjects are not compared: a job with the more important one always comes first.
    """
    if figure is None:
        return float("inf"), "", 0.0
    return list_headlines(job.summary).index(key), job.subject, figure if key in LESS_IS_BETTER else -figure


def rank_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Sort jobs by the validation figure, never by test: the best first, those without one last."""
    return sorted(jobs, key=lambda job: rank_figure(job, job.key, job.find_score("val")))
