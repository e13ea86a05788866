"""Find the training runs below a folder in any state, and those that were scored on the same slides."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from panda.data.summary import PatchDataSummary
from panda.errors import PandaError
from panda.files import fingerprint
from panda.report.choices import Choice, find_choices, name_repeat, rank_choice
from panda.report.paired import MUST_AGREE, read_truth
from panda.report.run_folder import make_link, make_natural_key, read_config
from panda.report.sweep_jobs import JOB_FILES, REPEATS, Job, align_choices, list_waiting, read_job, split_choices
from panda.report.tested_run import find_resolution

_OTHER_OUTPUTS = frozenset({"inference.json", "features.json", "audit.json", "store.json"})
"""A folder with one of these is an output of another command, and is not searched."""
_MOST_BYTES = 100_000_000
"""A larger table of slides is not read."""
_NO_CHOICES = (
    *("name", "run_dir", "resume", "debug", "allow_packages", "logger", "colour_map", "data.splits"),
    *("data.num_workers", "data.extract_workers", "data.store_root", "task.panels", "task.views", "task.views_every"),
)
"""Keys, or the begin of keys, without influence on figures."""
Slides = tuple[str, str]
"""Digests of the validation and the test slides of a run; that of test is empty if they were not scored."""


def find_runs(root: Path) -> list[Job]:
    """Read all runs below a folder, named by their path in it, in natural order.

    Folders in a run, hidden folders, symbolic links and outputs of other commands are passed over. A run that cannot be
    read has failed, with the reason.
    """
    waiting = cache(list_waiting)
    folders = sorted(_find_folders(root), key=lambda folder: make_natural_key(str(folder)))
    found = (_read_run(root, folder, folder.name in waiting(folder.parent)) for folder in folders)
    return [run for run in found if run is not None]


def _find_folders(root: Path) -> Iterator[Path]:
    for path, names, files in os.walk(root):
        folder = Path(path)
        is_run, is_other = not JOB_FILES.isdisjoint(files), not _OTHER_OUTPUTS.isdisjoint(files)
        if is_run and not is_other:
            yield folder
        if is_run or is_other:
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]


def _read_run(root: Path, folder: Path, waits: bool) -> Job | None:
    parts = folder.relative_to(root).parts
    name = "/".join(parts)
    try:
        if (job := read_job(folder, waits)) is None:
            return None
    except (OSError, PandaError) as error:
        return Job(name, {}, "failed", None, str(error), "")
    choices = {key: value for key, value in job.choices.items() if not _is_idle(key)}
    if job.summary:
        choices.setdefault("seed", str(job.summary.seed))
    if job.summary and isinstance(job.summary.data, PatchDataSummary):
        choices.setdefault("data.seed", str(job.summary.data.seed))
    return replace(job, name=name, choices=choices, report=make_link(*parts, "report.html") if job.report else "")


def _is_idle(key: str) -> bool:
    return any(key == idle or key.startswith(f"{idle}.") for idle in _NO_CHOICES)


@dataclass(frozen=True)
class RunGroup:
    """Choices that were scored on the same slides with the same labels, at the same resolution.

    Attributes:
        choices: The choices, the best on validation first. Runs of a choice differ only in seed and fold.
        varied: Keys in which the runs differ.
        constant: Keys and values that all runs share.
    """

    choices: Sequence[Choice]
    varied: Sequence[str]
    constant: Sequence[tuple[str, str]]

    @property
    def runs(self) -> list[Job]:
        """The runs of all choices, the best choice first."""
        return [run for choice in self.choices for run in choice.jobs]


def group_runs(root: Path, runs: Sequence[Job]) -> list[RunGroup]:
    """Group finished runs that can be compared; a group of several choices comes before a smaller one.

    What a run typed is the same choice if another has it by default, see `align_choices`.
    A run without a table of its validation slides is in no group. Choices with several folds or splits can be compared
    if the slides of each of them are the same.
    """
    kinds: dict[tuple[object, ...], dict[str, Slides]] = {}
    configs = [read_config(root / run.name / "config.yaml") for run in runs]
    aligned = align_choices([run.choices for run in runs], configs, _NO_CHOICES)
    named = {run.name: replace(run, choices=choices) for run, choices in zip(runs, aligned, strict=True)}
    for run in named.values():
        if run.summary and (val := digest_slides(root / run.name / "val_slides.csv", run.scoring)):
            kind = (run.scoring, run.subject, *find_resolution(root / run.name, run.summary).values())
            test = digest_slides(root / run.name / "test_slides.csv", run.scoring) if run.summary.test else ""
            shared = tuple(sorted((key, value) for key, value in run.choices.items() if key not in REPEATS))
            kinds.setdefault((kind, shared), {})[run.name] = (val, test)
    groups: dict[tuple[object, frozenset[Slides]], list[Job]] = {}
    for (scored, _), slides in kinds.items():
        for part in _split_by_data(slides, named):
            same = frozenset(slides[name] for name in part)
            groups.setdefault((scored, same), []).extend(named[name] for name in part)
    found = [_rank_group(root, own) for own in groups.values()]
    return sorted(found, key=lambda group: (-len(group.choices), -len(group.runs)))


def _split_by_data(slides: dict[str, Slides], named: dict[str, Job]) -> list[list[str]]:
    """Split runs of one choice if one seed and fold has different slides or labels: the data have changed."""
    by_repeat: dict[tuple[str, ...], set[Slides]] = {}
    for name, own in slides.items():
        by_repeat.setdefault(name_repeat(named[name]), set()).add(own)
    if all(len(own) == 1 for own in by_repeat.values()):
        return [list(slides)]
    return [[name for name in slides if slides[name] == own] for own in dict.fromkeys(slides.values())]


def _rank_group(root: Path, runs: Sequence[Job]) -> RunGroup:
    """Rank choices by validation alone. None lacks slides, and one with fewer seeds is not placed last for that."""
    varied, constant = split_choices(runs)
    found = [replace(choice, missing=0) for choice in find_choices(root, runs, varied)]
    return RunGroup(sorted(found, key=rank_choice), varied, constant)


def digest_slides(path: Path, scoring: str) -> str:
    """Return a digest of the slides of a table and of their labels; empty if it cannot be read or has no slide.

    Args:
        path: `val_slides.csv` or `test_slides.csv` of a run.
        scoring: Which figures the run has, see `MUST_AGREE`.
    """
    lines = []
    try:
        if path.stat().st_size > _MOST_BYTES:
            return ""
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            rows = csv.reader(file)
            names = next(rows, [])
            for cells in rows:
                row = dict(zip(names, cells, strict=False))
                lines.append([row.get("slide_id", ""), *(read_truth(row, key) for key, _ in MUST_AGREE[scoring])])
    except (OSError, csv.Error):
        return ""
    return fingerprint({"slides": sorted(lines, key=str)}) if lines else ""
