"""Inference killed anywhere, two runs at once, a full disk, damaged slides and networks: nothing half-made stays.

`python -m tests.test_killed_inference` forks the processes that are killed. Each counts its file operations by Python's
audit hook, and ends itself by SIGKILL before a given one.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hydra import compose, initialize_config_dir

from panda.app.entry_point import SomeSlidesFailed
from panda.app.hydra_job import register_resolvers
from panda.app.infer import infer
from panda.inference.canvas import Canvas, CanvasWriter
from panda.wsi.geometry import Resolution
from tests.checkpoints import segmentation_checkpoint
from tests.pyramids import write_pyramid

KILLS = 6
_REPOSITORY = Path(__file__).resolve().parents[1]
_TIMED = {"infer.log", "inference.json", "report.html", "slide.html"}
"""They hold dates."""


def _run(folder: Path, out: str, *overrides: str) -> None:
    register_resolvers()
    given = [f"checkpoint={folder / 'best.ckpt'}", f"output={folder / out}", f"run_dir={folder / out}"]
    with initialize_config_dir(str(_REPOSITORY / "conf"), version_base="1.3"):
        engine = ("engine.device=cpu", "engine.post_workers=0")
        cfg = compose("infer", overrides=[*given, f"slides='{folder / 'slides' / '*.tiff'}'", *engine, *overrides])
    infer(cfg)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides and a checkpoint."""
    root = tmp_path_factory.mktemp("killed")
    for name in ("a", "b"):
        image = np.full((512, 640, 3), 244, np.uint8)
        image[100:400, 100:500] = (215, 120, 180)
        write_pyramid(root / "slides" / f"{name}.tiff", image, mpp=0.5)
    segmentation_checkpoint(root / "best.ckpt")
    return root


class Forks:
    """A process that has imported everything and computed nothing, and forks others that map the slides."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", __name__, str(folder)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, cwd=_REPOSITORY, **pipes)

    def map(self, *runs: tuple[str, int]) -> list[tuple[int, int]]:
        """Map all slides, in several processes at once.

        Args:
            *runs: Output, and the number of the event before which the process kills itself.

        Returns:
            The status of each run, as of `os.waitpid`, and the events until its end.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(runs), file=self._process.stdin, flush=True)
        return [tuple(pair) for pair in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=30)


def _files(out: Path) -> dict[str, bytes]:
    """Read the finished files of an output, except those that hold a date."""
    hidden = (".lock", ".partial", ".old", ".sums", ".records")
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
        and path.name not in _TIMED
        and not any(mark in part for mark in hidden for part in path.relative_to(out).parts)
    }


@pytest.mark.slow
def test_infer_killed_anywhere_or_run_twice_resumes(folder: Path) -> None:
    forks = Forks(folder)
    try:
        ((status, events),) = forks.map(("whole", 10**9))
        assert status == 0
        whole = _files(folder / "whole")
        assert {"quantification.csv", "engine.json", "a/quantification.json"} <= set(whole)
        rng, got_on = random.Random(0), set[int]()
        for kill in range(KILLS):
            ((status, _),) = forks.map(("out", 1 + int(rng.uniform(0, (kill + 1) / KILLS) * 0.9 * events)))
            got_on.add(len(_files(folder / "out")))
            if os.WIFSIGNALED(status):
                assert os.WTERMSIG(status) == signal.SIGKILL
            for path in (folder / "out").glob("*/canvas.zarr"):
                # a canvas with the final name is whole
                Canvas.open(path).check()
                name = str(path.relative_to(folder / "out"))
                assert {key: value for key, value in _files(folder / "out").items() if key.startswith(name)} == {
                    key: value for key, value in whole.items() if key.startswith(name)
                }
        assert len(got_on) > 1, "the runs got on"
        ((status, _),) = forks.map(("out", 10**9))
        assert status == 0
        assert _files(folder / "out") == whole
        assert not list((folder / "out").rglob("*.partial*"))

        assert [status for status, _ in forks.map(("both", 10**9), ("both", 10**9))] == [0, 0]
        assert _files(folder / "both") == whole
    finally:
        forks.close()


def _read_failures(out: Path) -> dict[str, str]:
    with (out / "failures.csv").open(newline="") as file:
        return {row["slide_id"]: f"{row['error']}: {row['message']}" for row in csv.DictReader(file)}


def test_infer_unreadable_region_fails_its_slide_only(folder: Path, tmp_path: Path) -> None:
    for name in ("slides", "best.ckpt"):
        os.symlink(folder / name, tmp_path / name)
    (tmp_path / "slides").unlink()
    (tmp_path / "slides").mkdir()
    for name in ("a", "b"):
        (tmp_path / "slides" / f"{name}.tiff").write_bytes((folder / "slides" / f"{name}.tiff").read_bytes())
    path = tmp_path / "slides" / "a.tiff"
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[1]  # the level that is mapped; the overview comes from the next one
        start, count = page.dataoffsets[0], page.databytecounts[0]
    content[start : start + count] = b"\xff" * count
    path.write_bytes(content)
    with pytest.raises(SomeSlidesFailed, match="1 of 2 slides failed"):
        _run(tmp_path, "out")
    (failures,) = _read_failures(tmp_path / "out").items()
    assert failures[0] == "a"
    assert "SlideError" in failures[1]
    assert "of level 1" in failures[1]
    assert "fetch it again" in failures[1]
    assert not list((tmp_path / "out" / "a").glob("*[!k]"))  # but for locks
    assert (tmp_path / "out" / "b" / "quantification.json").is_file()


def test_infer_nan_output_names_slide_and_place(folder: Path, tmp_path: Path) -> None:
    os.symlink(folder / "slides", tmp_path / "slides")
    path = segmentation_checkpoint(tmp_path / "best.ckpt")
    content = torch.load(path, weights_only=True)
    name = next(key for key in content["state_dict"] if key.endswith("segmentation_head.0.bias"))
    content["state_dict"][name][:] = float("nan")
    torch.save(content, path)
    with pytest.raises(SomeSlidesFailed, match="2 of 2"):
        _run(tmp_path, "out")
    failures = _read_failures(tmp_path / "out")
    assert "slide a: tile at working px" in failures["a"]
    assert "probabilities are NaN or infinite" in failures["a"]
    assert not list((tmp_path / "out").rglob("canvas.zarr*"))


def test_infer_canvas_of_older_version_is_made_again(
    folder: Path, tmp_path: Path, panda_log: pytest.LogCaptureFixture
) -> None:
    for name in ("slides", "best.ckpt"):
        os.symlink(folder / name, tmp_path / name)
    _run(tmp_path, "out")
    meta = tmp_path / "out" / "a" / "canvas.zarr" / "zarr.json"
    before = _files(tmp_path / "out")
    plain = json.loads(meta.read_text())
    plain["attributes"]["panda_canvas"] = 0
    meta.write_text(json.dumps(plain))
    panda_log.clear()
    _run(tmp_path, "out")
    (failures,) = {record.getMessage() for record in panda_log.records if "made again" in record.getMessage()}
    assert "panda_canvas is 0, this version reads 3; it is made again" in failures
    assert _files(tmp_path / "out") == before


def test_infer_full_disk_ends_run_and_leaves_no_canvas(
    folder: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("48k")
    for name in ("slides", "best.ckpt"):
        os.symlink(folder / name, tmp_path / name)
    os.symlink(disk, tmp_path / "out")
    with pytest.raises(OSError, match="No space left") as raised:
        _run(tmp_path, "out")
    assert raised.value.errno == errno.ENOSPC
    assert not list(disk.rglob("canvas.zarr*"))


@pytest.mark.parametrize("budget", [2**30, 1])
def test_canvas_writer_disk_full_midway_leaves_no_file(small_disk: Callable[[str], Path], budget: int) -> None:
    """The first while chunks are written, the second while sums are laid aside."""
    disk = small_disk("3m")
    tiles = np.random.default_rng(0).random((4, 1024, 1024), np.float32)
    positions = [(x, y) for y in (0, 1024) for x in (0, 1024)]
    with (
        pytest.raises(OSError, match="No space left"),
        CanvasWriter(
            disk / "c", Resolution(1.0, 2048, 2048, 0, 1.0, None), 1024, "f", {}, expected=positions, budget=budget
        ) as writer,
    ):
        writer.add(tiles, positions)
    assert list(disk.iterdir()) == []


def _child(folder: Path, out: str, event: int) -> None:
    count = 0

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        here = name in {"open", "os.mkdir", "os.rename"} and str(folder / out) in str(arguments[0])
        if here or name in {"os.remove", "os.rmdir"}:
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    with contextlib.redirect_stdout(sys.stderr):
        _run(folder, out)
    (folder / f"{os.getpid()}.events").write_text(str(count))


def _main(folder: Path) -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        children = []
        for out, event in json.loads(line):
            if (pid := os.fork()) == 0:
                status = 1
                try:
                    _child(folder, out, event)
                    status = 0
                finally:
                    os._exit(status)
            children.append(pid)
        ended = []
        for pid in children:
            status = os.waitpid(pid, 0)[1]
            failures = folder / f"{pid}.events"
            ended.append((status, int(failures.read_text()) if failures.exists() else 0))
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
