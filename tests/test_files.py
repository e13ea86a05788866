"""Files are whole or absent."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from panda.errors import LockedError, PandaError, describe_path_error
from panda.files import (
    advise_removal,
    fingerprint,
    hold_lock,
    identity,
    is_locked,
    open_log,
    partial_path,
    remove,
    remove_leftovers,
    replace,
    sync,
    sync_folders_once,
    write_beside,
    write_json,
    write_whole,
)
from panda.soft_lock import Holder
from tests.lock_checks import check_second_thread_waits, take_lock


def test_write_whole_text_and_bytes_arrive_unchanged(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a.txt", "µm²\r\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "µm²\r\n".encode()
    write_whole(tmp_path / "new" / "a.txt", b"\x00\xff")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\x00\xff"
    assert len(list((tmp_path / "new").iterdir())) == 1


def fail_midway(path: Path) -> None:
    with write_beside(path) as partial:
        partial.write_text("half")
        assert partial.suffix == path.suffix
        raise RuntimeError


def fail_in_a_folder(path: Path) -> None:
    with write_beside(path) as partial:
        (partial / "deep").mkdir(parents=True)
        (partial / "deep" / "half").write_text("half")
        raise KeyboardInterrupt


def test_write_whole_failure_keeps_old_file_only(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.csv", "old")
    with pytest.raises(RuntimeError):
        fail_midway(tmp_path / "a.csv")
    with pytest.raises(KeyboardInterrupt):
        fail_in_a_folder(tmp_path / "b")
    assert (tmp_path / "a.csv").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_write_beside_replaces_folder(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with write_beside(tmp_path / "store") as partial:
            partial.mkdir()
            (partial / name).write_text(name)
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_replace_failure_restores_old_folder(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old").write_text("old")
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "absent", tmp_path / "store")
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_write_beside_nothing_written_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_beside(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_remove_takes_files_folders_and_missing_paths(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("link", "absent"):
        remove(tmp_path / name)
    assert (tmp_path / "kept" / "file").exists()
    remove(tmp_path / "kept" / "file")
    remove(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_identity_changes_with_rewritten_file(tmp_path: Path) -> None:
    path = tmp_path / "slide.tiff"
    path.write_bytes(b"one")
    os.utime(path, ns=(5, 5))
    assert identity(path) == {"name": "slide.tiff", "bytes": 3, "mtime_ns": 5}
    path.write_bytes(b"two")
    assert identity(path)["mtime_ns"] != 5


def test_fingerprint_depends_on_content_only() -> None:
    one = fingerprint({"a": 1, "b": {"x": [1, 2.5], "y": "µ"}})
    assert one == fingerprint({"b": {"y": "µ", "x": [1, 2.5]}, "a": 1})
    assert len(one) == 64
    assert len({one, fingerprint({"a": 1}), fingerprint({"a": "1"}), fingerprint({})}) == 4
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint({"a": float("nan")})
    with pytest.raises(TypeError):
        fingerprint({"a": Path()})


def test_write_json_nan_raises_and_keeps_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None, "µ"]})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None, "µ"]}


def test_hold_lock_held_names_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    holder = rf"process {os.getpid()} of {re.escape(socket.gethostname())} since \d{{4}}-"
    held = pytest.raises(LockedError, match=rf"run: another run holds its lock \({holder}")
    with hold_lock(tmp_path / "run", wait=False), held:
        take_lock(tmp_path / "run")
    assert (tmp_path / ".run.lock").read_bytes() == b""
    take_lock(tmp_path / "run")


def test_is_locked_looks_without_taking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_file = tmp_path / ".run.lock"
    ended = Holder.describe_self().model_copy(update={"started": 1})
    with monkeypatch.context() as patch:
        patch.setattr("panda.files.hold_lock", lambda *_, **__: pytest.fail("it is taken"))
        assert not is_locked(tmp_path / "run")
        assert not lock_file.exists()
        with hold_lock(tmp_path / "run"):
            assert is_locked(tmp_path / "run")
        assert not is_locked(tmp_path / "run")
        lock_file.write_bytes(ended.format_record())
        assert not is_locked(tmp_path / "run"), "it was killed"
    lock_file.write_bytes(ended.model_copy(update={"machine": "another"}).format_record())
    assert not is_locked(tmp_path / "run"), "only its lock says whether it lives"
    with hold_lock(tmp_path / "run"):
        lock_file.write_bytes(b"of another program")
        assert is_locked(tmp_path / "run")


def test_sync_folders_once_flushes_each_folder_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr("panda.files.sync_entry", lambda path: flushed.append(path.name))
    with sync_folders_once():
        for name in ("a/1", "b/2", "a/3"):
            write_whole(tmp_path / name, "x")
        assert len(flushed) == 3, "the files"
    assert sorted(flushed[3:]) == ["a", "b"]
    write_whole(tmp_path / "a" / "4", "x")
    assert flushed[-1] == "a"


def test_sync_follows_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for name in ("in/a", "in/deep/b", "out/c"):
        (tmp_path / name).touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "file").symlink_to(tmp_path / "out" / "c")
    monkeypatch.setattr("panda.files.sync_entry", lambda path: flushed.append(path.name))
    sync(tmp_path / "in")
    assert sorted(flushed) == ["a", "b", "deep", "in"]
    assert flushed[-1] == "in", "names after what they name"


def test_hold_lock_other_content_of_lock_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    os.link(tmp_path / "thesis.txt", tmp_path / ".run.lock")
    take_lock(tmp_path / "run")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_hold_lock_second_thread_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_second_thread_waits(tmp_path / "run", caplog)


def _open_log(path: Path) -> None:
    open_log(path).close()


@pytest.mark.parametrize(
    ("name", "use"), [(".run.lock", lambda path: take_lock(path.parent / "run")), ("run.log", _open_log)]
)
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_lock_or_log_that_is_no_plain_file_is_named(
    tmp_path: Path, name: str, use: Callable[[Path], None], kind: str
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / ("thesis.txt" if kind == "link" else "new.txt"))
    with pytest.raises(PandaError, match=rf"{name} is (a symbolic link|a folder|no plain file).*move it"):
        use(path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    assert not (tmp_path / "new.txt").exists()


def test_open_log_appends(tmp_path: Path) -> None:
    for line in ("one", "two"):
        with open_log(tmp_path / "run.log") as log:
            log.write(f"{line}\n")
    assert (tmp_path / "run.log").read_text() == "one\ntwo\n"


_HOLDER = """
import os, sys, time
from pathlib import Path
from panda.files import hold_lock

with hold_lock(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # by the child, which has closed its copy of the lock by now
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
def test_hold_lock_killed_process_frees_lock_while_child_lives(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(LockedError):
            take_lock(tmp_path / "run")
        holder.kill()
        holder.wait()
        os.kill(child, 0)
        take_lock(tmp_path / "run")
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


_WITHOUT_POSIX = """
import builtins, importlib, pkgutil
import panda

POSIX = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "posix", "syslog", "crypt", "readline"}
real = builtins.__import__

def guarded(name, globals=None, *rest, **named):
    if name.partition(".")[0] in POSIX and (globals or {}).get("__name__", "").startswith("panda"):
        raise ImportError(f"{name} is only on POSIX")
    return real(name, globals, *rest, **named)

builtins.__import__ = guarded
for module in pkgutil.walk_packages(panda.__path__, "panda."):
    importlib.import_module(module.name)
    print(module.name)
"""


def test_modules_import_without_posix_modules() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT_POSIX], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "panda.files" in done.stdout.split()


def test_remove_leftovers_of_one_name_or_all(tmp_path: Path) -> None:
    def leave(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            partial_path(path).mkdir(parents=True)
            path.with_name(f".{path.name}.{uuid.uuid4().hex}.old").mkdir()

    leave("a[1].csv", "b.csv", "sub/c.ckpt")
    (tmp_path / "a[1].csv").write_text("finished")
    (tmp_path / ".thesis.partial.docx").write_text("of somebody else")
    remove_leftovers(tmp_path, "a[1].csv")
    assert len([path for path in tmp_path.iterdir() if "a[1]" in path.name]) == 1
    assert len(list(tmp_path.iterdir())) == 5
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].csv", ".thesis.partial.docx", "sub"}
    assert list((tmp_path / "sub").iterdir())
    remove_leftovers(tmp_path, deep=True)
    assert not list((tmp_path / "sub").iterdir())


def test_hold_lock_removes_unfinished_files_of_its_name(tmp_path: Path) -> None:
    partial_path(tmp_path / "a.csv").write_text("half")
    partial_path(tmp_path / "b.csv").write_text("of another writer")
    with hold_lock(tmp_path / "a.csv"):
        assert [path.name[-5:] for path in tmp_path.iterdir() if "partial" in path.name] == ["b.csv"]


def test_write_whole_folder_of_same_name_raises(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    (tmp_path / "out.csv" / "thesis.txt").write_text("precious")
    with pytest.raises(IsADirectoryError, match=r"out\.csv"):
        write_whole(tmp_path / "out.csv", "x")
    assert (tmp_path / "out.csv" / "thesis.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("kind", ["file", "link", "dead link"])
def test_replace_file_by_a_folder_raises(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "canvas.zarr"
    if kind == "file":
        target.write_text("precious")
    else:
        target.symlink_to(tmp_path if kind == "link" else "nowhere")
    with pytest.raises(NotADirectoryError, match=r"canvas\.zarr") as raised, write_beside(target) as partial:
        partial.mkdir()
    assert describe_path_error(raised.value).endswith(
        "canvas.zarr: Not a directory; a file is in the place of a folder: move it"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["canvas.zarr"]
    with pytest.raises(FileExistsError) as taken:
        target.mkdir()
    assert "a file is in the place of a folder" in describe_path_error(taken.value)


@pytest.mark.parametrize("place", ["tmp", "home", "cwd", "parent", "link", "slides", "unproven"])
def test_advise_removal_only_of_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    folder = tmp_path / "a" / "store"
    folder.mkdir(parents=True)
    (folder / "store.json").write_text("{}")
    assert advise_removal(folder, "store.json", "take another") == f"remove the folder {folder}, or take another"
    if place == "tmp":
        monkeypatch.setattr("tempfile.tempdir", str(folder))
    elif place == "home":
        monkeypatch.setenv("HOME", str(folder))
    elif place in ("cwd", "parent"):
        inner = folder / "inner" if place == "parent" else folder
        inner.mkdir(exist_ok=True)
        monkeypatch.chdir(inner)
    elif place == "link":
        folder.rename(tmp_path / "real")
        folder.symlink_to(tmp_path / "real")
    elif place == "slides":
        (folder / "train_images").mkdir()
    else:
        (folder / "store.json").unlink()
    assert advise_removal(folder, "store.json", "take another") == "take another"


def test_messages_propose_removal_by_one_function() -> None:
    """Any other message that proposes it has no proof that the folder is this package's."""
    pattern = re.compile(r"(remove|delete) (the|this|its|that|your) [a-z' ]*(folder|directory|file|canvas|store)|rm -r")
    found = {
        path.name
        for path in Path("panda").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line) and '"""' not in line
    }
    assert found == {"files.py"}
