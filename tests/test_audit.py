"""The audit of a whole folder: its files, its resumption, and slides that crash a worker."""

from __future__ import annotations

import csv
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from panda.audit.audit_run import AuditRun
from panda.audit.dataset import Audit, Inspector, audit_folder
from panda.audit.page import WORST_SHOWN, write_audit_page
from panda.audit.process_pool import run_in_processes
from panda.audit.records import RecordFolder, make_file_stem
from panda.data.manifest import read_groups
from panda.data.shard import Shard
from panda.data.slide_rows import SlideRow, locate_image, locate_mask, read_rows
from panda.errors import ConfigError, ManifestError, PandaError
from panda.files import hold_lock
from panda.report.axes import PALETTE
from panda.report.charts import draw_columns
from panda.synthetic.dataset import SyntheticSpec, draw_dataset
from tests.audit_process import NEVER
from tests.integration.entry_points import REPOSITORY, table
from tests.pyramids import write_pyramid

EVIL = "<script>alert(1)<"
MPP = 0.48
KILLS = 6


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn slides, most of them spoilt, and copies of some."""
    root = draw_dataset(
        tmp_path_factory.mktemp("data") / "faulty", SyntheticSpec(slides=6, width=1536, height=1024), progress=False
    )
    rows = table(root / "train.csv")

    def files(slide_id: str) -> tuple[Path, Path]:
        return root / "train_images" / f"{slide_id}.tiff", root / "train_label_masks" / f"{slide_id}_mask.tiff"

    def copy(number: int, name: str, turns: int, **changes: str) -> None:
        for own, new, compression in zip(
            files(rows[number]["image_id"]), files(name), ("jpeg", "adobe_deflate"), strict=True
        ):
            if turns == 0:
                shutil.copy(own, new)
                continue
            pixels = np.rot90(tifffile.imread(own, level=0), turns)
            codes = pixels[..., 0] if compression != "jpeg" else pixels
            write_pyramid(new, np.ascontiguousarray(codes), mpp=MPP, compression=compression)
        rows.append(rows[number] | {"image_id": name} | changes)

    copy(0, EVIL, 1)
    copy(1, "other-grade", 2, isup_grade="4", gleason_score="4+4")
    copy(2, "same-file", 0)
    cut = files(rows[3]["image_id"])[0]
    cut.write_bytes(cut.read_bytes()[:20000])
    files(rows[4]["image_id"])[1].unlink()
    rows[5]["gleason_score"] = "5+5" if rows[5]["isup_grade"] != "5" else "3+3"
    rows.append(dict(rows[0]))
    rows.append(rows[0] | {"image_id": "../escaped", "data_provider": "nowhere"})
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def finished_audit(faulty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an audit that ran undisturbed."""
    out = tmp_path_factory.mktemp("audited") / "audit"
    audit_folder(faulty, out, workers=2, progress=False)
    write_audit_page(out)
    return out


def _files(out: Path) -> dict[str, bytes]:
    """Read the finished files of an audit, except its page."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name != "report.html"
    }


def _findings(out: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in table(out / "findings.csv"):
        found.setdefault(row["slide_id"], set()).add(row["finding"])
    return found


def test_audit_folder_faulty_slides_reports_findings(faulty: Path, finished_audit: Path) -> None:
    ids = [row["image_id"] for row in table(faulty / "train.csv")][:6]
    assert _findings(finished_audit) == {
        ids[0]: {"duplicate_row", "near_duplicate"},
        ids[1]: {"near_duplicate"},
        ids[2]: {"exact_duplicate"},
        ids[3]: {"unreadable_region"},
        ids[4]: {"missing_mask"},
        ids[5]: {"contradicting_row"},
        EVIL: {"near_duplicate"},
        "other-grade": {"near_duplicate", "benign_mask_cancer_grade"},
        "same-file": {"exact_duplicate"},
        "../escaped": {"bad_id", "unknown_provider"},
    }
    for row in table(finished_audit / "findings.csv"):
        assert row["severity"] in {"error", "warning", "note"}
        assert row["value"]
        assert row["what_to_do"].endswith(".")
    cut = next(row for row in table(finished_audit / "findings.csv") if row["finding"] == "unreadable_region")
    assert cut["value"].startswith(f"train_images/{ids[3]}.tiff: it is cut short"), "the same for any folder"


def test_audit_folder_tables_have_row_per_slide(faulty: Path, finished_audit: Path) -> None:
    ids = [row.slide_id for row in read_rows(faulty)]
    rows = table(finished_audit / "audit.csv")
    assert [row["slide_id"] for row in rows] == list(dict.fromkeys(ids))
    first = rows[0]
    assert (first["width"], first["height"], first["downsamples"]) == ("1536", "1024", "1 4 16")
    assert first["findings"] == "duplicate_row near_duplicate"
    assert first["worst"] == "error"
    assert float(first["mpp_x"]) == pytest.approx(MPP)
    assert rows[3]["tissue_how"] == ""
    groups = {row["image_id"]: row["group"] for row in table(finished_audit / "groups.csv")}
    assert list(groups) == [slide_id for slide_id in dict.fromkeys(ids) if slide_id != "../escaped"]
    assert read_groups(finished_audit / "groups.csv")
    for one, other in ((ids[0], EVIL), (ids[1], "other-grade"), (ids[2], "same-file")):
        assert groups[one] == groups[other]
    assert len(set(groups.values())) == 6
    pairs = {frozenset((row["slide_a"], row["slide_b"])): row for row in table(finished_audit / "pairs.csv")}
    assert set(pairs) == {frozenset(p) for p in ((ids[0], EVIL), (ids[1], "other-grade"), (ids[2], "same-file"))}
    assert pairs[frozenset((ids[1], "other-grade"))]["grades_conflict"] == "yes"
    assert pairs[frozenset((ids[0], EVIL))]["grades_conflict"] == "no"
    same = pairs[frozenset((ids[2], "same-file"))]
    assert (same["same_file"], same["distance"]) == ("yes", "0.0")
    summary = json.loads((finished_audit / "summary.json").read_text())
    assert summary["rows"] == 11
    assert summary["slides"] == 10
    assert summary["groups"] == {
        "groups": 3, "slides": 6, "largest": 2, "with_conflicting_grades": 1, "pairs": 3
    }  # fmt: skip
    assert summary["worst"] == {"error": 3, "warning": 7, "note": 0}
    assert summary["findings"]["unknown_provider"]["by_provider"] == {"other": 1}


def test_audit_folder_duplicates_without_tissue_share_group(tmp_path: Path) -> None:
    blank = np.full((256, 256, 3), 245, np.uint8)
    for name in "ab":
        write_pyramid(tmp_path / "train_images" / f"{name}.tiff", blank, mpp=MPP)
    write_pyramid(tmp_path / "train_images" / "c.tiff", blank[:128], mpp=MPP)
    lines = ["image_id,data_provider,isup_grade,gleason_score", *(f"{name},radboud,0,0+0" for name in "abc")]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    audit_folder(tmp_path, tmp_path / "audit", workers=1, progress=False)
    assert [row["group"] for row in table(tmp_path / "audit" / "groups.csv")] == ["a", "a", "c"]
    assert _findings(tmp_path / "audit")["a"] == {"no_tissue", "missing_mask", "exact_duplicate"}


def test_audit_folder_worker_counts_write_same_files(faulty: Path, finished_audit: Path, tmp_path: Path) -> None:
    audit_folder(faulty, tmp_path, workers=1, progress=False)
    assert _files(tmp_path) == _files(finished_audit)
    page = (finished_audit / "report.html").read_text()
    assert f"output={finished_audit}" in page
    assert write_audit_page(tmp_path).read_text() == page.replace(str(finished_audit), str(tmp_path))


def _inspect_here(audit: Audit, seen: list[str], most: int = NEVER) -> Inspector:
    """Return an inspector without processes, which notes its slides; it is killed after so many."""

    def inspect(rows: Sequence[SlideRow]) -> Generator[tuple[SlideRow, int | None], None, None]:
        for row in rows:
            if len(seen) == most:
                raise KeyboardInterrupt
            seen.append(row.slide_id)
            yield row, audit.records.inspect(row)

    return inspect


def test_audit_shards_write_same_files(faulty: Path, finished_audit: Path, tmp_path: Path) -> None:
    for number in (2, 3, 1):
        audit, seen = Audit(AuditRun(data=str(faulty)), tmp_path), list[str]()
        audit.inspect(_inspect_here(audit, seen), Shard(number, 3), progress=False)
        assert seen == [row.slide_id for row in audit.slides if Shard(number, 3).holds(row.slide_id)]
        assert 0 < len(seen) < 9
        assert audit.has_all() == (number == 1)
    audit.write()
    assert _files(tmp_path) == _files(finished_audit)


def test_audit_killed_shard_continues(faulty: Path, finished_audit: Path, tmp_path: Path) -> None:
    shard, other, left = Shard(1, 2), Shard(2, 2), tmp_path / "slides" / f".{'0' * 12}.partial.a.json"
    audit, seen = Audit(AuditRun(data=str(faulty)), tmp_path), list[str]()
    with pytest.raises(KeyboardInterrupt):
        audit.inspect(_inspect_here(audit, seen, most=1), shard, progress=False)
    left.touch()
    with hold_lock(tmp_path / "slides-2-of-2"):  # another shard may write this file now
        audit.inspect(_inspect_here(audit, seen), shard, progress=False)
    assert sorted(seen) == sorted(row.slide_id for row in audit.slides if shard.holds(row.slide_id)), "each once"
    assert left.exists()
    missing = audit.list_missing()
    assert missing.count == 9 - len(seen)
    assert set(missing.named).isdisjoint(seen)
    audit.inspect(_inspect_here(audit, seen), other, progress=False)
    assert not left.exists()
    audit.write()
    assert _files(tmp_path) == _files(finished_audit)


def test_audit_without_terminal_draws_no_bar(
    faulty: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    panda_log: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("panda.progress.LINE_SECONDS", 0.0)
    audit = Audit(AuditRun(data=str(faulty)), tmp_path)
    with panda_log.at_level("INFO"):
        audit.inspect(lambda rows: ((row, 0) for row in rows))
    count = len(audit.slides)
    assert f"audit: {count} of {count} slides" in panda_log.messages
    assert "%|" not in capsys.readouterr().err


def test_audit_second_shard_of_same_number_waits(faulty: Path, tmp_path: Path) -> None:
    audit = Audit(AuditRun(data=str(faulty)), tmp_path)
    second = threading.Thread(
        target=audit.inspect, args=(_inspect_here(audit, []), Shard(1, 2)), kwargs={"progress": False}
    )
    with hold_lock(tmp_path / "slides-1-of-2"):
        second.start()
        second.join(0.3)
        assert second.is_alive()
    second.join(120)
    assert not second.is_alive()


def test_audit_folder_rerun_inspects_changed_slides_only(
    faulty: Path, finished_audit: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, out = tmp_path / "moved", tmp_path / "audit"
    shutil.copytree(faulty, root)  # with the times of the files
    shutil.copytree(finished_audit, out)
    for name in ("audit.json", "summary.json"):  # as if it had been elsewhere before
        (out / name).write_text((out / name).read_text().replace(str(faulty), str(tmp_path / "before")))
    rows = {row.slide_id: row for row in read_rows(root) if row.has_file}
    records = RecordFolder(out / "slides", root)

    def current() -> set[str]:
        return {slide_id for slide_id, row in rows.items() if records.is_current(row)}

    assert current() == set(rows), "a folder that is moved is not inspected again"
    with caplog.at_level(logging.INFO, "panda"):
        audit_folder(root, out, workers=1, progress=False)
    assert "9 of 9 slides have not changed" in caplog.text
    picture = next(filter(Path.is_file, map(records.find_picture, rows)))
    content = picture.read_bytes()
    for damaged in (content[:-1], content):
        picture.write_bytes(damaged)
        assert set(rows) - current() == ({picture.stem} if damaged != content else set())
    changed, masked, graded = list(rows)[:3]
    os.utime(locate_image(root, changed))
    os.utime(locate_mask(root, masked))
    text = (root / "train.csv").read_text().splitlines()
    text[3] = text[3].replace("radboud", "karolinska") if "radboud" in text[3] else text[3].replace("karol", "x")
    (root / "train.csv").write_text("\n".join(text))
    rows |= {row.slide_id: row for row in read_rows(root)[:6]}
    (out / "slides" / f"{EVIL}.json").write_text("{")
    assert set(rows) - current() == {changed, masked, graded, EVIL}
    assert not any(RecordFolder(out / "slides", root, deep=True).is_current(row) for row in rows.values())
    shutil.rmtree(root / "train_label_masks")
    assert EVIL not in current()
    assert not current() - {next(iter(rows)), list(rows)[4]}, "a mask that went is a change"


def test_record_folder_other_data_root_writes_same_record(
    faulty: Path, finished_audit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(faulty)
    row = next(
        row for row in read_rows(".") if not (Path() / "train_label_masks" / f"{row.slide_id}_mask.tiff").exists()
    )
    RecordFolder(tmp_path, Path()).inspect(row)
    assert (tmp_path / f"{row.slide_id}.json").read_bytes() == (
        finished_audit / "slides" / f"{row.slide_id}.json"
    ).read_bytes()


def test_audit_folder_without_slides_reads_table_only(faulty: Path, finished_audit: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(faulty / "train.csv", alone)
    out = tmp_path / "audit"
    summary = audit_folder(alone, out, slides=False, progress=False)
    assert set().union(*_findings(out).values()) == {"duplicate_row", "contradicting_row", "bad_id", "unknown_provider"}
    assert summary.groups is None
    assert sorted(_files(out)) == ["audit.csv", "findings.csv", "summary.json"]
    assert "there is no groups.csv" in write_audit_page(out).read_text()
    before = _files(finished_audit)
    with pytest.raises(ConfigError, match=r"audit\.slides=false.*give another output"):
        audit_folder(faulty, finished_audit, slides=False, progress=False)
    assert _files(finished_audit) == before
    with pytest.raises(ManifestError, match="no such file"):
        audit_folder(tmp_path, out, slides=False, progress=False)


def test_audit_folder_output_of_other_data_raises(faulty: Path, finished_audit: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(faulty, other)
    with pytest.raises(ConfigError, match=r"holds the audit of .* and that of .*other would replace it"):
        audit_folder(other, finished_audit, progress=False)
    begun = tmp_path / "begun"
    AuditRun(data=str(faulty)).write(begun)
    with pytest.raises(ConfigError, match=r"holds the audit of .*faulty, and that of .*other would replace it"):
        audit_folder(other, begun, progress=False)
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text('{"schema": 2, "task": "segmentation", "data": {}}')
    with pytest.raises(ConfigError, match=r"summary\.json is not that of an audit"):
        audit_folder(faulty, run, progress=False)


def test_record_folder_after_system_error_inspects_again(
    faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in read_rows(faulty) if row.has_file)
    records = RecordFolder(tmp_path / "slides", faulty)

    def away(*_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("panda.audit.records.inspect_slide", away)
        assert records.inspect(row) == 1
    assert not records.is_current(row)
    records.inspect(row)
    assert records.is_current(row)


def test_audit_folder_locked_output_waits(faulty: Path, tmp_path: Path) -> None:
    second = threading.Thread(target=audit_folder, args=(faulty, tmp_path), kwargs={"slides": False, "progress": False})
    with hold_lock(tmp_path / "audit.csv"):
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert not (tmp_path / "audit.csv").exists()
    second.join(120)
    assert (tmp_path / "audit.csv").exists()


def test_make_file_stem_long_id_fits_file_system() -> None:
    assert make_file_stem("a") == "a"
    assert len(os.fsencode(make_file_stem("ä" * 120))) == 64
    assert make_file_stem("ä" * 120) != make_file_stem("ä" * 121)


def _process(root: Path, out: Path, looked_at: Path, *, kill_at: int = NEVER, crash_at: str = "", how: str = "") -> Any:
    command = [sys.executable, "-m", "tests.audit_process", *map(str, (root, out, kill_at, looked_at, crash_at, how))]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


def _inspected_slides(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_audit_folder_killed_anywhere_resumes(faulty: Path, finished_audit: Path, tmp_path: Path) -> None:
    """Finished slides are not inspected again, and the result equals that of an undisturbed audit."""
    whole, out = _files(finished_audit), tmp_path / "audit"
    undisturbed = _process(faulty, tmp_path / "whole", tmp_path / "all")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert _files(tmp_path / "whole") == whole
    assert sorted(_inspected_slides(tmp_path / "all")) == sorted(
        row["slide_id"] for row in table(finished_audit / "audit.csv") if row["group"]
    )
    events, rng, kills = int(undisturbed.stdout), random.Random(0), 0
    for run in range(KILLS):
        before = {Path(name).stem for name in _files(out) if name.endswith(".json")}
        # The first early on, so that there is something left to do; the last among the tables.
        at = 1 + int(events * (0.12 if run == 0 else rng.uniform(0.1, 0.95)))
        looked_at = tmp_path / f"run{run}"
        killed = _process(faulty, out, looked_at, kill_at=at)
        assert killed.returncode in (-signal.SIGKILL, 0), killed.stderr
        kills += killed.returncode != 0
        assert not before & {make_file_stem(slide_id) for slide_id in _inspected_slides(looked_at)}
        for name, content in _files(out).items():
            assert content == whole[name], name
    assert kills > KILLS / 2
    assert _process(faulty, out, tmp_path / "last").returncode == 0
    assert _files(out) == whole
    assert not [path for path in (out / "slides").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_audit_folder_crashed_worker_continues(faulty: Path, finished_audit: Path, tmp_path: Path) -> None:
    whole = _files(finished_audit)
    once = _process(faulty, tmp_path / "once", tmp_path / "looked", crash_at=EVIL, how="once")
    assert once.returncode == 0, once.stderr
    assert (tmp_path / "looked.crashed").exists()
    assert _files(tmp_path / "once") == whole, "a process that is killed once says nothing of its slide"
    always = _process(faulty, tmp_path / "always", tmp_path / "looked", crash_at="same-file", how="always")
    assert always.returncode == 0, always.stderr
    found = _findings(tmp_path / "always")
    assert found.pop("same-file") == {"unopenable"}
    others = {slide_id: names for slide_id, names in _findings(finished_audit).items() if names != {"exact_duplicate"}}
    assert found == others
    row = next(row for row in table(tmp_path / "always" / "findings.csv") if row["slide_id"] == "same-file")
    assert "crashed" in row["value"]
    again = _process(faulty, tmp_path / "always", tmp_path / "third")
    assert again.returncode == 0
    assert _inspected_slides(tmp_path / "third") == [], "it is not tried again as long as the file is the same"


def _work(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 99:
        raise OSError(28, "No space left on device")
    return item * item


def _sleep(item: int) -> int:
    Path(f"worker-{os.getpid()}").touch()
    time.sleep(60)
    return item


def test_run_in_processes_crashed_items_are_reported(tmp_path: Path) -> None:
    done = dict(run_in_processes(_work, range(8), 2))
    assert done == {0: 0, 1: 1, 2: 4, 3: None, 4: 16, 5: 25, 6: 36, 7: 49}


def test_run_in_processes_error_of_work_is_raised() -> None:
    with pytest.raises(OSError, match="No space"):
        list(run_in_processes(_work, [1, 99], 1))


def test_run_in_processes_failed_start_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panda.audit.process_pool._prepare", signal.raise_signal)
    with pytest.raises(PandaError, match="no worker process can be started"):
        list(run_in_processes(_work, [1], 1))


def test_run_in_processes_dead_parent_ends_workers(tmp_path: Path) -> None:
    code = "from tests.test_audit import _sleep; from panda.audit.process_pool import run_in_processes\n"
    code += "if __name__ == '__main__': list(run_in_processes(_sleep, range(4), 2))"
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, env=environment) as parent:
        _wait(lambda: len(list(tmp_path.glob("worker-*"))) == 2)
        parent.kill()
    pids = [int(path.name.removeprefix("worker-")) for path in tmp_path.glob("worker-*")]
    _wait(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and _runs(pid) for pid in pids))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _wait(until: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_write_audit_page_shows_findings(faulty: Path, finished_audit: Path) -> None:
    text = (finished_audit / "report.html").read_text()
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)&lt;" in text
    assert "%3Cscript%3Ealert%281%29%3C.jpg" in text
    for finding in table(finished_audit / "findings.csv"):
        assert finding["finding"] in text
    for said in ("unreadable region", "it is cut short", "The same tissue under different grades", "grades differ",
                 "A group is no patient", "karolinska", "findings.csv"):  # fmt: skip
        assert said in text, said
    assert text.count("data:image/jpeg;base64,") == 3 + 2 * 3
    assert "../escaped" in text
    assert "http" not in text.replace("http-equiv", "")


def test_write_audit_page_many_findings_shows_worst(finished_audit: Path, tmp_path: Path) -> None:
    """Of very many slides with a finding the worst are shown."""
    many = [f"slide{number:05d}" for number in range(3000)]
    (tmp_path / "slides").mkdir()
    picture = next((finished_audit / "slides").glob("*.jpg"))
    with (tmp_path / "audit.csv").open("w") as rows, (tmp_path / "findings.csv").open("w") as found:
        rows.write("slide_id,provider,isup_grade,gleason_score,pen_fraction\n")
        found.write("slide_id,finding,severity,value,what_to_do\n")
        for number, slide_id in enumerate(many):
            rows.write(f"{slide_id},radboud,{number % 6},3+3,{number / 10000}\n")
            found.write(f"{slide_id},pen_marks,note,ink,Look.\n")
            if number % 100 == 0 or number > 2990:
                shutil.copy(picture, tmp_path / "slides" / f"{slide_id}.jpg")
    text = write_audit_page(tmp_path).read_text()
    assert "summary.json is not in the folder." in text
    assert len(text) < 300_000
    worst = [slide_id for slide_id in many if slide_id in text]
    assert worst == many[-WORST_SHOWN:], "the most ink"


def test_column_chart_empty_series_keeps_other_colors() -> None:
    chart = str(draw_columns("grades", ["0", "1"], [("a", [1, 2]), ("b", [0, 0]), ("c", [3, 0])], "grade"))
    assert chart.count("<rect") == 4
    assert "c, 0: 3" in chart
    assert ">b<" not in chart
    assert PALETTE[2] in chart
    assert PALETTE[1] not in chart
    assert draw_columns("none", ["0"], [("a", [0])], "grade") == ""
