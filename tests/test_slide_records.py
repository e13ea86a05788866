"""Records of an output folder: which slides are finished, what counts now, and what a killed process leaves."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from panda.data.failures import Failure
from panda.data.slide_records import Outcome, RowValue, SlideRecords
from panda.data.slide_state import read_state
from panda.errors import PandaError
from panda.files import write_whole

RESULT = "result.json"


def write_slide(out: Path, slide_id: str, text: str = "1") -> None:
    for name in ("map.png", "page.html", "canvas/zarr.json", "canvas/0/c/1", RESULT):
        write_whole(out / slide_id / name, text)


def open_records(out: Path) -> SlideRecords:
    return SlideRecords(out, lambda slide_id: read_state(out / slide_id, RESULT, ("page.html",)))


def record(out: Path, slide_id: str, made_with: str = "x", key: str = "k", failed: bool = False) -> None:
    records = open_records(out)
    failure = Failure(slide_id, "map", "SlideError", "bad") if failed else None
    row: dict[str, RowValue] | None = None if failed else {"slide_id": slide_id, "share": 1.0, "count": 2, "none": None}
    state = records.find_state(slide_id)
    records.append(Outcome(slide_id=slide_id, made_with=made_with, state=state, key=key, row=row, failure=failure))


def find_finished(out: Path, *slide_ids: str, key: str = "k", made_with: str = "x") -> set[str]:
    records = open_records(out)
    records.read()
    return records.find_finished(dict.fromkeys(slide_ids, key), made_with)


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "result removed": lambda folder: (folder / RESULT).unlink(),
    "picture removed": lambda folder: (folder / "map.png").unlink(),
    "page removed": lambda folder: (folder / "page.html").unlink(),
    "result edited": lambda folder: (folder / RESULT).write_text("12"),
    "result of the same size": lambda folder: touch(folder / RESULT),
    "picture of the same size": lambda folder: touch(folder / "map.png"),
    "canvas replaced": lambda folder: touch(folder / "canvas" / "zarr.json"),
    "canvas removed": lambda folder: shutil.rmtree(folder / "canvas"),
    "canvas emptied": lambda folder: (folder / "canvas" / "zarr.json").unlink(),
    "chunk removed": lambda folder: (folder / "canvas" / "0" / "c" / "1").unlink(),
    "chunk cut": lambda folder: os.truncate(folder / "canvas" / "0" / "c" / "1", 0),
    "chunk of the same size": lambda folder: touch(folder / "canvas" / "0" / "c" / "1"),
    "one file more": lambda folder: (folder / "more.txt").touch(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_records_changed_files_are_not_finished(tmp_path: Path, change: str) -> None:
    for slide_id in ("a", "b"):
        write_slide(tmp_path, slide_id)
        record(tmp_path, slide_id)
    assert find_finished(tmp_path, "a", "b", "c") == {"a", "b"}
    CHANGES[change](tmp_path / "a")
    assert find_finished(tmp_path, "a", "b") == {"b"}


def test_records_hidden_files_and_new_pages_do_not_count(tmp_path: Path) -> None:
    write_slide(tmp_path, "a")
    record(tmp_path, "a")
    (tmp_path / "a" / ".lock").touch()
    (tmp_path / "a" / "page.html").write_text("again")
    assert find_finished(tmp_path, "a") == {"a"}


def test_records_folder_without_canvas_counts_by_name(tmp_path: Path) -> None:
    write_slide(tmp_path, "a")
    (tmp_path / "a" / "notes").mkdir()
    record(tmp_path, "a")
    assert find_finished(tmp_path, "a") == {"a"}


def test_records_other_key_or_unknown_key_is_not_finished(tmp_path: Path) -> None:
    for slide_id in ("a", "b"):
        write_slide(tmp_path, slide_id)
    record(tmp_path, "a")
    record(tmp_path, "b", key="")
    assert find_finished(tmp_path, "a", key="other") == set()
    assert find_finished(tmp_path, "b", key="") == set()


def test_records_any_end_of_key_is_finished_if_asked(tmp_path: Path) -> None:
    for slide_id, key in (("a", "k/1"), ("b", "k"), ("c", "x/k")):
        write_slide(tmp_path, slide_id)
        record(tmp_path, slide_id, key=key)
    records = open_records(tmp_path)
    records.read()
    keys = dict.fromkeys("abc", "k")
    assert records.find_finished(keys, "x") == {"b"}
    assert records.find_finished(keys, "x", any_end=True) == {"a", "b"}


def test_records_failure_ends_with_new_files(tmp_path: Path) -> None:
    write_slide(tmp_path, "a")
    record(tmp_path, "a")
    record(tmp_path, "a", failed=True)
    assert find_finished(tmp_path, "a") == set()
    record(tmp_path, "b", failed=True)
    write_slide(tmp_path, "a", "12")
    record(tmp_path, "a")
    assert find_finished(tmp_path, "a") == {"a"}
    records = open_records(tmp_path)
    records.read()
    found = {one.slide_id: one.outcomes for one in records.iterate(["c", "a"])}
    assert list(found) == ["a", "b", "c"]
    (own,) = found["a"]
    assert own.row == {"slide_id": "a", "share": 1.0, "count": 2, "none": None}
    assert type(own.row["share"]) is float
    assert found["b"][0].failure == Failure("b", "map", "SlideError", "bad")
    assert found["c"] == ()


def test_records_failure_of_other_settings_does_not_count(tmp_path: Path) -> None:
    write_slide(tmp_path, "a")
    record(tmp_path, "a")
    record(tmp_path, "a", made_with="y", failed=True)
    assert find_finished(tmp_path, "a") == {"a"}


def test_records_torn_and_damaged_lines_are_dropped(tmp_path: Path, panda_log: pytest.LogCaptureFixture) -> None:
    for slide_id in ("a", "b"):
        write_slide(tmp_path, slide_id)
        record(tmp_path, slide_id)
    files = {path: path.read_bytes() for path in (tmp_path / ".records").iterdir()}
    (torn,) = (path for path, data in files.items() if b'"slide_id":"b"' in data)
    torn.write_bytes(files[torn][:-1])
    assert find_finished(tmp_path, "a", "b") == {"a"}
    assert not panda_log.records, "a line that another process writes now is no damage"
    torn.write_bytes(b"\0" * 40 + b"\n" + files[torn])
    assert find_finished(tmp_path, "a", "b") == {"a", "b"}
    assert [one.levelno for one in panda_log.records] == [logging.WARNING]


def test_records_read_again_takes_new_lines_only(tmp_path: Path) -> None:
    write_slide(tmp_path, "a")
    records = open_records(tmp_path)
    records.read()
    record(tmp_path, "a")
    for _ in range(2):
        records.read()
        ((state),) = records.iterate(["a"])
        assert len(state.outcomes) == 1


@pytest.mark.parametrize("slide_id", ["..", "../a", "", "a/b"])
def test_records_slide_id_leads_nowhere_else(tmp_path: Path, slide_id: str) -> None:
    write_slide(tmp_path, "a")
    write_slide(tmp_path / "out", "b")
    write_whole(tmp_path / RESULT, "1")
    assert open_records(tmp_path / "out").find_state(slide_id) == ""


def test_records_name_that_is_no_text_is_kept_as_escapes(tmp_path: Path) -> None:
    records = open_records(tmp_path)
    assert [one.slide_id for one in records.iterate([os.fsdecode(b"\xff")])] == ["\\udcff"]


@pytest.mark.parametrize("content", [None, b"", b'"a"\n{}\n', b'"a"\n"b', b"\xff"])
def test_records_damaged_list_is_refused_and_replaced(tmp_path: Path, content: bytes | None) -> None:
    records = open_records(tmp_path)
    run = records.runs.write("ab", "x", {"date": "2026-01-01T00:00:00+00:00"})
    path = records.folder / run.slides
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(PandaError, match=r"slides-\w+\.txt: the list of slides is absent or damaged; map the slides"):
        records.expect(run)
    assert records.runs.write("ba", "x", run.summary).slides == run.slides
    records.expect(run)
    assert records.list_missing().named == ["a", "b"]


def test_records_last_run_of_one_second_is_newest_file(tmp_path: Path) -> None:
    for number in range(2):
        open_records(tmp_path).runs.write(["a"], str(number), {"date": "2026-01-01T00:00:00+00:00"})
    for newest in range(2):
        for path in (tmp_path / ".records").glob("*.json"):
            os.utime(path, ns=(1, 2 if f'"made_with": "{newest}"' in path.read_text() else 1))
        last = open_records(tmp_path).runs.find_last()
        assert last is not None
        assert last.made_with == str(newest)


def test_records_that_another_thread_collects_raise_nothing(tmp_path: Path) -> None:
    held = [SlideRecords(tmp_path, str)]
    thread = threading.Thread(target=held.clear)  # pytest fails a test in whose threads an error is raised
    thread.start()
    thread.join()
    assert not held
