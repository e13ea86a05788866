"""Run a real SLURM on this machine: one controller and two nodes on loopback addresses, apart from any other.

`python -m tests.slurm` opens a shell in which `sbatch`, `srun` and submitit use it; `python -m tests.slurm COMMAND …`
runs one command there. All of it stops with that process.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("127.0.0.1", "127.0.0.2")
"""Names of the nodes: addresses, because every process must resolve the name of the first one."""

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "setpriv")
_PORTS = range(25_000, 32_000)  # not those of connections, and not 15,000 + job id, which Lightning takes
_START_SECONDS = 60
_STOP_SECONDS = 20
# The nodes claim more CPUs than there are, so that jobs run side by side on a small machine too. The first job id is
# another one each time, because Lightning makes a port of it and two instances may run at once. A requeued job waits
# for `cred_expire`, which is two minutes without that word; one that is started earlier can be ended by SLURM instead,
# because its node still refuses the credentials of the job.
_CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
FirstJobId={first_job}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmdTimeout=30
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
NodeName=DEFAULT CPUs=16 RealMemory=64000 Gres=gpu:{gpus}
NodeName={nodes[0]} NodeHostname={host} NodeAddr={nodes[0]} Port={node_ports[0]}
NodeName={nodes[1]} NodeHostname={host} NodeAddr={nodes[1]} Port={node_ports[1]}
PartitionName=main Nodes=ALL Default=YES MaxTime=10 DefaultTime=5 State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
"""
_GPUS = ("/dev/null", "/dev/zero")  # any two devices: SLURM hands them out, and CUDA does not look at them


class SlurmAbsentError(Exception):
    """SLURM cannot run here; the message says why."""


@dataclass(frozen=True)
class Slurm:
    """A running SLURM.

    Attributes:
        folder: Holds its configuration, logs and sockets; removed at the end.
        environment: Variables of a process that is to use it.
    """

    folder: Path
    environment: dict[str, str] = field(repr=False)

    def run(self, *command: str | Path, cwd: Path | None = None, timeout: float = 60) -> str:
        """Return stdout of a command that must succeed."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}{self.read_logs()}")
        return done.stdout

    def wait_for_jobs(self, timeout: float = 120) -> None:
        """Wait until no job is queued or runs."""
        end = time.monotonic() + timeout
        while queue := self.run("squeue", "--noheader", "--all"):
            if time.monotonic() > end:
                raise TimeoutError(f"jobs after {timeout:.0f} s:\n{queue}{self.read_logs()}")
            time.sleep(0.2)

    def read_logs(self) -> str:
        """Return the ends of the logs of all daemons."""
        return "".join(f"\n{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


@contextmanager
def start_slurm() -> Iterator[Slurm]:
    """Run a SLURM; cancel its jobs, stop it and remove its folder at the end.

    Raises:
        SlurmAbsentError: A program is absent, or this user is not root.
        RuntimeError: The daemons do not start.
    """
    _check_possible()
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path has 107 characters at most
    folder.chmod(0o755)
    slurm = Slurm(folder, _make_environment(folder))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _write_configuration(folder)
        _start_daemons(slurm, daemons)
        yield slurm
    finally:
        _stop(slurm, daemons)
        shutil.rmtree(folder)


def _check_possible() -> None:
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_search_path()) is None]
    if absent:
        raise SlurmAbsentError(f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        raise SlurmAbsentError("slurmctld and slurmd of a test need root")


def _search_path() -> str:
    """Return the paths of programs: Debian's daemons are in /usr/sbin, which is not in every user's PATH."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _make_environment(folder: Path) -> dict[str, str]:
    """Return the variables of this process, without those of a SLURM job that it may be."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    return kept | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _search_path()}


def _write_configuration(folder: Path) -> None:
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    (folder / "state").mkdir()
    controller_port, *node_ports = _find_free_ports(1 + len(NODES))
    text = _CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        folder=folder,
        controller_port=controller_port,
        first_job=random.randrange(1000, 9000),
        node_ports=node_ports,
        nodes=NODES,
        gpus=len(_GPUS),
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(f"Name=gpu File={','.join(_GPUS)}\n")


def _find_free_ports(count: int) -> list[int]:
    free: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("", port))
            free.append(port)
        if len(free) == count:
            return free
    raise RuntimeError(f"fewer than {count} ports of {_PORTS} are free")


def _start_daemons(slurm: Slurm, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Start munged, the controller and the nodes, and wait until the nodes take jobs."""
    folder = slurm.folder
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munged += [f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed"]
    commands = {
        "munged": munged,
        "slurmctld": ["slurmctld", "-D", "-c"],
        **{f"slurmd-{node}": ["slurmd", "-D", "-N", node] for node in NODES},
    }
    end = time.monotonic() + _START_SECONDS
    for name, command in commands.items():
        with (folder / f"{name}.log").open("wb") as log:
            # a daemon ends with this process, if that is killed too
            daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *command],
                    env=slurm.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        while name == "munged" and not (folder / "munge.socket").exists():
            _wait_a_moment(slurm, daemons, end)
    while _count_idle_nodes(slurm) < len(NODES):
        _wait_a_moment(slurm, daemons, end)


def _count_idle_nodes(slurm: Slurm) -> int:
    command = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    done = subprocess.run(command, env=slurm.environment, capture_output=True, text=True, timeout=60, check=False)
    return len(done.stdout.split()) if done.returncode == 0 else 0


def _wait_a_moment(slurm: Slurm, daemons: list[subprocess.Popen[bytes]], end: float) -> None:
    time.sleep(0.1)
    if time.monotonic() > end or any(daemon.poll() is not None for daemon in daemons):
        raise SlurmAbsentError(f"SLURM did not start within {_START_SECONDS} s:{slurm.read_logs()}")


def _stop(slurm: Slurm, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Stop the daemons in the reverse order of their start, and then the jobs that outlive them."""
    for daemon in reversed(daemons):
        daemon.terminate()
    for daemon in daemons:
        try:
            daemon.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    while processes := find_processes(slurm.environment["SLURM_CONF"]):
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def find_processes(configuration: str) -> list[int]:
    """Return other processes that use a configuration: jobs, and the daemons that started them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:  # it ended
            continue
        if f"SLURM_CONF={configuration}".encode() in variables and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def main() -> int:
    """Run a command, or else a shell, in the environment of a SLURM."""
    command = sys.argv[1:] or [os.environ.get("SHELL", "/bin/sh")]
    try:
        with start_slurm() as slurm:
            return subprocess.run(command, env=slurm.environment, check=False).returncode
    except SlurmAbsentError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
