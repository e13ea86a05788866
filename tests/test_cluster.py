"""Workers of dask: killed ones and killers, refusals, an interrupted command, a scheduler that is there already."""

from __future__ import annotations

import contextlib
import multiprocessing.spawn
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from distributed import Client
from omegaconf import OmegaConf

from panda.app import cluster as cluster_settings
from panda.app.cluster import LocalCluster, SchedulerAddress, SlurmCluster
from panda.app.cluster_map import MOST_DEATHS, SlideCluster, open_cluster
from panda.errors import PandaError
from panda.soft_lock import Holder
from tests.letters import Letters

_REPOSITORY = Path(__file__).resolve().parents[1]
_PAGE = _REPOSITORY / "docs" / "cluster.md"


def test_slide_cluster_killer_fails_and_neighbours_are_done(
    tmp_path: Path, panda_log: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    items = ["a", "!", "b", "?", *"cdefgh"]
    present = Holder.describe_self()
    killed = present.model_copy(update={"started": 1})
    for name, holder in {".panda-0": killed, ".panda-0.answer": killed, ".panda-1": present}.items():
        (tmp_path / name).write_bytes(holder.format_record())
    with open_cluster(LocalCluster(workers=2), Letters(log), tmp_path) as cluster:
        assert cluster.facts == "letters"
        found = dict(cluster.map(items))
    assert {item: result for item, result in found.items() if item.isalpha()} == {item: 2 * item for item in "abcdefgh"}
    assert isinstance(found["!"], PandaError)
    assert "3 workers ended while they worked on it" in str(found["!"])
    assert isinstance(found["?"], KeyError)
    assert "a question" in panda_log.text
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len({pid for item, pid in lines if item == "!"}) == MOST_DEATHS
    assert not any(Path(f"/proc/{pid}").exists() for _, pid in lines), "a worker is left"
    assert [path.name for path in tmp_path.glob(".panda*")] == [".panda-1"], "that of a command at work stays"


def test_local_cluster_listens_on_loopback_alone(tmp_path: Path) -> None:
    process = psutil.Process()
    others = set(process.children(recursive=True))  # a SLURM of other tests
    with LocalCluster(workers=1).connect(tmp_path) as client:
        client.wait_for_workers(1)
        started = set(process.children(recursive=True)) - others
        found = [one for each in (process, *started) for one in each.net_connections("inet")]
        listening = [one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN]
    assert len(listening) > 2, "scheduler, nanny and worker"
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.parametrize("workers", [1, 2])
def test_slide_cluster_worker_killed_while_it_loads_is_replaced(tmp_path: Path, workers: int) -> None:
    with open_cluster(LocalCluster(workers=workers), Letters(tmp_path / "log", deaths=1), tmp_path) as cluster:
        assert dict(cluster.map("abc")) == {"a": "aa", "b": "bb", "c": "cc"}
    assert (tmp_path / "death-0").exists()


def test_local_cluster_worker_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    killed.append(child.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with LocalCluster(workers=1).connect(tmp_path) as client:
        client.wait_for_workers(1, timeout=120)
    thread.join()
    assert killed


def test_local_cluster_that_never_starts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.spawn, "get_executable", lambda: "/bin/false")
    with (
        pytest.raises(PandaError, match="workers of cluster=local do not start"),
        LocalCluster(workers=1).connect(tmp_path),
    ):
        pass


def test_slide_cluster_workers_that_all_end_loading_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(PandaError, match="the workers ended before they were ready"),
        open_cluster(LocalCluster(workers=1), Letters(tmp_path / "log", deaths=9), tmp_path),
    ):
        pass


def _list_workers(log: Path) -> list[int]:
    """Return the ids of the processes that worked, after two did."""
    until, found = time.monotonic() + 120, set[int]()
    while len(found) < 2:
        assert time.monotonic() < until, "the workers did not start"
        time.sleep(0.1)
        if log.exists():
            found = {int(line.split()[1]) for line in log.read_text().splitlines() if line.count(" ") == 1}
    return list(found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_slide_cluster_stopped_command_leaves_no_worker(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.letters", str(tmp_path), *["30"] * 4]
    with (tmp_path / "messages").open("w") as messages:
        process = subprocess.Popen(command, cwd=_REPOSITORY, stderr=messages, start_new_session=True)
    workers = _list_workers(tmp_path / "log")
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)  # as a terminal and a scheduler do
    process.wait(timeout=60)
    assert (tmp_path / "messages").read_text().count("Traceback") <= 1, "only that of the command itself"
    until = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until, "a worker is left"
        time.sleep(0.1)


def test_slide_cluster_unreachable_scheduler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_settings, "_CONNECT_S", 1)
    settings = SchedulerAddress(address="tcp://127.0.0.1:9")
    with (
        pytest.raises(PandaError, match=r"cluster\.address=tcp://127\.0\.0\.1:9: no dask scheduler answers"),
        open_cluster(settings, Letters(tmp_path / "log"), tmp_path),
    ):
        pass
    assert not list(tmp_path.iterdir())


def _read_commands(port: int) -> list[list[str]]:
    """Return the words of the commands for dask in docs/cluster.md, at a port of this machine."""
    (block,) = re.findall(r"^```\n(dask scheduler .*?)^```$", _PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = block.replace("HOST", "127.0.0.1").replace("8786", str(port)).splitlines()
    return [shlex.split(line, comments=True) for line in lines]


@contextlib.contextmanager
def _start_scheduler(*threads: int, modules: Path = _REPOSITORY) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a scheduler, and workers with so many threads; give its address and process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (_, *scheduler_words), (_, *worker_words), command = _read_commands(port)
    (address,) = (word.removeprefix("cluster.address=") for word in command if word.startswith("cluster.address="))
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(_start_dask(*scheduler_words, "--host", "127.0.0.1", PYTHONPATH=str(modules)))
        for count in threads:
            stack.enter_context(_start_dask(*worker_words, f"--nthreads={count}", PYTHONPATH=str(modules)))
        yield address, scheduler


@contextlib.contextmanager
def _start_dask(part: str, *options: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a scheduler or a worker in another folder."""
    environment = os.environ | {"DASK_LOGGING__DISTRIBUTED": "critical", "PYTHONPATH": str(_REPOSITORY)} | variables
    command = [sys.executable, "-m", f"distributed.cli.dask_{part}", *options, "--no-dashboard"]
    process = subprocess.Popen(command, cwd="/", env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def test_slide_cluster_runs_on_a_scheduler_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the workers started elsewhere
    with _start_scheduler(1, 1) as (address, scheduler):
        settings = SchedulerAddress(address=address)
        with open_cluster(settings, Letters(Path("log")), Path()) as cluster:
            assert dict(cluster.map("ab")) == {"a": "aa", "b": "bb"}
        assert [path.name for path in tmp_path.iterdir()] == ["log"]
        with (
            pytest.raises(PandaError, match=r"worker tcp://\S+ cannot work on these slides: another checkpoint"),
            open_cluster(settings, Letters(Path("log"), fault="another checkpoint"), Path()),
        ):
            pass
        with (
            pytest.raises(PandaError, match="the scheduler of the workers is lost"),
            open_cluster(settings, Letters(Path("log")), Path()) as cluster,
        ):
            _kill_at_first(cluster, scheduler)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def _kill_at_first(cluster: SlideCluster[str], scheduler: subprocess.Popen[bytes]) -> None:
    """Kill the scheduler when the first slide is done."""
    for _ in cluster.map(["a", "30", "30", "b"]):
        scheduler.kill()


def test_slide_cluster_worker_with_two_threads_is_refused(tmp_path: Path) -> None:
    with (
        _start_scheduler(2) as (address, _),
        pytest.raises(PandaError, match=r"has 2 threads.*start it with --nthreads 1"),
        open_cluster(SchedulerAddress(address=address), Letters(tmp_path / "log"), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("command", "files"),
    [("infer", {"slides", "labels", "groups", "output"}), ("features", {"slides", "output"})],
)
def test_names_of_job_folders_have_no_cluster_and_no_files(command: str, files: set[str]) -> None:
    folders = OmegaConf.load(_REPOSITORY / "conf" / "hydra_folders" / f"{command}.yaml")
    excluded = OmegaConf.select(folders, "hydra.job.config.override_dirname.exclude_keys")
    kinds = (LocalCluster, SlurmCluster, SchedulerAddress)
    assert {"cluster", *(f"cluster.{key}" for kind in kinds for key in kind.model_fields)} | files <= set(excluded)


def test_slide_cluster_worker_without_package_is_refused(tmp_path: Path) -> None:
    modules, out = tmp_path / "modules", tmp_path / "out"
    modules.mkdir()
    out.mkdir()
    (modules / "panda.py").write_text("raise ModuleNotFoundError('No module named panda')\n")
    with (
        _start_scheduler(1, modules=modules) as (address, _),
        pytest.raises(PandaError, match=r"a worker has no panda-wsi, .*No module named panda"),
        open_cluster(SchedulerAddress(address=address), Letters(out / "log"), out),
    ):
        pass
    assert not list(out.iterdir())


def test_slide_cluster_late_worker_that_does_not_fit_is_retired(
    tmp_path: Path, panda_log: pytest.LogCaptureFixture
) -> None:
    with (
        _start_scheduler(1) as (address, _),
        Client(address) as client,
        open_cluster(SchedulerAddress(address=address), Letters(tmp_path / "log"), tmp_path) as cluster,
        contextlib.ExitStack() as stack,
    ):
        found = dict[str, str]()
        for item, result in cluster.map("abcdef"):
            if not found:
                late = stack.enter_context(_start_dask("worker", address, "--nthreads=1", LETTERS_FAULT="other code"))
                client.wait_for_workers(2, timeout=120)
            found[item] = result
        late.wait(timeout=60)
    assert found == {item: 2 * item for item in "abcdef"}
    assert panda_log.text.count("other code; it is retired, and the others do its slides") == 1


def test_slide_worker_with_other_facts_refuses_slides(tmp_path: Path) -> None:
    with open_cluster(LocalCluster(workers=1), Letters(tmp_path / "log"), tmp_path) as cluster:
        cluster.facts = "numbers"
        with pytest.raises(PandaError, match=r"worker tcp://\S+ would give other results than the first one"):
            list(cluster.map("a"))
