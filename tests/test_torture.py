"""A short sample of `make torture`, and its parts."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.torture import kills
from tests.torture.digests import compare, digest_folder
from tests.torture.jobs import make_jobs
from tests.torture.mutations import mutate
from tests.torture.outcome import Deadline

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_torture_killed_jobs_complete_to_same_files(tmp_path: Path) -> None:
    out = tmp_path / "torture.json"
    chosen = ("--only", "kills", "readers", "--jobs", "draw", "extract png", "--minutes", "0.5", "--kills", "12")
    command = [sys.executable, "-m", "tests.torture", *chosen, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(out.read_text())["outcomes"]
    tried = {(outcome["part"], outcome["case"]): outcome["tried"] for outcome in outcomes}
    assert {case for part, case in tried if part == "kills"} == {"draw", "extract png"}
    assert tried["readers", "cut_*/*/*/slide.json"] >= 1
    assert sum(tried.values()) >= 4


def test_digests_skip_records_with_random_names(tmp_path: Path) -> None:
    for name in ("a.txt", ".records/0f.jsonl", ".records/slides-1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert list(digest_folder(tmp_path)) == ["a.txt"]


def test_kills_kinds_share_time_until_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_once(trial: kills._Trial) -> None:
        ran.append(trial.job.name)
        trial.outcome.tried += 1
        clock[0] += 40 if trial.job.kind == "train" else 10

    ran: list[str] = []
    clock = [0]
    monkeypatch.setattr(kills, "SHARES", {"draw": (0.2, 3), "train": (0.8, 10)})
    monkeypatch.setattr(kills, "KILLS", 13)
    monkeypatch.setattr(kills._Trial, "run_once", run_once)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    names = ("draw", "train uniform, 0 workers", "train hard, 2 workers", "infer")
    jobs = [job for name, job in make_jobs().items() if name in names]
    outcomes = list(kills.torture(Path("home"), jobs, random.Random(0), Deadline(1000), 13))
    assert [(outcome.case, outcome.tried) for outcome in outcomes] == [
        ("draw", 3),
        ("train uniform, 0 workers", 5),
        ("train hard, 2 workers", 5),
    ]
    uniform, hard = names[1:3]
    assert ran[:6] == ["draw", uniform, "draw", hard, "draw", uniform]


def test_child_killed_alone_shows_its_orphan(tmp_path: Path) -> None:
    code = """
import os, sys, time
from pathlib import Path
from tests.torture.processes import Child, wait_for_none
def work():
    if os.fork() == 0:
        time.sleep(30)
    time.sleep(30)
child = Child(work, Path(sys.argv[1]))
ended = child.kill_after(0.5)
print(ended.killed, len(child.list_alive()))
child.end_session()
print(len(wait_for_none(child.list_alive)[0]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.split() == ["True", "1", "0"]


def test_compare_names_changed_missing_and_new_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1")
    (tmp_path / "b.json").write_text('{"date": "today", "x": 1}')
    (tmp_path / ".c.partial.csv").write_text("in the making")
    before = digest_folder(tmp_path)
    assert set(before) == {"a.csv", "b.json"}
    (tmp_path / "b.json").write_text('{"x": 1, "date": "tomorrow"}')
    assert compare(before, digest_folder(tmp_path)) == ""
    (tmp_path / "a.csv").unlink()
    (tmp_path / "b.json").write_text('{"x": 2}')
    (tmp_path / "d.csv").touch()
    assert compare(before, digest_folder(tmp_path)) == "missing: a.csv; too many: d.csv; different: b.json"


@pytest.mark.parametrize("suffix", [".json", ".csv", ".ckpt"])
def test_mutate_same_seed_gives_same_damage(suffix: str) -> None:
    content = {".json": b'{"a": [1, {"b": 2}], "c": "x"}', ".csv": b"x,y\n1,2\n", ".ckpt": bytes(range(256))}[suffix]
    damaged = [mutate(content, suffix, random.Random(seed)) for seed in range(40)]
    assert damaged == [mutate(content, suffix, random.Random(seed)) for seed in range(40)]
    assert sum(after != content for _, after in damaged) >= 30
