"""Extractions that are killed anywhere, and two at once: the store equals that of an undisturbed one.

`python -m tests.test_killed` is the process that is killed. It counts its file operations by Python's audit hook, and
ends itself by SIGKILL, or stops by SIGSTOP, before a given one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from panda.data.extraction import extract_store
from panda.data.manifest import read_manifest
from panda.data.settings import PatchSettings, StoreKind
from panda.data.store import locate_store
from tests.panda_folder import entry_files, find_kept_slides, make_folder

SETTINGS = PatchSettings(level=1, patch_size=64)
SLIDES = 6
KILLS = 8
_WAITING = "another run is at work on it; waiting"
_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "small"
    make_folder(root, SLIDES)
    return root


def _command(folder: Path, store_root: Path, kind: StoreKind, event: int, number: signal.Signals) -> list[str]:
    return [sys.executable, "-m", __name__, str(folder), str(store_root), kind, str(event), number.name]


def _count_events(folder: Path, store_root: Path, kind: StoreKind) -> int:
    """Let a process cut all patches undisturbed; what it did to files."""
    command = _command(folder, store_root, kind, 10**9, signal.SIGKILL)
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=_REPOSITORY).stdout)


def _files(store: Path) -> dict[str, bytes]:
    """All that the store holds, but for what is in the making."""
    hidden = (".lock", ".partial", ".old")
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and not any(mark in part for mark in hidden for part in path.relative_to(store).parts)
    }


def _group_by_slide(files: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Group the files by slide; those of the store itself keep their own names."""
    slides: dict[str, dict[str, bytes]] = {}
    for name, content in files.items():
        slides.setdefault(name.split("/")[0], {})[name] = content
    return slides


@pytest.mark.parametrize(("kind", "recut"), [*((kind, False) for kind in get_args(StoreKind)), ("png", True)])
def test_extract_store_killed_anywhere_resumes(folder: Path, tmp_path: Path, kind: StoreKind, recut: bool) -> None:
    """A file with its final name is whole at any time: after `recut`, the old or the new one."""
    settings = SETTINGS.model_copy(update={"store": kind})
    store = locate_store(tmp_path, folder, settings)
    before: dict[str, dict[str, bytes]] = {}
    if recut:
        extract_store(read_manifest(folder), settings, tmp_path, folder, progress=False)
        before = _group_by_slide(_files(store))
        for record in read_manifest(folder):
            os.utime(record.image_path)
    events = _count_events(folder, tmp_path / "whole", kind)
    whole = _group_by_slide(_files(locate_store(tmp_path / "whole", folder, settings)))
    rng = random.Random(kind)
    seen: list[int] = []
    for _ in range(KILLS):
        left = sum(_group_by_slide(_files(store)).get(name) != content for name, content in whole.items())
        # Never past what is still to do; from half of it on, two workers have surely finished a slide.
        at = 1 + int(rng.uniform(0, 0.75) * events * left / len(whole))
        command = _command(folder, tmp_path, kind, at, signal.SIGKILL)
        killed = subprocess.run(command, capture_output=True, check=False, cwd=_REPOSITORY)
        assert killed.returncode == -signal.SIGKILL
        for name, content in _group_by_slide(_files(store)).items():
            assert content in (before.get(name), whole[name]), name
        seen.append(left)
    finished = entry_files(store)
    result = extract_store(read_manifest(folder), settings, tmp_path, folder, progress=False)
    assert result.failures == []
    assert find_kept_slides(store, finished)
    assert len(set(seen)) > 1, "the runs got on"
    assert _group_by_slide(_files(store)) == whole
    assert not [path for path in store.iterdir() if ".partial." in path.name or path.name.endswith(".old")]


def test_extract_store_two_processes_make_one_store(folder: Path, tmp_path: Path) -> None:
    """The first is stopped in the middle of a slide, so that the second is sure to meet it."""
    whole = locate_store(tmp_path / "whole", folder, SETTINGS)
    events = _count_events(folder, tmp_path / "whole", "png")
    store = locate_store(tmp_path, folder, SETTINGS)
    with _start(_command(folder, tmp_path, "png", events // 3, signal.SIGSTOP)) as first:
        _, status = os.waitpid(first.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        unfinished = _files(store)
        with _start(_command(folder, tmp_path, "png", 10**9, signal.SIGKILL)) as second:
            assert second.stderr is not None
            assert _WAITING in second.stderr.readline()
            time.sleep(0.2)
            assert second.poll() is None
            assert _files(store) == unfinished
            first.send_signal(signal.SIGCONT)
            assert first.wait(120) == 0
            assert second.wait(120) == 0
    assert _files(store) == _files(whole)
    assert len(unfinished) < len(_files(whole))


@contextlib.contextmanager
def _start(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=_REPOSITORY
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _main(folder: Path, store_root: Path, kind: StoreKind, event: int, number: signal.Signals) -> None:
    records, settings = read_manifest(folder), SETTINGS.model_copy(update={"store": kind})
    count = 0

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        here = name in {"open", "os.mkdir", "os.rename"} and str(store_root) in str(arguments[0])
        if here or name in {"os.remove", "os.rmdir"}:
            count += 1
            if count == event:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    extract_store(records, settings, store_root, folder, workers=2, progress=False)
    print(count)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), signal.Signals[sys.argv[5]])  # type: ignore[arg-type]
