"""Start `train.py` in processes that do not fit its trainer: each rank ends at once, and only rank 0 says why."""

from pathlib import Path

import pytest

from tests.integration.entry_points import run_entry_point
from tests.test_ranks import STEP, TORCHRUN

ONE_NODE = STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
ONE_LINE = "srun started 2 processes, and each would be a whole"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["trainer=ddp", "trainer.accelerator=cpu"], f"{ONE_LINE} training"),
        (["trainer=cpu", "optim.lr=-1"], f"{ONE_LINE} training"),
        (
            ["trainer=ddp_slurm", "trainer.accelerator=cpu", "trainer.devices=1"],
            "ask for 1 process, but srun started 2",
        ),
        (["-m", "seed=0,1"], f"{ONE_LINE} sweep"),
        (["trainer=ddp_slurm", "nme=x"], "nme=x: there is no such key"),
    ],
)
def test_wrong_start_is_refused_by_all_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, arguments: list[str], fault: str
) -> None:
    for name, value in (ONE_NODE | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}).items():
        monkeypatch.setenv(name, value)
    done = run_entry_point("train", tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.count(fault) == (rank == 0)
    assert "ConfigError" not in done.stderr or rank == 0
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_wrong_start_by_torchrun_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    one_node = {"WORLD_SIZE": "2", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "RANK": rank, "LOCAL_RANK": rank}
    for name, value in (TORCHRUN | one_node).items():
        monkeypatch.setenv(name, value)
    done = run_entry_point("train", tmp_path, "trainer=cpu")
    assert done.returncode == 1
    assert done.stderr.count("torchrun started 2 processes, and each would be a whole training") == (rank == "0")
    assert not [*tmp_path.iterdir()]


def test_joint_trainer_without_ranks_is_refused(tmp_path: Path) -> None:
    done = run_entry_point("train", tmp_path, "trainer=ddp_slurm", "trainer.accelerator=cpu")
    assert done.returncode == 1
    assert "this one was started alone: srun --nodes=1 --ntasks-per-node=2 python train.py …" in done.stderr
    assert not [*tmp_path.iterdir()]
