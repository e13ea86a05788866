"""Damaged files through the readers of the product, in one process: a value or a sentence that names the file."""

from __future__ import annotations

import functools
import json
import random
import re
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from panda.app.learning_record import LearningRecord
from panda.app.resume import read_run_config
from panda.app.resume_point import ResumePoint
from panda.app.training_reuse import Training
from panda.audit.page import write_audit_page
from panda.audit.records import RecordFolder, make_file_stem
from panda.audit.tables import AuditSummary
from panda.data.manifest import read_groups, read_manifest
from panda.data.patch_manifests import PatchTable
from panda.data.settings import SelectionSettings
from panda.data.slide_entry import SlideEntry
from panda.data.slide_rows import read_rows
from panda.data.slide_selection import select_slides
from panda.data.store import read_store
from panda.errors import PandaError
from panda.inference.canvas_store import Canvas
from panda.inference.compute import EngineSettings
from panda.inference.grader import GradingPredictor
from panda.inference.predictor import SegmentationPredictor
from panda.inference.slide_result import SlideResult
from panda.inference.slide_score import read_scores
from panda.report.inference_page import write_inference_page
from panda.report.inference_summary import InferenceSummary
from panda.report.run_page import write_run_page
from panda.report.slide_page import write_slide_page
from panda.report.sweep_page import write_sweep
from panda.stored import read_model
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.metadata import SegmentationMetadata
from panda.wsi.classes import BINARY
from tests.torture.jobs import Job
from tests.torture.mutations import mutate
from tests.torture.outcome import Deadline, Outcome
from tests.torture.processes import Child

PART = "readers"
_CPU = EngineSettings(device="cpu")
_MOST_BYTES, _MOST_SECONDS = 4 * 2**30, 120
"""Address space above the start, and time, of a reader."""
_RUN = "runs/segmentation/threshold"


def _read_canvas(file: Path) -> bytes:
    folder = next(folder for folder in file.parents if folder.name == "canvas.zarr")
    return np.asarray(Canvas.open(folder)).tobytes()


def _read_inspection(file: Path) -> None:
    folder = RecordFolder(file.parent, file.parents[2] / "data")
    row = next(row for row in read_rows(folder.root) if make_file_stem(row.slide_id) == file.stem)
    folder.read(row)


def _select(key: str, file: Path) -> None:
    data = next(folder / "data" for folder in file.parents if (folder / "data").is_dir())
    select_slides(read_manifest(data), SelectionSettings.model_validate({key: file}))


def _read_last(file: Path) -> None:
    read_checkpoint(file, SegmentationMetadata)
    ResumePoint.read(file)


def _of_parent(read: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a reader that takes the folder of the file, and returns nothing to compare."""
    return lambda file: void(read(file.parent))


def void(_: object) -> None:
    """Forget a value."""


READERS: dict[str, Callable[[Path], object]] = {
    "data/train.csv": _of_parent(read_manifest),
    "cut_*/*/store.json": _of_parent(read_store),
    "cut_*/*/*/slide.json": _of_parent(SlideEntry.read),
    "patches/*/splits/*/*.csv": lambda file: void(PatchTable(file)),
    "segmentation.ckpt": lambda file: void(SegmentationPredictor.from_checkpoint(file, _CPU)),
    "grading.ckpt": lambda file: void(GradingPredictor.from_checkpoint(file, _CPU)),
    "out/inference.json": _of_parent(InferenceSummary.read),
    "out/*.csv": _of_parent(write_inference_page),
    "graded/*/quantification.json": _of_parent(SlideResult.read),
    "graded/*/quantification.json, page": _of_parent(write_slide_page),
    "out/*/regions.geojson": _of_parent(write_slide_page),
    "out/*/canvas.zarr/zarr.json": _read_canvas,
    "out/*/canvas.zarr/0/zarr.json": _read_canvas,
    "out/*/canvas.zarr/0/c/*/*": _read_canvas,
    "audit/summary.json": _of_parent(AuditSummary.read),
    "audit/*.csv": _of_parent(write_audit_page),
    "audit/slides/*.json": _read_inspection,
    "audit/groups.csv": lambda file: void(read_groups(file)),
    "audit/findings.csv": functools.partial(_select, "findings"),
    f"{_RUN}/splits.csv": functools.partial(_select, "splits"),
    f"{_RUN}/config.yaml": lambda file: void(read_run_config(file)),
    f"{_RUN}/learns_from.json": _of_parent(LearningRecord.read),
    f"{_RUN}/training.json": lambda file: void(read_model(file, TypeAdapter(Training), "")),
    f"{_RUN}/validation_scores.npz": lambda file: void(read_scores(file, BINARY)),
    f"{_RUN}/checkpoints/best.ckpt": lambda file: void(read_checkpoint(file, SegmentationMetadata)),
    f"{_RUN}/checkpoints/last.ckpt": _read_last,
    f"{_RUN}/summary.json": _of_parent(write_run_page),
    f"{_RUN}/*.csv": _of_parent(write_run_page),
    "runs/segmentation/sweep-swept/*.csv": _of_parent(write_sweep),
    "runs/segmentation/sweep-swept/*/summary.json": lambda file: void(write_sweep(file.parents[1])),
    "runs/segmentation/sweep-swept/*/*_slides.csv": lambda file: void(write_sweep(file.parents[1])),
}
"""Files that finished jobs left, relative to the home, and what reads them; text after a comma tells readers apart.

A reader that returns a value must return that of the sound file.
"""


def torture(home: Path, jobs: dict[str, Job], deadline: Deadline, cases: int, seed: int) -> Sequence[Outcome]:
    """Finish the jobs, then damage files of theirs one at a time and read each; a crash ends the part."""
    for job in jobs.values():
        if job.kind not in ("draw", "train") and not (home / job.output).exists():
            Child(job.enter(home), home / "logs" / "readers.txt").wait()
    trials = home / "readers.json"
    work = functools.partial(_damage_all, home, trials, deadline, cases, random.Random(f"{seed} readers"))
    ended = Child(work, home / "logs" / "readers.txt").wait(deadline.seconds + 2 * _MOST_SECONDS)
    outcomes = {pattern: Outcome(PART, pattern, "files") for pattern in READERS}
    found = [json.loads(line) for line in trials.read_text().splitlines()]
    for pattern in READERS:
        if not _list_files(home, pattern):
            outcomes[pattern].note("no such file")
    for pattern, case, fault in found:
        outcomes[pattern].tried += 1
        outcomes[pattern].faults += [f"{case}: {fault}"] * bool(fault)
    if ended.status:
        outcomes[found[-1][0]].faults.append(f"after {found[-1][1]}: {ended.fault or ended.last_line}")
    return list(outcomes.values())


def _list_files(home: Path, pattern: str) -> list[Path]:
    return sorted(home.glob(pattern.partition(",")[0]))


def _damage_all(home: Path, trials: Path, deadline: Deadline, cases: int, rng: random.Random) -> None:
    """Damage a file, read it, restore it, in turn over all readers; write a line of JSON for each."""
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MOST_BYTES,) * 2)
    targets = [(name, read, files) for name, read in READERS.items() if (files := _list_files(home, name))]
    with trials.open("w", buffering=1) as lines:
        for number in range(cases):
            if deadline.passed:
                break
            name, read, files = targets[number % len(targets)]
            path = rng.choice(files)
            before = path.read_bytes()
            what, after = mutate(before, path.suffix, rng)
            signal.alarm(_MOST_SECONDS)
            sound = read(path)
            path.write_bytes(after)
            fault = _try(read, path, sound)
            path.write_bytes(before)
            signal.alarm(0)
            print(json.dumps((name, f"{path.relative_to(home)}, {what}", fault)), file=lines)


def _try(read: Callable[[Path], object], path: Path, sound: object) -> str:
    """Read a damaged file; return the fault of its reader, if there is one."""
    try:
        value = read(path)
    except PandaError as error:
        named = {path.name, path.stem, path.parent.name, "canvas.zarr"} & set(re.split("[/: ]", str(error)))
        return "" if named else f"the message does not name it: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if value == sound else "another result"
