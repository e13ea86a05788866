"""Where slides are worked on: in this process, or by workers of dask.distributed; the choices of `conf/cluster`."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from panda.app.signals import hold_signals
from panda.errors import INSTALL_CLUSTER, PandaError
from panda.settings import Count, Names, Settings, Text, count_cores, rule

if TYPE_CHECKING:  # an optional package, which is slow to import
    from distributed import Client, SpecCluster

log = logging.getLogger(__name__)

LOGS = ".workers"
"""Folder of an output for the logs of the jobs of its workers."""
_CONNECT_S = 10
_LOOPBACK = "127.0.0.1"
"""Where the processes of this machine listen: they run the code that they receive, so no other machine reaches them."""
_MOST_STARTS = 3
"""Times that workers of this machine are started, if one ends before it is there."""
_POLL_S = 10.0
"""Seconds between two looks at the workers: whether one is lost."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that dask sets to 1 for its workers."""
_LOG = "DASK_LOGGING__DISTRIBUTED"
"""Level of the messages of a process; a worker reads it when it imports dask, before it gets a configuration."""
_CONFIG: dict[str, Any] = {
    # The driver counts the deaths of workers for each slide, and submits it again.
    "distributed.scheduler.allowed-failures": 0,
    # dask gives up a worker that was killed and is not back after this time, although it is about to start again.
    "distributed.deploy.lost-worker-timeout": "60s",
    # A worker that is paused at 80 % of its memory would never run another slide.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.profile.enabled": False,
    f"distributed.nanny.pre-spawn-environ.{_LOG}": "critical",
    "logging": {"distributed": "critical", "distributed.client": "critical"},
}


class ClusterSettings(Settings):
    """Where slides are worked on; see the derived classes."""

    node: ClassVar[str] = "cluster"
    packages: ClassVar[tuple[str, ...]] = ()

    @property
    def threads(self) -> int | None:
        """The threads of a worker; None if it decides itself."""
        return None

    @rule
    def _check_packages(self) -> Iterator[str]:
        if absent := [name for name in self.packages if importlib.util.find_spec(name) is None]:
            yield f"cluster needs the package {', '.join(absent)}, which is not installed: {INSTALL_CLUSTER}"


class NoCluster(ClusterSettings):
    """Slides are worked on by this process, in turn."""


class WorkerCluster(ClusterSettings, ABC):
    """Slides are worked on by workers of dask."""

    packages: ClassVar[tuple[str, ...]] = ("distributed",)

    def leave_out_gpus(self) -> Self:
        """Return the settings for work that needs no GPU."""
        return self.model_copy(update={"gpus": 0} if "gpus" in type(self).model_fields else {})

    @abstractmethod
    def connect(self, folder: Path) -> AbstractContextManager[Client]:
        """Start workers if it is this process that starts them, and connect to their scheduler.

        No worker that was started here is left at the end.

        Args:
            folder: The output; the logs of jobs go to a folder in it.

        Raises:
            PandaError: If the scheduler cannot be reached, or refuses the jobs.
        """

    def check_workers(self) -> None:
        """Raise a PandaError if there will never be a worker; it is called while none has come yet."""


class LocalCluster(WorkerCluster):
    """Worker processes of this machine, which share GPUs: the first so many, or all."""

    workers: Count | None = None
    gpus: int | None = Field(default=None, ge=0, description="null is all of this machine")

    @property
    def worker_count(self) -> int:
        """The number of workers."""
        return self.workers or len(self._list_gpus()) or max(1, count_cores() // 2)

    @property
    def threads(self) -> int | None:
        """An equal share of the cores."""
        return max(1, count_cores() // self.worker_count)

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[Client]:
        """See `WorkerCluster.connect`."""
        _import_quietly()
        from distributed import Client, Nanny, Scheduler, SpecCluster  # noqa: PLC0415

        gpus, variables = self._list_gpus() or [""], dict.fromkeys(_THREADS, str(self.threads))
        spec = {}
        for number in range(self.worker_count):
            own = variables | {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]}
            options = {"host": _LOOPBACK, "nthreads": 1, "memory_limit": 0, "env": own}
            spec[number] = {"cls": Nanny, "options": options}
        options = {"host": _LOOPBACK, "dashboard_address": f"{_LOOPBACK}:0"}
        with hold_signals():  # a cluster that is interrupted while it starts cannot be closed
            started = _start_cluster(
                lambda: SpecCluster(workers=spec, scheduler={"cls": Scheduler, "options": options})
            )
        with (
            started as cluster,
            _renew_workers(cluster, self.worker_count),
            Client(cluster) as client,
        ):
            yield client

    def _list_gpus(self) -> list[str]:
        """Return the names of the GPUs, as CUDA_VISIBLE_DEVICES takes them."""
        if self.gpus == 0:
            return []
        import torch  # noqa: PLC0415  (an audit does not wait for it)

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        return names[: torch.cuda.device_count()][: self.gpus]


class SlurmCluster(WorkerCluster):
    """Workers in jobs of SLURM, submitted by dask-jobqueue."""

    packages: ClassVar[tuple[str, ...]] = ("distributed", "dask_jobqueue")

    workers: Count
    partition: Text | None = None
    time: Text
    cores: Count
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?([KMGT]i?)?B$", description="a number with a unit, 16GB")]
    gpus: int = Field(default=0, ge=0)
    directives: Names = ()
    prologue: Names = ()
    interface: Text | None = None
    local_folder: Text | None = None

    @property
    def threads(self) -> int | None:
        """The cores of a job."""
        return self.cores

    @rule
    def _check_command(self) -> Iterator[str]:
        if shutil.which("sbatch") is None:
            yield "cluster=slurm: there is no command sbatch here: start this on a login node, or give cluster=local"

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[Client]:
        """See `WorkerCluster.connect`."""
        _import_quietly()
        from dask_jobqueue.slurm import SLURMCluster  # noqa: PLC0415
        from distributed import Client  # noqa: PLC0415

        threads = [f"export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON__{name}={self.cores}" for name in _THREADS]
        gpus = [f"--gpus={self.gpus}"] if self.gpus else []
        with SLURMCluster(
            n_workers=0,
            cores=1,
            processes=1,
            job_cpu=self.cores,
            memory=self.memory,
            queue=self.partition,
            walltime=self.time,
            job_name="panda",
            job_extra_directives=[*gpus, *self.directives],
            job_script_prologue=[f"export {_LOG}=error", *threads, *self.prologue],
            log_directory=str((folder / LOGS).absolute()),
            local_directory=self.local_folder,
            interface=self.interface,
            python=sys.executable,
            # SLURM limits the memory.
            worker_extra_args=["--memory-limit", "0"],
            scheduler_options={"dashboard_address": ":0"},
        ) as cluster:
            try:
                self._check_job(cluster.job_script())
            except PandaError:
                (folder / LOGS).rmdir()
                raise
            cluster.scale(jobs=self.workers)

            with _renew_workers(cluster, self.workers), Client(cluster) as client:
                yield client

    def _check_job(self, script: str) -> None:
        """Let sbatch check the job without submitting it; dask would not pass on its message."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(script)
            file.flush()
            command = ["sbatch", "--test-only", file.name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PandaError(
                f"SLURM refuses the jobs of cluster=slurm: {' '.join(done.stderr.split())}; correct cluster.partition, "
                "time, cores, memory, gpus or directives (sinfo shows the partitions)"
            )

    def check_workers(self) -> None:
        """See `WorkerCluster.check_workers`."""
        command = ["squeue", "--me", "--noheader", "--name=panda", "--format=%T"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode and not done.stdout.strip():
            raise PandaError(
                f"the jobs of cluster=slurm ended before their workers reached this process: see the logs in {LOGS} of "
                "the output; if they cannot reach this machine, give cluster.interface, or start this inside a job"
            )


class SchedulerAddress(WorkerCluster):
    """A scheduler of dask that runs already, with its workers."""

    address: Text

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[Client]:
        """See `WorkerCluster.connect`."""
        _import_quietly()
        from distributed import Client  # noqa: PLC0415

        try:
            client = Client(self.address, timeout=_CONNECT_S)
        except (OSError, TimeoutError, ValueError) as error:
            raise PandaError(
                f"{self.setting('address')}: no dask scheduler answers there within {_CONNECT_S} s ({error}): start "
                "one (dask scheduler), or correct the address; it looks like tcp://host:8786"
            ) from error
        with client:
            yield client


def _start_cluster(start: Callable[[], SpecCluster]) -> SpecCluster:
    """Start workers of this machine, again if one ends while it starts, because dask then ends all of them."""
    for _ in range(_MOST_STARTS - 1):
        with contextlib.suppress(RuntimeError):
            return start()
    try:
        return start()
    except RuntimeError as error:
        reason = f"{error} {error.__cause__ or ''}".strip()
        raise PandaError(f"the workers of cluster=local do not start ({reason}): give fewer cluster.workers") from error


@contextlib.contextmanager
def _renew_workers(cluster: SpecCluster, count: int) -> Iterator[None]:
    """Keep the number of workers: dask notices that one is lost, and starts another only when it is asked to."""
    from tornado.ioloop import PeriodicCallback  # noqa: PLC0415

    loop, renewal = cluster.loop, PeriodicCallback(lambda: cluster.scale(count), _POLL_S * 1000)
    assert loop is not None  # the cluster has started
    loop.add_callback(renewal.start)
    try:
        yield
    finally:
        loop.add_callback(renewal.stop)


def _import_quietly() -> None:
    """Import dask with the settings of `_CONFIG`, which its workers get too."""
    import dask  # noqa: PLC0415

    dask.config.set(_CONFIG)
    import distributed  # noqa: F401, PLC0415

    for name in ("distributed", "distributed.client", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
