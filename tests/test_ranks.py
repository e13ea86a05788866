"""How a process was started: variables of srun and torchrun, and the trainers that do not fit them."""

from collections.abc import Mapping
from typing import Any

import pytest
from omegaconf import OmegaConf

from panda.app.rank_environment import RankEnvironment, SpawnEnvironment
from panda.app.ranks import PORTS, Launch, find_launch, find_launch_faults, find_sweep_faults, read_ranks
from panda.errors import ConfigError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29400",
}
STEP = {  # as SLURM 22.05 sets them
    "SLURM_JOB_ID": "6424",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08],login1",
}
BATCH = {"SLURM_JOB_ID": "6425", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2"}
ONE, TWO = Launch("srun"), Launch("srun", tasks=(2,))


def test_launch_of_torchrun_is_read() -> None:
    found = find_launch(TORCHRUN | STEP)  # torchrun inside srun
    assert (found.starter, found.rank, found.local_rank, found.node, found.tasks) == ("torchrun", 3, 1, 1, (2, 2))
    assert (found.address, found.port, found.hosts_store) == ("node7", 29400, False)
    first = find_launch(TORCHRUN | {"RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert first.hosts_store


def test_launch_of_srun_is_read() -> None:
    found = find_launch(STEP)
    assert (found.starter, found.rank, found.local_rank, found.node, found.tasks) == ("srun", 3, 1, 1, (2, 2))
    assert (found.address, found.size, found.hosts_store) == ("gpu07", 4, False)
    assert found.port in PORTS
    assert find_launch(STEP | {"SLURM_STEP_ID": "1"}).port != found.port
    set_by_hand = find_launch(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "SLURM_PROCID": "0"})
    assert (set_by_hand.address, set_by_hand.port, set_by_hand.hosts_store) == ("10.0.0.1", 1234, True)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n[1-2],m3", "n1"), ("n1,m[2-3]", "n1"), ("rack[1-2]n[03,5]", "rack1n03"), ("10.0.0.[8-9]", "10.0.0.8")],
)
def test_address_is_first_node_of_step(nodes: str, first: str) -> None:
    assert find_launch(STEP | {"SLURM_STEP_NODELIST": nodes}).address == first


def test_address_of_one_node_needs_no_name() -> None:
    assert find_launch(STEP | {"SLURM_STEP_TASKS_PER_NODE": "4"}).address == "127.0.0.1"


@pytest.mark.parametrize("environment", [{}, BATCH])
def test_launch_without_step_is_one_process(environment: Mapping[str, str]) -> None:
    assert find_launch(environment) == Launch()


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        (STEP | {"SLURM_PROCID": "x"}, "SLURM_PROCID=x is no number"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "2;2"}, "SLURM_STEP_TASKS_PER_NODE=2;2 is no list of tasks"),
        ({"TORCHELASTIC_RUN_ID": "a"}, "RANK= is no number"),
    ],
)
def test_launch_with_wrong_variable_is_refused(environment: Mapping[str, str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        find_launch(environment)


@pytest.mark.parametrize(
    ("launch", "trainer", "fault"),
    [
        (Launch(), ("ddp", 2, 1), "this one was started alone: srun --nodes=1 --ntasks-per-node=2 python train.py"),
        (
            TWO,
            ("ddp", 2, 2),
            "ask for 4 processes, but srun started 2 processes: give trainer.devices=2 trainer.num_nodes=1",
        ),
        (Launch("srun", tasks=(3, 1)), ("ddp", 2, 2), "4 processes on 2 nodes: start as many on each node, or srun"),
        (Launch("torchrun", tasks=(2,)), ("ddp", 1, 1), "or torchrun --nnodes=1 --nproc-per-node=1 train.py"),
        (
            TWO,
            ("auto", 1, 1),
            "srun started 2 processes, and each would be a whole training: start one, or give trainer",
        ),
        (TWO, ("ddp_spawn", 2, 1), "each would be a whole training"),
        (Launch("torchrun"), ("ddp_spawn", 2, 1), "start it by python, not by torchrun"),
    ],
)
def test_trainer_that_does_not_fit_launch_is_named(launch: Launch, trainer: Any, fault: str) -> None:
    (found,) = find_launch_faults(launch, *trainer)
    assert fault in found


@pytest.mark.parametrize(
    ("launch", "trainer"),
    [
        (Launch(), ("auto", 1, 1)),
        (Launch(), ("ddp_spawn", 4, 1)),
        (ONE, ("ddp_spawn", 4, 1)),
        (ONE, ("ddp", 1, 1)),
        (TWO, ("ddp", 2, 1)),
        (Launch("torchrun", tasks=(4, 4)), ("ddp_find_unused_parameters_true", 4, 2)),
    ],
)
def test_trainer_that_fits_launch_passes(launch: Launch, trainer: Any) -> None:
    assert list(find_launch_faults(launch, *trainer)) == []


@pytest.mark.parametrize(
    ("launch", "trainer", "launcher", "fault"),
    [
        (
            Launch(),
            "ddp",
            {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
            "was started alone",
        ),
        (Launch(), "ddp", {"_target_": "submitit", "tasks_per_node": 2, "nodes": 1}, None),
        (
            Launch(),
            "ddp",
            {"_target_": "submitit", "tasks_per_node": 1, "nodes": 1},
            "ask for 2 processes, but srun started 1",
        ),
        (Launch(), "auto", {"_target_": "submitit", "tasks_per_node": 2}, "each would be a whole training"),
        (TWO, "ddp", {"_target_": "basic"}, "each would be a whole sweep"),
    ],
)
def test_sweep_whose_jobs_lack_ranks_is_named(launch: Launch, trainer: str, launcher: Any, fault: str | None) -> None:
    cfg = OmegaConf.create({"trainer": {"strategy": trainer, "devices": 2}, "hydra": {"launcher": launcher}})
    found = list(find_sweep_faults(launch, cfg))
    assert [fault in text for text in found] == [True] if fault else found == []


def test_ranks_of_unchecked_configuration_are_read() -> None:
    cfg = OmegaConf.create({"trainer": {"strategy": "ddp", "devices": "all", "num_nodes": "${nothing}"}})
    assert read_ranks(cfg) == ("ddp", 1, 1)
    assert read_ranks(OmegaConf.create({})) == ("auto", 1, 1)


def test_spawned_training_ignores_job_script(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "MASTER_PORT", "STANDALONE_PORT")
    for name in (*names, "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    found = SpawnEnvironment()
    assert (found.local_rank(), found.node_rank(), found.main_address) == (0, 0, "127.0.0.1")
    assert found.main_port == found.main_port > 1
    assert not found.creates_processes_externally


def test_rank_environment_is_launch() -> None:
    launch = Launch("srun", "7.0.0", 3, 1, 1, (2, 2), "node", 20_001)
    found = RankEnvironment(launch)
    assert (found.global_rank(), found.local_rank(), found.node_rank(), found.world_size()) == (3, 1, 1, 4)
    assert (found.main_address, found.main_port, found.creates_processes_externally) == ("node", 20_001, True)
