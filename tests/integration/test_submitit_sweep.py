"""Sweeps whose jobs are processes of submitit: one training for all, requeue, kill, and the same command again."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from panda.report.sweep import main
from panda.soft_lock import Holder
from tests.integration.entry_points import REPOSITORY, run_entry_point, table
from tests.integration.test_entry_points import TINY

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="sends signals")]

EPOCHS = 8
COMMAND = (
    "-m", "hydra/launcher=submitit_local",
    *(option for option in TINY if not option.startswith("trainer.max_epochs")), f"trainer.max_epochs={EPOCHS}",
    "+trainer.limit_train_batches=4", "name=x", "logger=csv", "test_slides=false",
)  # fmt: skip


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a sweep of two jobs that share a training; its processes end with the test."""
    with subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *COMMAND, "threshold=0.3,0.5"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(found: Callable[[], object], launcher: subprocess.Popen[str]) -> None:
    while not found():
        assert launcher.poll() is None, launcher.communicate()[1][-3000:]
        time.sleep(0.05)


def find_process(sweep: Path, job: str) -> int:
    """Return the process that runs a job, from the record in its lock; 0 if none does."""
    path = sweep / job / ".run.lock"
    holder = Holder.parse(path.read_bytes()) if path.is_file() else None
    return holder.pid if holder else 0


def test_sweep_of_submitit_is_requeued_killed_and_continued(
    tmp_path: Path, launcher: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "runs" / "segmentation" / "sweep-x"
    wait_for(lambda: list(sweep.glob("*/checkpoints/last.ckpt")), launcher)
    (last,) = sweep.glob("*/checkpoints/last.ckpt")
    job = last.parents[1].name
    wait_for(lambda: list(sweep.glob(".training-*.waiting/*")), launcher)
    first = find_process(sweep, job)
    os.kill(first, signal.SIGUSR2)  # as before a time limit
    wait_for(lambda: "continued after" in (sweep / job / "run.log").read_text(), launcher)
    os.kill(find_process(sweep, job), signal.SIGKILL)
    said = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 1
    assert "a job ended without a result" in said
    assert "the same command with name=x continues" in said
    assert main([str(sweep)]) == 1
    assert "2 jobs: " in capsys.readouterr().out
    assert sorted(row["state"] for row in table(sweep / "sweep.csv")) == ["lost", "waiting"]

    done = run_entry_point("train", tmp_path, *COMMAND, "threshold=0.3,0.5,0.6")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = table(sweep / "sweep.csv")
    assert [(row["state"], row["threshold_used"]) for row in rows] == [
        ("done", "0.3"), ("done", "0.5"), ("done", "0.6"),
    ]  # fmt: skip
    assert [row["trained_by"] for row in rows] == ["" if row["job"] == job else job for row in rows]
    epochs = [row["epoch"] for row in table(sweep / job / "metrics.csv") if row["val/loss"]]
    assert epochs == [str(epoch) for epoch in range(EPOCHS)], "it was continued, and no epoch is there twice"
    assert not list(sweep.glob(".training-*.waiting/*"))
