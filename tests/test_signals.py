"""Signals end a job cleanly, and a launcher that has handlers of its own gets the signal afterwards."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import FrameType

import pytest
from omegaconf import DictConfig

from panda.app.entry_point import exit_status, run_guarded
from panda.app.signals import STOPPING, handle_signals, hold_signals, name_signal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sends signals")


@pytest.fixture
def happened() -> Iterator[list[str]]:
    """Handlers such as those of submitit, and what they and the job did."""
    happened: list[str] = []

    def ignore(number: int, frame: FrameType | None) -> None:
        happened.append("ignored")

    def start_again(number: int, frame: FrameType | None) -> None:
        happened.append("queued")
        if "refuse" in happened:
            raise RuntimeError("timed-out too many times")
        sys.exit(144)

    before = {number: signal.getsignal(number) for number in STOPPING}
    signal.signal(signal.SIGTERM, ignore)
    signal.signal(signal.SIGUSR2, start_again)
    yield happened
    for number, handler in before.items():
        signal.signal(number, handler)


def run_job(happened: list[str], *numbers: int) -> object:
    def job(cfg: DictConfig) -> float:
        handle_signals()  # as a training does
        try:
            for number in numbers:
                os.kill(os.getpid(), number)
            return 0.5
        finally:
            happened.append("stopped")

    return run_guarded(job, DictConfig({"debug": False, "run_dir": "absent"}))


def test_hold_signals_delivers_at_the_end_and_to_no_child() -> None:
    children: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with hold_signals():
            os.kill(os.getpid(), signal.SIGINT)
            children.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

    with pytest.raises(KeyboardInterrupt):
        start()
    (child,) = children
    child.send_signal(signal.SIGINT)
    child.communicate(b"\n")
    assert child.returncode == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_guard_gives_signal_to_launcher_after_clean_stop(happened: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_job(happened, signal.SIGUSR2)
    assert end.value.code == 144
    assert happened == ["stopped", "queued"]
    assert name_signal() == "SIGUSR2"


def test_guard_leaves_sigterm_to_launcher(happened: list[str]) -> None:
    assert run_job(happened, signal.SIGTERM) == 0.5
    assert happened == ["ignored", "stopped"]
    assert name_signal() == ""


def test_guard_launcher_that_does_not_requeue_gives_nan(happened: list[str]) -> None:
    happened.append("refuse")
    found = run_job(happened, signal.SIGUSR2)
    assert isinstance(found, float)
    assert math.isnan(found)
    assert happened == ["refuse", "stopped", "queued"]
    assert exit_status() == 1


def test_guard_signal_without_launcher_interrupts(happened: list[str]) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt):
        run_job(happened, signal.SIGUSR2)
    assert happened == ["stopped"]
