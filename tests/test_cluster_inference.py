"""Slides mapped by workers of dask: the same bytes as one process, also after workers were killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from panda.app.entry_point import SomeSlidesFailed
from tests.checkpoints import segmentation_checkpoint
from tests.pyramids import write_pyramid
from tests.test_killed_inference import _files, _run

KILLS = 12
EARLY = 2
"""Kills while the workers start or load the networks; then none until a slide is done."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides and a checkpoint."""
    root, rng = tmp_path_factory.mktemp("cluster"), np.random.default_rng(0)
    for number in range(8):
        image = np.full((512, 640, 3), 244, np.uint8)
        image[100:400, 100:500] = (215, 120, 180)
        image[120 : 140 + 20 * number, 200:400] = rng.integers(60, 200, (20 + 20 * number, 200, 3))
        write_pyramid(root / "slides" / f"{number}.tiff", image, mpp=0.5)
    segmentation_checkpoint(root / "best.ckpt")
    return root


def test_infer_workers_write_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(folder, "here")
    _run(folder, "local", "cluster=local", "cluster.workers=2")
    whole = _files(folder / "here")
    assert "7/quantification.json" in whole
    assert _files(folder / "local") == whole
    assert not [path.name for path in (folder / "local").iterdir() if path.name.startswith(".panda")]
    # nothing is left to do, so that no worker is started; with other settings there is
    monkeypatch.setattr("panda.app.cluster_map.open_cluster", lambda *_: pytest.fail("workers are started"))
    page = (folder / "local" / "report.html").stat().st_mtime_ns
    _run(folder, "local", "cluster=local", "cluster.workers=3")
    assert _files(folder / "local") == whole
    assert (folder / "local" / "report.html").stat().st_mtime_ns > page
    with pytest.raises(pytest.fail.Exception, match="workers are started"):
        _run(folder, "local", "cluster=local", "threshold=0.4")


def _is_worker(pid: str) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.slow
def test_infer_killed_workers_change_no_byte(folder: Path) -> None:
    _run(folder, "here")
    ended, killed, rng = threading.Event(), 0, random.Random(0)

    def kill() -> None:
        nonlocal killed
        while killed < KILLS and not ended.wait(rng.uniform(1, 4)):
            if killed == EARLY and not list((folder / "killed").glob("*/slide.html")):
                continue
            tasks = Path("/proc/self/task").glob("*/children")
            workers = [pid for pid in " ".join(path.read_text() for path in tasks).split() if _is_worker(pid)]
            if workers:
                os.kill(int(rng.choice(workers)), signal.SIGKILL)
                killed += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with contextlib.suppress(SomeSlidesFailed):  # one may have been killed three times
            _run(folder, "killed", "cluster=local", "cluster.workers=4")
    finally:
        ended.set()
        thread.join()
    _run(folder, "killed", "cluster=local", "cluster.workers=2")
    assert killed > 1
    assert _files(folder / "killed") == _files(folder / "here")
