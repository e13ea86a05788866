"""Loader workers of a killed training, and workers that lose a batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAM = """
import multiprocessing, time
import torch.utils.data._utils.worker
from panda.data.loaders import make_train_loader

class Items:
    def __getitem__(self, draw):
        return draw.item

torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 1000.0  # torch's own watch, of five seconds
batches = iter(make_train_loader(Items(), 8, 2, 2))
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(300)
"""


LOSING = """
import multiprocessing.reduction
from panda.data.loaders import make_train_loader
from panda.errors import find_exhaustion

def fail(handle):
    raise RuntimeError("can't start new thread")

class Items:
    def __getitem__(self, draw):
        multiprocessing.reduction.DupFd = fail
        return draw.item

try:
    print(list(make_train_loader(Items(), 8, 2, 2)))
except Exception as error:
    print(find_exhaustion(error))
"""


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_loader_workers_end_soon_after_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + 30
        while any(map(_is_alive, workers)) and time.monotonic() < until:
            time.sleep(0.01)
        assert not any(map(_is_alive, workers))


def test_loader_worker_that_cannot_pass_on_batch_ends_the_pass() -> None:
    """Torch would wait for the batch without end."""
    done = subprocess.run(
        [sys.executable, "-c", LOSING], capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False
    )
    assert "a loader's process cannot pass on its batch: RuntimeError: can't start new thread" in done.stderr
    assert "of a loader's process (ulimit -v, ulimit -u, ulimit -n) are exhausted" in done.stdout
