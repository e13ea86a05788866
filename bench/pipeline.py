"""Part i: the work around the network, side by side with an earlier build of this project.

Both builds take the steps of `bench.pipeline_build` in turn, each step in a fresh process on two cores.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.results import Results
from bench.slides import CACHE, make_slide
from bench.worker import LeftOutError, confine

BEFORE = "e9b19e8a5c56f59ceb7c3e3b9c19469fd24376e9"
"""The last commit that blended tiles in numpy and wrote the files of a slide before it mapped the next one."""
NOW_NAME, BEFORE_NAME = "this build", "the build before"
MAP, FILES, INFER = "pipeline", "files of a slide", "infer.py"
"""Names of the steps, and of their parts in the results."""
WHOLE, AROUND, ALONE = "slide to canvas", "read, blend and write", "the network alone"
SLIDE = (3072, 4096)
"""Size in level-0 px, 12.6 Mpx."""
_SLIDES, _QUICK_SLIDES = 5, 2
_INFER_ROUNDS = 3
"""At most, because the network takes most of the time."""
_CORES = 2
_TIMEOUT_S = 1800.0
_ROOT = Path(__file__).parents[1]
_STEPS = Path(__file__).with_name("pipeline_build.py")


def measure(quick: bool, rounds: int, results: Results) -> None:
    """Measure mapping, the files of a slide, and all of `infer.py`.

    Args:
        quick: On fewer slides.
        rounds: How many times each.
        results: Gets the rows.
    """
    drawn = make_slide(*SLIDE).image_path.resolve()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as made, _on_cores(_CORES):
        paths = [Path(made) / f"slide{number}.tiff" for number in range(_QUICK_SLIDES if quick else _SLIDES)]
        for path in paths:
            path.symlink_to(drawn)  # under several names, because a slide is opened ahead of its turn by its path
        builds = {NOW_NAME: _ROOT}
        try:
            builds[BEFORE_NAME] = unpack_commit(BEFORE, Path(made) / "before")
        except LeftOutError as error:
            results.left_out[BEFORE_NAME] = str(error)
        for turn in range(rounds):
            for name, root in builds.items():
                _measure_build(name, root, paths, Path(made) / f"out{len(name)}", results)
            if turn < _INFER_ROUNDS:
                _measure_infer(paths, Path(made) / "out", results)


def unpack_commit(commit: str, folder: Path) -> Path:
    """Write the files of a commit of this repository to a folder, with the steps that are measured.

    Raises:
        LeftOutError: If this is no clone of the repository, or one without that commit.
    """
    archived = subprocess.run(["git", "archive", commit], cwd=_ROOT, capture_output=True, check=False)
    if archived.returncode:
        said = archived.stderr.decode(errors="replace").strip()
        raise LeftOutError(f"commit {commit[:7]} is not there ({said}); measure in a full clone: git fetch --unshallow")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "bench" / CACHE.name).mkdir(exist_ok=True)
    shutil.copy(_STEPS, folder / "bench" / _STEPS.name)
    return folder


def _measure_build(name: str, root: Path, paths: list[Path], out: Path, results: Results) -> None:
    """Map slides by a network that computes nothing, then write their files."""
    mapped = _run_step(root, "map", out, paths)
    tiles = mapped["tiles"]
    note = f"{tiles // len(paths)} tiles a slide"
    results.add(MAP, name, WHOLE, tiles / mapped["wall"], note)
    results.add(f"{MAP} cpu", name, AROUND, 1000 * (mapped["cpu"] - mapped["alone_cpu"]) / tiles)
    results.add(f"{MAP} cpu", name, ALONE, 1000 * mapped["alone_cpu"] / tiles)
    results.add(FILES, name, WHOLE, _run_step(root, "files", out, paths)["cpu"] / len(paths))
    shutil.rmtree(out)


def _measure_infer(paths: list[Path], out: Path, results: Results) -> None:
    """Run all of `infer.py` with a UNet, and the UNet alone."""
    took = _run_step(_ROOT, "infer", out, paths)
    note = f"{took['tiles'] // len(paths)} tiles a slide"
    results.add(INFER, NOW_NAME, WHOLE, took["wall"] / len(paths), note)
    results.add(INFER, ALONE, WHOLE, took["alone"] / len(paths), note)
    shutil.rmtree(out)


def _run_step(root: Path, step: str, out: Path, paths: list[Path]) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", f"bench.{_STEPS.stem}", step, str(out), *map(str, paths)]
    where = {**os.environ, "PYTHONPATH": str(root)}
    ran = subprocess.run(command, cwd=root, env=where, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if ran.returncode:
        raise RuntimeError(f"step {step} failed in {root}: {ran.stderr.strip()}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@contextlib.contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """Keep this process, and those that it starts, on a number of cores for a while (if the system can)."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    confine(count)
    try:
        yield
    finally:
        confine(max(len(cores), 1))
