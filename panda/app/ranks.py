"""How this process was started: alone, or as one of the ranks that srun or torchrun started.

This module reads the environment once, at the entry of a program, as a typed value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panda.errors import ConfigError, PandaError

PORTS = range(20_000, 30_000)
"""Where rank 0 listens under srun. Systems give other connections higher ports."""


class RankError(PandaError):
    """Ends a rank whose reason is logged already, by rank 0 or by the thread that watches the ranks."""


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    Attributes:
        starter: What started it; python if nothing started several.
        job: A name that the ranks of one start share.
        rank: Number of this rank.
        local_rank: Its number on its node.
        node: Number of its node.
        tasks: Number of ranks on each node.
        address: Host of rank 0.
        port: Port of the store by which the ranks find each other.
        hosts_store: Whether this rank opens the store; under torchrun, its agent does.
    """

    starter: Literal["python", "srun", "torchrun"] = "python"
    job: str = ""
    rank: int = 0
    local_rank: int = 0
    node: int = 0
    tasks: tuple[int, ...] = (1,)
    address: str = "127.0.0.1"
    port: int = PORTS.start
    hosts_store: bool = False

    @property
    def size(self) -> int:
        """Number of all ranks."""
        return sum(self.tasks)

    @property
    def command(self) -> str:
        """How `train.py` is started in the same way."""
        return {"srun": "srun … python", "torchrun": "torchrun …", "python": "python"}[self.starter] + " train.py"

    def fits(self, devices: int, num_nodes: int) -> bool:
        """Return whether there is one rank for each device of each node."""
        return self.starter != "python" and self.tasks == (devices,) * num_nodes

    def describe(self) -> str:
        """Return the ranks in words, such as `srun started 4 processes on 2 nodes`."""
        plural, nodes = "es" if self.size > 1 else "", f" on {len(self.tasks)} nodes" if len(self.tasks) > 1 else ""
        return f"{self.starter} started {self.size} process{plural}{nodes}"


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read how this process was started.

    Inside `srun torchrun`, torchrun started it. A batch script without srun is one process, but SLURM sets the number
    and rank of a task there too; only the variables of a step say what srun started.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return _read_torchrun(environment)
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        return _read_srun(environment)
    return Launch()


def _read_torchrun(environment: Mapping[str, str]) -> Launch:
    rank, size, local = (_read_number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    nodes = _read_number(environment, "GROUP_WORLD_SIZE")
    return Launch(
        "torchrun",
        f"{environment['TORCHELASTIC_RUN_ID']}.{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}",
        rank,
        _read_number(environment, "LOCAL_RANK"),
        _read_number(environment, "GROUP_RANK"),
        (local,) * nodes if local * nodes == size else (local, size - local),
        environment.get("MASTER_ADDR", "127.0.0.1"),
        _read_number(environment, "MASTER_PORT"),
        hosts_store=rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
    )


def _read_srun(environment: Mapping[str, str]) -> Launch:
    job, step, rank = (_read_number(environment, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID"))
    tasks = tuple(_expand_tasks(environment))
    # Jobs and steps of one node need ports of their own.
    port = PORTS[(31 * job + step) % len(PORTS)]
    return Launch(
        "srun",
        f"{job}.{step}.{environment.get('SLURM_RESTART_COUNT', '0')}",
        rank,
        _read_number(environment, "SLURM_LOCALID"),
        _read_number(environment, "SLURM_NODEID"),
        tasks,
        environment.get("MASTER_ADDR") or _find_first_node(environment.get("SLURM_STEP_NODELIST", ""), len(tasks)),
        _read_number(environment, "MASTER_PORT") if environment.get("MASTER_PORT") else port,
        hosts_store=rank == 0,
    )


def _expand_tasks(environment: Mapping[str, str]) -> Iterator[int]:
    """Expand `2(x3),1`: two tasks on each of three nodes, and one on the last."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment["SLURM_STEP_NUM_TASKS"]
    for part in text.split(","):
        if not (found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)):
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE={text} is no list of tasks: start the program by srun")
        yield from (int(found[1]),) * int(found[2] or 1)


def _find_first_node(nodes: str, count: int) -> str:
    """Return the first name of a list such as `gpu[07-08,11],login1`, or this machine if the step has one node."""
    if count == 1:
        return "127.0.0.1"  # the name of a node need not be one that the network knows
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _read_number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise ConfigError(f"{name}={text} is no number, but srun or torchrun sets it: start the program by one of them")
    return int(text)


def find_launch_faults(launch: Launch, strategy: str, devices: int, num_nodes: int) -> Iterator[str]:
    """Yield the fault of a training that does not fit how its processes were started.

    Every rank finds the same fault by itself, so none waits for another.
    """
    joint = is_joint(strategy)
    srun = f"srun --nodes={num_nodes} --ntasks-per-node={devices} python train.py …"
    torchrun = f"torchrun --nnodes={num_nodes} --nproc-per-node={devices} train.py …"
    tasks, asked = launch.tasks[0], devices * num_nodes
    remedy = f"trainer.devices={tasks} trainer.num_nodes={len(launch.tasks)}"
    if joint and launch.starter == "python":
        yield (
            f"trainer.strategy={strategy} (trainer=ddp_slurm) trains in processes that srun or torchrun starts, and "
            f"this one was started alone: {srun} or {torchrun}; trainer=ddp starts its processes itself"
        )
    elif joint and not launch.fits(devices, num_nodes):
        even = f"give {remedy}" if set(launch.tasks) == {tasks} else "start as many on each node"
        yield (
            f"trainer.devices={devices} trainer.num_nodes={num_nodes} ask for {asked} process{'es' * (asked > 1)}, but "
            f"{launch.describe()}: {even}, or {srun if launch.starter == 'srun' else torchrun}"
        )
    elif not joint and launch.size > 1:
        yield (
            f"{launch.describe()}, and each would be a whole training: start one, or give trainer=ddp_slurm {remedy} "
            "to train in all of them"
        )
    elif not joint and launch.starter == "torchrun" and strategy != "auto":
        yield "trainer=ddp starts its processes itself: start it by python, not by torchrun"


def find_sweep_faults(launch: Launch, cfg: DictConfig) -> Iterator[str]:
    """Yield the fault of a sweep whose jobs would not have the ranks that their trainer asks for.

    A job of submitit is a step of SLURM with the tasks of the launcher. With any other launcher, a job is one process.
    """
    launcher = OmegaConf.select(cfg, "hydra.launcher")
    started = Launch()
    if "submitit" in str(launcher.get("_target_")):
        tasks, nodes = (launcher.get(key) for key in ("tasks_per_node", "nodes"))
        started = Launch("srun", tasks=(int(tasks or 1),) * int(nodes or 1))
    if launch.size > 1:
        yield (
            f"{launch.describe()}, and each would be a whole sweep: start one; its jobs get processes of their own by "
            "hydra/launcher=slurm hydra.launcher.tasks_per_node=… hydra.launcher.nodes=… trainer=ddp_slurm"
        )
    else:
        yield from find_launch_faults(started, *read_ranks(cfg))


def read_ranks(cfg: DictConfig) -> tuple[str, int, int]:
    """Return strategy, devices and nodes of a configuration that is not checked yet; its check names wrong values."""
    found: dict[str, Any] = {}
    for key in ("strategy", "devices", "num_nodes"):
        with suppress(OmegaConfBaseException):
            found[key] = OmegaConf.select(cfg, f"trainer.{key}")
    counts = (found.get(key) for key in ("devices", "num_nodes"))
    devices, nodes = (count if type(count) is int and count > 0 else 1 for count in counts)
    return str(found.get("strategy") or "auto"), devices, nodes


def is_joint(strategy: str) -> bool:
    """Return whether a strategy trains in processes that srun or torchrun started."""
    return strategy.startswith("ddp") and not strategy.startswith("ddp_spawn")
