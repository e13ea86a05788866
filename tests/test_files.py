"""Files are whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from panda.files import fingerprint, identity, locked, remove, replace, whole_path, write_json, write_table, write_whole


def test_text_and_bytes_arrive_as_given(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a.txt", "µm²\r\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "µm²\r\n".encode()
    write_whole(tmp_path / "new" / "a.txt", b"\x00\xff")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\x00\xff"
    assert len(list((tmp_path / "new").iterdir())) == 1


def fail_midway(path: Path) -> None:
    with whole_path(path) as partial:
        partial.write_text("half")
        assert partial.suffix == path.suffix
        raise RuntimeError


def fail_in_a_folder(path: Path) -> None:
    with whole_path(path) as partial:
        (partial / "deep").mkdir(parents=True)
        (partial / "deep" / "half").write_text("half")
        raise KeyboardInterrupt


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.csv", "old")
    with pytest.raises(RuntimeError):
        fail_midway(tmp_path / "a.csv")
    with pytest.raises(KeyboardInterrupt):
        fail_in_a_folder(tmp_path / "b")
    assert (tmp_path / "a.csv").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with whole_path(tmp_path / "store") as partial:
            partial.mkdir()
            (partial / name).write_text(name)
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_replacement_that_fails_puts_the_old_folder_back(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old").write_text("old")
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "absent", tmp_path / "store")
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_path(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_remove_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("link", "absent"):
        remove(tmp_path / name)
    assert (tmp_path / "kept" / "file").exists()
    remove(tmp_path / "kept" / "file")
    remove(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_identity_tells_a_file_that_was_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "slide.tiff"
    path.write_bytes(b"one")
    os.utime(path, ns=(5, 5))
    assert identity(path) == {"name": "slide.tiff", "bytes": 3, "mtime_ns": 5}
    path.write_bytes(b"two")
    assert identity(path)["mtime_ns"] != 5


def test_a_fingerprint_is_of_the_content_alone() -> None:
    one = fingerprint({"a": 1, "b": {"x": [1, 2.5], "y": "µ"}})
    assert one == fingerprint({"b": {"y": "µ", "x": [1, 2.5]}, "a": 1})
    assert len(one) == 64
    assert len({one, fingerprint({"a": 1}), fingerprint({"a": "1"}), fingerprint({})}) == 4
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint({"a": float("nan")})
    with pytest.raises(TypeError):
        fingerprint({"a": Path()})


def test_json_refuses_nan_and_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None, "µ"]})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None, "µ"]}


def test_a_table_has_every_key_as_a_column(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [{"a": 1, "b": None}, {"a": 2, "c": "x,y"}])
    assert (tmp_path / "a.csv").read_text() == 'a,b,c\n1,,\n2,,"x,y"\n'
    write_table(tmp_path / "a.csv", [], ["a", "b"])
    assert (tmp_path / "a.csv").read_text() == "a,b\n"


def test_a_name_that_is_held_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path / "run", wait=False), pytest.raises(BlockingIOError), locked(tmp_path / "run", wait=False):
        pass
    with locked(tmp_path / "run", wait=False):
        pass


def test_a_file_takes_no_folders_place(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    (tmp_path / "out.csv" / "thesis.txt").write_text("precious")
    with pytest.raises(IsADirectoryError, match="a folder bears the name"):
        write_whole(tmp_path / "out.csv", "x")
    assert (tmp_path / "out.csv" / "thesis.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
