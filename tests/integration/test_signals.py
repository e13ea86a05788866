"""Signals of a scheduler end a training as Ctrl-C does, and a killed one frees its lock and leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from panda.files import hold_lock
from tests.integration.entry_points import REPOSITORY, table
from tests.integration.test_entry_points import TINY

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_CPUS_ON_NODE": "4",
    "SLURM_NODELIST": "node[1-2]",
}
"""Variables of a task of an allocation with several tasks, where Lightning would join or requeue them."""
RUN = (*(option for option in TINY if not option.startswith("trainer.max_epochs")), "trainer.max_epochs=60")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a training, which has a checkpoint when it is returned."""
    started: list[subprocess.Popen[str]] = []

    def start_training(name: str, *overrides: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "train.py"), *RUN, *overrides, f"name={name}"],
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        last = home / "runs" / "segmentation" / name / "checkpoints" / "last.ckpt"
        while not last.exists() and process.poll() is None:
            time.sleep(0.05)
        return process

    yield start_training
    for process in started:
        process.kill()
        process.communicate()


def find_children(parent: int) -> list[int]:
    """Return a process and all processes that it started."""
    found = [parent]
    for number in found:
        for task in Path(f"/proc/{number}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


@pytest.mark.parametrize(("name", "to_all"), [("SIGTERM", False), ("SIGUSR1", True)])
def test_train_signal_under_slurm_ends_as_ctrl_c_does(
    home: Path, start: Callable[..., subprocess.Popen[str]], name: str, to_all: bool
) -> None:
    process = start(name, "data.num_workers=2", **SLURM)
    for number in find_children(process.pid) if to_all else [process.pid]:
        os.kill(number, getattr(signal, name))
    said = process.communicate(timeout=60)[1]
    last = f"runs/segmentation/{name}/checkpoints/last.ckpt"
    assert process.returncode == 130, said[-3000:]
    assert f"interrupted by {name}; resume it with: python train.py resume={last}" in said
    assert "Traceback" not in said
    assert not list(home.rglob("hpc_ckpt*"))
    assert [row for row in table(home / "runs" / "segmentation" / name / "metrics.csv") if row["val/loss"]]


def test_train_sigkill_frees_lock_and_leaves_no_process(
    home: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start("killed", "data.num_workers=2")
    family = find_children(process.pid)
    assert len(family) > 2, "it has no workers"
    process.kill()
    process.wait()
    with hold_lock(home / "runs" / "segmentation" / "killed" / "run"):  # waits for it
        pass
    limit = time.monotonic() + 30
    while any(Path(f"/proc/{number}").exists() for number in family) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not [number for number in family if Path(f"/proc/{number}").exists()]
