"""The connection of ranks: what each notices of the end of another, in two processes."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from panda.app import joint_training, rank_group
from panda.app.joint_training import check_shared, collect_faults
from panda.app.rank_group import RankGroup
from panda.app.rank_meeting import gather, join
from panda.app.ranks import Launch, RankError
from panda.app.software import list_software
from panda.errors import ConfigError, PandaError

SOFTWARE = list_software()


def make_launch(rank: int, port: int) -> Launch:
    return Launch("srun", "test", rank, rank, 0, (2,), "127.0.0.1", port, hosts_store=rank == 0)


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def start_other(other: Callable[[RankGroup], None], rank: int = 1) -> Iterator[tuple[RankGroup, Any]]:
    """Connect this process to a forked one, which runs `other` as the given rank."""
    port = find_port()

    def connect(number: int) -> RankGroup:
        launch = make_launch(number, port)
        return join(launch, 20, faults=["a", "b"], software=SOFTWARE) if number else gather(launch, 20)

    process = multiprocessing.get_context("fork").Process(target=lambda: other(connect(rank)))
    process.start()
    group = connect(1 - rank)
    try:
        yield group, process
    finally:
        group.release()
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        group.end(1)


def sleep(group: RankGroup) -> None:
    time.sleep(60)


def test_ranks_exchange_messages_and_end() -> None:
    def answer(group: RankGroup) -> None:
        message = group.wait()
        group.send("sum", value=message["x"] + message["y"])
        with pytest.raises(RankError):
            group.wait()
        os._exit(10 + (group.status or 0) + group.is_explained)

    with start_other(answer) as (group, process):
        assert group.ask("add", 20, x=1, y=2)[1]["value"] == 3
        group.end(5)
        process.join(20)
        assert process.exitcode == 16


def test_killed_rank_ends_rank_0_with_one_reason() -> None:
    reasons: list[str] = []
    with start_other(sleep) as (group, process):
        group.report = reasons.append
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(RankError, match=r"rank 1 of 2 on .* was killed"), group.watch():
            time.sleep(60)
    assert len(reasons) == 1


def test_killed_rank_explains_error_of_rank_0() -> None:
    with start_other(sleep) as (group, process):
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(RankError, match="rank 1 of 2"), group.watch():
            raise RuntimeError("Connection closed by peer")


def test_failed_rank_is_heard_and_named() -> None:
    def fail(group: RankGroup) -> None:
        group.report_failure("the loss is nan")
        os._exit(int(group._heard.is_set()))

    with start_other(fail) as (group, process):
        with pytest.raises(RankError, match=r"^rank 1 of 2 on \S+: the loss is nan$"), group.watch():
            time.sleep(60)
        process.join(20)
        assert process.exitcode == 1


def test_killed_rank_0_ends_other() -> None:
    with start_other(sleep, rank=0) as (group, process):
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(RankError, match=r"rank 0 of 2 .* ended without a word"):
            group.wait(20)
        assert not group.is_explained


def test_rank_in_endless_operation_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(group: RankGroup) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        time.sleep(60)

    monkeypatch.setattr(rank_group, "GRACE_SECONDS", 0.2)
    with start_other(hang) as (group, process):
        group.end(3)
        process.join(20)
        assert process.exitcode == 3


def test_absent_rank_is_named() -> None:
    with pytest.raises(PandaError, match=r"of 2 ranks that srun started, 1 did not join within 0 s"):
        gather(make_launch(0, find_port()), 0.3)


def test_taken_port_is_named() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PandaError, match=rf"127\.0\.0\.1:{port}: rank 0 cannot listen there .* MASTER_PORT"):
            gather(make_launch(0, port), 5)


def test_absent_rank_0_is_named() -> None:
    with pytest.raises(PandaError, match=r"rank 1 of 2 on \S+ cannot reach rank 0 at 127\.0\.0\.1:\d+ within 1 s"):
        join(make_launch(1, find_port()), 1)


def test_faults_of_other_rank_are_named_once() -> None:
    with start_other(sleep) as (group, _):
        (found,) = collect_faults(group, ["b", "c"])
        assert found.startswith("rank 1 of 2 on ")
        assert found.endswith(": a")
        group.links[0].hello["software"] = {**SOFTWARE, "torch": "1.0"}
        assert f"runs torch 1.0, and rank 0 torch {SOFTWARE['torch']}: " in collect_faults(group, ["a", "b"])[0]


def test_folder_that_other_rank_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(group: RankGroup) -> None:
        os.chdir("/")
        while True:
            joint_training._act(group, group.wait())

    monkeypatch.setattr(joint_training, "_SIGHT_SECONDS", 0.3)
    monkeypatch.chdir(tmp_path)
    folder = Path("runs")
    folder.mkdir()
    with start_other(act) as (group, _):
        check_shared(group, tmp_path / "runs", [tmp_path, tmp_path / "absent"])
        with pytest.raises(ConfigError, match=r"rank 1 of 2 on \S+ does not see runs, but rank 0 does"):
            check_shared(group, folder, [])
    assert not [*folder.iterdir()]
