"""One thread of the numerical libraries against two: which results stay the same to the bit."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from panda.inference.canvas_store import Canvas
from panda.inference.slide_result import SlideResult
from tests.torture.digests import compare, digest_folder
from tests.torture.jobs import Job
from tests.torture.outcome import Deadline, Outcome
from tests.torture.processes import Child

PART = "threads"


def torture(home: Path, jobs: Sequence[Job], deadline: Deadline) -> Iterator[Outcome]:
    """Run each job with one thread and with two, each twice; the same number must give the same files."""
    for job in jobs:
        if deadline.passed:
            break
        outcome = Outcome(PART, job.name, "runs")
        digests, figures, maps = {}, {}, {}
        for threads in (1, 2):
            for turn in (0, 1):
                job.reset(home)
                outcome.tried += 1
                ended = Child(_with_threads(job.enter(home), threads), home / "logs" / "threads.txt").wait()
                if ended.fault or ended.status:
                    outcome.faults.append(f"{threads} threads: {ended.fault or ended.last_line}")
                digests[threads, turn] = digest_folder(home / job.output)
            figures[threads] = _read_dice(home / job.output / "metrics.csv")
            maps[threads] = _read_maps(home / job.output)
            if difference := compare(digests[threads, 0], digests[threads, 1]):
                outcome.note(f"not the same twice with {threads} threads: {difference}")
        if difference := compare(digests[1, 0], digests[2, 0]):
            outcome.note(f"1 and 2 threads differ: {difference}")
        else:
            outcome.note("1 and 2 threads give the same files")
        moved = [abs(one - two) for one, two in zip(figures[1], figures[2], strict=False)]
        if moved:
            outcome.note(f"val/dice moves by at most {max(moved):.4f} between 1 and 2 threads")
        if maps[1]:
            pairs = [(maps[1][name], maps[2][name]) for name in maps[1]]
            probability = max(float(np.abs(one[0] - two[0]).max()) for one, two in pairs)
            area = max(abs(one[1] - two[1]) for one, two in pairs)
            outcome.note(f"probabilities move by at most {probability:.2g}, the tumour of a slide by {area:.2g} mm²")
        yield outcome


def _with_threads(work: Callable[[], None], threads: int) -> Callable[[], None]:
    def run() -> None:
        torch.set_num_threads(threads)
        work()

    return run


def _read_dice(path: Path) -> list[float]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [float(row["val/dice"]) for row in csv.DictReader(file) if row.get("val/dice")]


def _read_maps(output: Path) -> dict[str, tuple[NDArray[np.float32], float]]:
    """Return the probabilities and the tumour area in mm² of each slide that was mapped."""
    return {
        folder.parent.name: (np.asarray(Canvas.open(folder)), SlideResult.read(folder.parent).tumor_mm2 or 0.0)
        for folder in sorted(output.glob("*/canvas.zarr"))
    }
