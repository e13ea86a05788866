"""Markers and fixtures of all tests."""

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import settings

import panda  # noqa: F401 (before a test imports albumentations)
from panda.app.entry_point import forget_refusals
from panda.app.signals import stop_on_signals
from tests.slurm import Slurm, SlurmAbsentError, start_slurm

# Property tests take the same examples each time; `--hypothesis-profile=default` searches for others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    # Small tensors gain little by a second thread, and lose much if another process wants its core.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    """Let no test see the overrides, refusals, signals or log file of a job that another ran in this process."""
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    forget_refusals()
    with stop_on_signals():  # it forgets those that an earlier job got
        pass
    log = logging.getLogger("panda")
    for handler in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
        handler.close()
        log.removeHandler(handler)


@pytest.fixture(scope="module", autouse=True)
def removed_folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the folders that the tests of a module share at its end, unless one of them failed."""
    failed, parent = request.session.testsfailed, tmp_path_factory.getbasetemp()
    others = set(parent.iterdir())
    yield
    if request.session.testsfailed == failed:
        for folder in set(parent.iterdir()) - others:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def panda_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Return pytest's log of a test, which the package's loggers reach after an entry point has set them up too."""
    monkeypatch.setattr(logging.getLogger("panda"), "propagate", True)
    return caplog


@pytest.fixture(scope="session")
def glas() -> Path:
    """Return the folder of real H&E slides in PANDA's layout."""
    root = SHARED / "glas_wsi"
    if not root.is_dir():
        pytest.skip(f"the real slides are not there: {root}")
    return root


@pytest.fixture(scope="session")
def odd_slides() -> Path:
    """Real slides with oddities: one level, no µm/px, nonsense µm/px, unopenable."""
    root = SHARED / "wsi"
    if not root.is_dir():
        pytest.skip(f"the real slides are not there: {root}")
    return root


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Return a running SLURM of two nodes on this machine."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(start_slurm())
        except SlurmAbsentError as error:
            pytest.skip(f"no SLURM can run here: {error}")
        yield running


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a size (`600k`, `120m`) and gives its folder."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
