"""What Lightning is to know of its processes, instead of the variables that it would read itself.

Lightning takes the variables of SLURM and of job scripts for its own. Inside a job, processes that it spawns would have
SLURM's rank, or a port that another job uses. At the start of a training it looks for SLURM again: each process
would print advice, and search for checkpoints that this package does not write.
"""

from __future__ import annotations

import logging
import multiprocessing
import socket

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.rank_zero import rank_zero_only

from panda.app.ranks import Launch

SLURMEnvironment.detect = staticmethod(lambda: False)  # type: ignore[method-assign]
logging.getLogger("lightning_fabric.utilities.distributed").setLevel(logging.WARNING)  # a line of each process


class SpawnEnvironment(LightningEnvironment):
    """One process, and those that Lightning spawns on this machine; a job script can set nothing."""

    @property
    def creates_processes_externally(self) -> bool:
        """See the base class."""
        return False

    @property
    def main_address(self) -> str:
        """See the base class."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """A free port, the same in all processes."""
        if self._main_port == -1:
            with socket.create_server(("127.0.0.1", 0)) as server:
                self._main_port = server.getsockname()[1]
        return self._main_port

    def local_rank(self) -> int:
        """Return the number of a spawned process, which Lightning passes in a variable; 0 in the first one."""
        return super().local_rank() if multiprocessing.parent_process() else 0

    def node_rank(self) -> int:
        """See the base class."""
        return 0


class RankEnvironment(ClusterEnvironment):
    """The ranks that srun or torchrun started."""

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self.launch = launch

    @property
    def creates_processes_externally(self) -> bool:
        """See the base class."""
        return True

    @property
    def main_address(self) -> str:
        """See the base class."""
        return self.launch.address

    @property
    def main_port(self) -> int:
        """See the base class."""
        return self.launch.port

    @staticmethod
    def detect() -> bool:
        """See the base class."""
        return False

    def world_size(self) -> int:
        """See the base class."""
        return self.launch.size

    def set_world_size(self, size: int) -> None:
        """Keep the number of ranks, which was checked before."""

    def global_rank(self) -> int:
        """See the base class."""
        return self.launch.rank

    def set_global_rank(self, rank: int) -> None:
        """Keep the rank, and let Lightning's messages know it."""
        rank_zero_only.rank = self.launch.rank  # type: ignore[attr-defined]

    def local_rank(self) -> int:
        """See the base class."""
        return self.launch.local_rank

    def node_rank(self) -> int:
        """See the base class."""
        return self.launch.node
