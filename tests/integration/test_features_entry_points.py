"""Run `python features.py` as a user does: refused, killed, interrupted, twice at once, several encoders."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import panda.app.features  # noqa: F401 - its import is not part of a time below
from panda.data.feature_files import read_feature_file
from panda.files import hold_lock
from tests.integration.entry_points import REPOSITORY, run_entry_point, table
from tests.panda_folder import make_folder
from tests.pyramids import write_pyramid

OWN = ("encoder=test_resnet", "encoder_weights=null", "tile_size=64", "overlap=0.5")
ENGINE = ("engine.device=cpu", "engine.batch_size=4")
NAMES = tuple("abcdef")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with slides."""
    folder = tmp_path_factory.mktemp("features")
    for number, name in enumerate(NAMES):
        image = np.full((384, 384, 3), 244, np.uint8)
        image[60:260, 60:320] = (215, 120, 180 - 10 * number)
        image[90:190:9, 80:300] = (120, 60, 140)
        write_pyramid(folder / "slides" / f"{name}.tiff", image, mpp=0.5)
    return folder


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """Return the folder of a command that nothing disturbed."""
    done = run_entry_point("features", home, "slides=slides", "output=whole", *OWN, *ENGINE)
    assert done.returncode == 0, done.stderr[-3000:]
    return home / "whole"


def start(home: Path, out: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "features.py"), "slides=slides", f"output={out}", *OWN, *ENGINE],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def start_and_hold(home: Path, out: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command and yield it when the first slide has its features. It cannot do the last one before the end."""
    with hold_lock(home / out / f"{NAMES[-1]}.h5"):
        process = start(home, out)
        while not list((home / out).glob("[!.]*.h5")) and process.poll() is None:
            time.sleep(0.005)
        yield process


def read_readme_command() -> list[str]:
    """Return the arguments of the command that the README tells users to type."""
    (command,) = re.findall(r"^python features\.py (.*)$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    return shlex.split(command, comments=True)


def check_same(folder: Path, whole: Path) -> None:
    assert sorted(path.name for path in folder.glob("[!.]*.h5")) == [f"{name}.h5" for name in NAMES]
    for name in NAMES:
        found, expected = (read_feature_file(one / f"{name}.h5") for one in (folder, whole))
        assert found.origin == expected.origin
        assert found.coords is not None
        np.testing.assert_array_equal(found.coords, expected.coords)
        np.testing.assert_allclose(found.features, expected.features, rtol=1e-4, atol=1e-5)
    rows, others = ([row | {"seconds": ""} for row in table(one / "features.csv")] for one in (folder, whole))
    assert rows == others
    assert not list(folder.rglob("*.partial.*"))


def test_features_readme_command_is_refused_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    write_pyramid(tmp_path / "slides" / "a.tiff", np.full((256, 256, 3), 244, np.uint8), mpp=0.5)
    before = time.process_time()
    done = run_entry_point("features", tmp_path, *read_readme_command())
    assert done.returncode == 1
    assert time.process_time() - before < 3
    assert "encoder_weights=cached: the local cache of the hub" in done.stderr
    assert "log in at https://huggingface.co/MahmoodLab/UNI2-h" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["slides"]


def test_features_readme_command_writes_features(home: Path) -> None:
    done = run_entry_point("features", home, *read_readme_command(), *OWN[:3], ENGINE[0])
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(table(home / "out" / "features" / "features.csv")) == len(NAMES)


def test_features_multirun_gives_each_encoder_a_folder(home: Path, whole: Path) -> None:
    given = ("slides=slides/a.tiff", "output=many", *OWN[1:], *ENGINE)
    done = run_entry_point("features", home, "-m", "encoder=test_resnet,test_byobnet", *given)
    assert done.returncode == 0, done.stderr[-3000:]
    files = sorted(path.relative_to(home / "many").as_posix() for path in (home / "many").rglob("[!.]*.h5"))
    assert [re.sub(r".*encoder=(\w+).*/", r"\1/", file) for file in files] == ["test_byobnet/a.h5", "test_resnet/a.h5"]
    found, expected = (read_feature_file(path) for path in (home / "many" / files[1], whole / "a.h5"))
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_features_killed_command_continues(home: Path, whole: Path) -> None:
    with start_and_hold(home, "killed") as process:
        process.kill()
    process.communicate()
    left = {path.stem: path.stat().st_mtime_ns for path in (home / "killed").glob("[!.]*.h5")}
    assert 0 < len(left) < len(NAMES)
    for name in left:
        read_feature_file(home / "killed" / f"{name}.h5")
    done = run_entry_point("features", home, "slides=slides", "output=killed", *OWN, *ENGINE)
    assert done.returncode == 0, done.stderr[-3000:]
    check_same(home / "killed", whole)
    recorded = [name for name in left if (home / "killed" / f"{name}.h5").stat().st_mtime_ns == left[name]]
    assert len(recorded) >= len(left) - 1  # the last file may have been written without its record


@pytest.mark.slow
def test_features_interrupted_command_says_how_to_continue(home: Path, whole: Path) -> None:
    with start_and_hold(home, "stopped") as process:
        process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said[-3000:]
    assert "the same command continues from there" in said
    assert "Traceback" not in said
    assert not list((home / "stopped").rglob("*.partial.*"))
    assert run_entry_point("features", home, "slides=slides", "output=stopped", *OWN, *ENGINE).returncode == 0
    check_same(home / "stopped", whole)


@pytest.mark.slow
def test_features_two_processes_divide_the_slides(home: Path, whole: Path) -> None:
    processes = [start(home, "shared") for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    check_same(home / "shared", whole)
    said = (home / "shared" / "features.log").read_text()
    encoded = sum(int(found) for found in re.findall(r"(\d+) tiles in \d+ s", said))
    assert encoded == sum(int(row["tiles"]) for row in table(whole / "features.csv"))


@pytest.mark.slow
def test_features_of_command_train_a_grading(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 12)
    given = ("slides=data/train_images", "output=features", "tile_size=64", "mpp=4", *OWN[:2])
    done = run_entry_point("features", tmp_path, *given, *ENGINE)
    assert done.returncode == 0, done.stderr[-3000:]
    training = ("task=grading", "data=panda", "data.root=data", "trainer=cpu", "trainer.max_epochs=1", "logger=csv")
    done = run_entry_point("train", tmp_path, *training, "tiles=features", "tiles.features=features", "name=own")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "runs" / "grading" / "own" / "summary.json").read_text())
    origin = summary["tiles"]["origin"]
    assert (origin["encoder"], origin["tile_um"], origin["mpp"]) == ("test_resnet", 256, 4)
