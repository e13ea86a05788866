"""What holds for every lock of `hold_lock`, with and without locks of the file system."""

import threading
import time
from pathlib import Path

import pytest

from panda.files import hold_lock


def take_lock(path: Path, *, wait: bool = False) -> None:
    with hold_lock(path, wait=wait):
        pass


def check_second_thread_waits(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    order = []

    def wait() -> None:
        take_lock(path, wait=True)
        order.append("second")

    with hold_lock(path):
        second = threading.Thread(target=wait)
        second.start()
        while "another run is at work on it; waiting" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    second.join()
    assert order == ["first", "second"]
