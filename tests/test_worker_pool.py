"""Work in processes beside this one: results, errors and logs; death of a worker, of the pool and of the parent."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from panda.data import worker_pool
from panda.data.worker_pool import WorkerPool
from panda.errors import ExhaustedError, PandaError

log = logging.getLogger("panda.test")
REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys
from pathlib import Path
from panda.data.worker_pool import WorkerPool
from tests.test_worker_pool import work

if __name__ == "__main__":
    with WorkerPool(work, 1, "") as pool:
        pool.submit(("write", Path(sys.argv[1]))).result()
"""


class _Odd(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def work(item: tuple[str, Path]) -> int:
    what, path = item
    if what == "warn":
        log.warning("a note on %s", path)
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "write":
        try:
            path.write_text(str(os.getpid()))
            for _ in range(6000):
                time.sleep(0.01)
        finally:
            path.with_suffix(".clean").touch()
    elif what == "odd":
        raise _Odd("cannot", "be unpickled")
    elif what == "full":
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    elif what == "memory":
        raise PandaError("damaged") from MemoryError()
    return os.getpid()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for(path: Path) -> int:
    until = time.monotonic() + 120
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    return int(path.read_text())


@pytest.mark.parametrize("workers", [0, 1])
def test_worker_pool_passes_on_results_errors_and_logs(
    tmp_path: Path, workers: int, panda_log: pytest.LogCaptureFixture
) -> None:
    with WorkerPool(work, workers, "") as pool:
        assert (pool.submit(("warn", tmp_path)).result() == os.getpid()) is (workers == 0)
        with pytest.raises(_Odd if workers == 0 else RuntimeError, match="cannot be unpickled"):
            pool.submit(("odd", tmp_path)).result()
        with pytest.raises(OSError, match="No space left") as full:
            pool.submit(("full", tmp_path)).result()
        assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(tmp_path))
        with pytest.raises(PandaError if workers == 0 else ExhaustedError):
            pool.submit(("memory", tmp_path)).result()
    assert [record.getMessage() for record in panda_log.records].count(f"a note on {tmp_path}") >= 1


def test_worker_pool_killed_worker_fails_its_item_only(tmp_path: Path) -> None:
    with WorkerPool(work, 2, "give it more memory") as pool:
        futures = [pool.submit((what, tmp_path)) for what in ("go", "die", "go", "go")]
        with pytest.raises(PandaError, match=r"died \(SIGKILL\); most likely memory ran out; give it more memory"):
            futures[1].result()
        assert all(futures[number].result() for number in (0, 2, 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_worker_pool_waits_for_the_future_before_an_item(tmp_path: Path, workers: int) -> None:
    before: list[Future[None]] = [Future(), Future()]
    before[0].set_exception(PandaError("the disk was away"))
    with WorkerPool(work, workers, "") as pool:
        with pytest.raises(PandaError, match="the disk was away"):
            pool.submit(("die", tmp_path), before[0]).result()
        if workers == 0:
            before[1].set_result(None)
        waiting = pool.submit(("go", tmp_path), before[1])
        assert waiting.done() is (workers == 0)
        if workers:
            before[1].set_result(None)
        assert waiting.result() > 0


def test_worker_pool_that_is_interrupted_ends_its_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_GRACE_S", 40.0)  # on a busy machine, removing a file may take longer
    pids: list[int] = []
    futures: list[Future[int]] = []
    started = [0.0]

    def interrupt() -> None:
        with WorkerPool(work, 1, "") as pool:
            futures.extend(pool.submit(("write", tmp_path / name)) for name in ("w.pid", "never.pid"))
            pids.append(wait_for(tmp_path / "w.pid"))
            for number in (signal.SIGINT, signal.SIGTERM):  # as a terminal and a scheduler do, to all processes
                os.kill(pids[0], number)
            time.sleep(0.2)
            assert is_alive(pids[0])
            started[0] = time.monotonic()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert time.monotonic() - started[0] < 20
    assert not is_alive(pids[0])
    assert (tmp_path / "w.clean").exists(), "a worker removes its unfinished files"
    assert futures[1].cancelled()


def test_worker_pool_ends_soon_after_killed_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "w.pid")]
    with subprocess.Popen(command, cwd=REPOSITORY) as parent:
        pid = wait_for(tmp_path / "w.pid")
        parent.kill()
        parent.wait()
        until = time.monotonic() + 20
        while is_alive(pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert not is_alive(pid)


def test_write_slide_folder_needs_no_torch() -> None:
    """Torch takes seconds and half a gigabyte in each worker."""
    program = "import panda.report.slide_folder, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)
