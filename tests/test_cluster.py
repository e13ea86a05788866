"""Workers of dask: killed ones and killers, refusals, an interrupted command, a scheduler that is there already."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from omegaconf import OmegaConf

from panda.app import cluster as cluster_settings
from panda.app.cluster import LocalCluster, SchedulerAddress, SlurmCluster
from panda.app.cluster_map import MOST_DEATHS, SlideCluster, open_cluster
from panda.errors import PandaError
from tests.letters import Letters

_REPOSITORY = Path(__file__).resolve().parents[1]


def test_slide_cluster_killer_fails_and_neighbours_are_done(
    tmp_path: Path, panda_log: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    items = ["a", "!", "b", "?", *"cdefgh"]
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
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".panda")]


def test_local_cluster_listens_on_loopback_alone(tmp_path: Path) -> None:
    with LocalCluster(workers=1).connect(tmp_path) as client:
        client.wait_for_workers(1)
        process = psutil.Process()
        found = [one for each in (process, *process.children(recursive=True)) for one in each.net_connections("inet")]
        listening = [one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN]
    assert len(listening) > 2, "scheduler, nanny and worker"
    assert set(listening) == {"127.0.0.1"}


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
    process = subprocess.Popen(command, cwd=_REPOSITORY, stderr=subprocess.DEVNULL)
    workers = _list_workers(tmp_path / "log")
    process.send_signal(number)
    process.wait(timeout=60)
    until = time.monotonic() + 20
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


@contextlib.contextmanager
def _start_scheduler(*threads: int, modules: Path = _REPOSITORY) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a scheduler, and workers with so many threads; give its address and process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    log = {"DASK_LOGGING__DISTRIBUTED": "critical"}
    options: dict[str, Any] = {"cwd": "/", "env": os.environ | log | {"PYTHONPATH": str(modules)}}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", f"--port={port}"]
    processes = [subprocess.Popen([*dask, "--no-dashboard"], **options)]
    for count in threads:
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, f"--nthreads={count}"]
        processes.append(subprocess.Popen([*worker, "--no-dashboard"], **options))
    try:
        yield address, processes[0]
    finally:
        for process in reversed(processes):
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


def test_cluster_keys_are_not_in_names_of_job_folders() -> None:
    folders = OmegaConf.load(_REPOSITORY / "conf" / "hydra_folders" / "infer.yaml")
    excluded = OmegaConf.select(folders, "hydra.job.config.override_dirname.exclude_keys")
    kinds = (LocalCluster, SlurmCluster, SchedulerAddress)
    assert {"cluster", *(f"cluster.{key}" for kind in kinds for key in kind.model_fields)} <= set(excluded)


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
