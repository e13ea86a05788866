"""The SLURM of the tests itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm import NODES, Slurm, find_processes, start_slurm

REPOSITORY = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_slurm_runs_one_task_on_each_node(slurm: Slurm) -> None:
    names = slurm.run("srun", "--nodes=2", "--ntasks-per-node=1", "printenv", "SLURMD_NODENAME").split()
    assert sorted(names) == list(NODES)


def test_slurm_runs_a_requeued_job_again(slurm: Slurm, tmp_path: Path) -> None:
    again = 'test -n "$SLURM_RESTART_COUNT" || { scontrol requeue $SLURM_JOB_ID; sleep 60; }'
    wrap = ("--wrap", f"echo start $SLURM_RESTART_COUNT >> starts; {again}")
    slurm.run("sbatch", "--output=log", *wrap, cwd=tmp_path)
    while not (tmp_path / "starts").exists():
        time.sleep(0.1)
    slurm.wait_for_jobs()
    assert (tmp_path / "starts").read_text().splitlines() == ["start", "start 1"]


def test_second_slurm_stops_with_its_jobs(slurm: Slurm) -> None:
    with start_slurm() as second:
        second.run("sbatch", "--output=/dev/null", "--wrap", "sleep 600")
        assert slurm.run("squeue", "--noheader") == ""
        folder = second.folder
    assert not folder.exists()
    assert find_processes(str(folder / "slurm.conf")) == []
    assert slurm.run("sinfo", "--noheader", "--states=idle", "--format=%D").split() == ["2"]


@pytest.mark.usefixtures("slurm")
def test_killed_slurm_leaves_no_daemon() -> None:
    command = [sys.executable, "-m", "tests.slurm", "sh", "-c", "echo $SLURM_CONF; kill -9 $PPID"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    configuration = Path(done.stdout.strip())
    assert configuration.name == "slurm.conf"
    end = time.monotonic() + 30
    while find_processes(str(configuration)) and time.monotonic() < end:
        time.sleep(0.1)
    assert find_processes(str(configuration)) == []
    shutil.rmtree(configuration.parent)
