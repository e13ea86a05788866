"""Locks on a file system that has none, which `fcntl.flock` is made to say: files stand for them."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from panda import soft_lock
from panda.errors import LockedError, PandaError
from panda.files import hold_lock, is_locked
from panda.soft_lock import Holder
from tests.lock_checks import check_second_thread_waits, take_lock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux identifies processes of other locks")

FILES = ".run.lock.holders"


@pytest.fixture(autouse=True)
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", _refuse(errno.ENOTSUP))
    times = {"POLL": 0.01, "HEARTBEAT": 0.05, "STALE": 0.5, "WATCH": 0.2, "PATIENCE": 0.1}
    for name, value in times.items():
        monkeypatch.setattr(soft_lock, f"{name}_SECONDS", value)


def _refuse(number: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def _write_holder(folder: Path, *, age: float = 0.0, **changes: int | str) -> Path:
    """Write what a process leaves that is killed while it holds the lock."""
    (folder / FILES).mkdir()
    path = folder / FILES / "7"
    path.write_bytes(Holder.describe_self().model_copy(update=changes).format_record())
    os.utime(path, (then := time.time() - age, then))
    return path


def _list_files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / FILES))


@pytest.mark.parametrize("name", ["ENOSYS", "ENOTSUP", "ENOLCK", "EOPNOTSUPP"])
def test_hold_lock_without_locks_of_the_system_uses_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("fcntl.flock", _refuse(getattr(errno, name)))
    take_lock(tmp_path / "run")
    assert _list_files(tmp_path) == ["1"]


def test_hold_lock_other_error_of_the_system_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", _refuse(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        take_lock(tmp_path / "run")


@pytest.mark.parametrize(
    ("age", "changes", "held"),
    [
        (0.0, {}, True),
        (0.0, {"started": 1}, False),
        (0.0, {"machine": "another"}, True),
        (600.0, {"machine": "another"}, False),
    ],
)
def test_is_locked_soft_lock_is_only_looked_at(
    tmp_path: Path, age: float, changes: dict[str, int | str], held: bool
) -> None:
    _write_holder(tmp_path, age=age, **changes)
    assert is_locked(tmp_path / "run") == held
    assert _list_files(tmp_path) == ["7"]


def test_soft_lock_held_names_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "run"):
        with pytest.raises(LockedError, match=rf"run: another run holds its lock \(process {os.getpid()} of "):
            take_lock(tmp_path / "run")
        assert _list_files(tmp_path) == ["1"]
    take_lock(tmp_path / "run")
    assert _list_files(tmp_path) == ["2"]


def test_soft_lock_second_thread_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_second_thread_waits(tmp_path / "run", caplog)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"pid": 2**22 + 1}, "gone"), ({"started": 1}, "its number belongs to a later process")],
)
def test_soft_lock_of_ended_process_is_taken_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, int], why: str
) -> None:
    _write_holder(tmp_path, age=0.0, **changes)
    take_lock(tmp_path / "run")
    assert "took over the lock of a run that has ended" in caplog.text, why


@pytest.mark.parametrize("age", [0.0, 1e6], ids=["touched", "suspended"])
def test_soft_lock_of_running_process_is_never_taken(tmp_path: Path, age: float) -> None:
    _write_holder(tmp_path, age=age)
    with pytest.raises(LockedError):
        take_lock(tmp_path / "run")


def test_soft_lock_of_zombie_is_taken(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = soft_lock._read_process(child.pid)
        assert started is not None
        path = _write_holder(tmp_path, pid=child.pid, started=started.started)
        with pytest.raises(LockedError):
            take_lock(tmp_path / "run")
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        take_lock(tmp_path / "run")
    assert not path.exists()


def test_soft_lock_of_other_machine_ends_when_it_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _write_holder(tmp_path, machine="other", host="node7")
    with pytest.raises(LockedError, match=r"of node7 since .*; a lock ends \d minutes after the last sign of life"):
        take_lock(tmp_path / "run")
    os.utime(path, (0, 0))
    started = time.monotonic()
    take_lock(tmp_path / "run")
    assert time.monotonic() - started > soft_lock.WATCH_SECONDS
    assert "no sign of life from it, watching" in caplog.text
    assert "took over the lock of a run that has ended (process" in caplog.text


def test_soft_lock_of_machine_with_a_slow_clock_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_lock, "WATCH_SECONDS", 20.0)  # far more than between two beats, on a busy machine too
    path = _write_holder(tmp_path, machine="other")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            os.utime(path, (then := time.time() - 1000, then))

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(LockedError):
            take_lock(tmp_path / "run")
    finally:
        ended.set()
        heart.join()


def test_soft_lock_that_was_taken_over_stops_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def lose_lock() -> None:
        with hold_lock(tmp_path / "run"):
            (tmp_path / FILES / "2").write_bytes(b"released\n")
            (tmp_path / FILES / "1").unlink()
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        lose_lock()
    assert "another run took over the lock of this one" in caplog.text
    assert _list_files(tmp_path) == ["2"]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_soft_lock_folder_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    (target := tmp_path / "other").mkdir()
    if kind == "link":
        (tmp_path / FILES).symlink_to(target)
    else:
        (tmp_path / FILES).write_text("precious")
    with pytest.raises(PandaError, match=f"{FILES} is no plain folder"):
        take_lock(tmp_path / "run")
    assert not list(target.iterdir())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_soft_lock_forked_child_does_not_release(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "run"):
        if (child := os.fork()) == 0:
            status = 1
            try:
                with hold_lock(tmp_path / "run", wait=False):
                    pass
            except LockedError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(LockedError):
            take_lock(tmp_path / "run")


def _work(folder: Path, machine: str) -> None:
    """Hold the lock again and again; end with status 3 if another living process holds it too."""
    logging.disable()
    if machine:
        soft_lock._identify_machine = lambda: machine  # type: ignore[assignment]
    inside = folder / "inside"
    while not (folder / "end").exists():
        with hold_lock(folder / "run"):
            try:
                inside.touch(exist_ok=False)
            except FileExistsError:
                other = inside.read_text()
                state = soft_lock._read_process(int(other)) if other else None
                if state and not state.is_dead:
                    os._exit(3)
            inside.write_text(str(os.getpid()))
            time.sleep(random.random() * 0.002)
            inside.unlink()
    os._exit(0)


def _start_worker(folder: Path, foreign: bool) -> int:
    if (pid := os.fork()) == 0:
        try:
            _work(folder, f"machine {os.getpid()}" if foreign else "")
        finally:
            os._exit(4)
    return pid


@pytest.mark.parametrize("foreign", [False, True], ids=["one machine", "a machine each"])
def test_soft_lock_killed_anywhere_has_one_holder(tmp_path: Path, foreign: bool) -> None:
    alive, statuses = {_start_worker(tmp_path, foreign) for _ in range(6)}, set()
    for _ in range(30):
        time.sleep(0.02)
        os.kill(killed := random.choice(sorted(alive)), signal.SIGKILL)
        alive.remove(killed)
        statuses.add(os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]))
        alive.add(_start_worker(tmp_path, foreign))
    (tmp_path / "end").touch()
    statuses |= {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in alive}
    assert statuses == {0, -signal.SIGKILL}
    assert len(_list_files(tmp_path)) == 1


@pytest.mark.parametrize("ignored", [False, True])
def test_interrupt_main_thread_stops_a_process_in_the_background_too(ignored: bool) -> None:
    program = f"""
import signal, threading, time
from panda.soft_lock import interrupt_main_thread

def stop(*_):
    raise KeyboardInterrupt

if {ignored}:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, stop)
threading.Timer(0.1, interrupt_main_thread).start()
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("stopped")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert ran.stdout == "stopped\n"
