"""A short sample of `make torture`, and its parts."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.digests import compare, digest_folder
from tests.torture.mutations import mutate

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_torture_killed_jobs_complete_to_same_files(tmp_path: Path) -> None:
    out = tmp_path / "torture.json"
    chosen = ("--only", "kills", "--jobs", "draw", "extract png", "--minutes", "0.5", "--kills", "4")
    command = [sys.executable, "-m", "tests.torture", *chosen, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(out.read_text())["outcomes"]
    assert {outcome["case"] for outcome in outcomes} == {"draw", "extract png"}
    assert sum(outcome["tried"] for outcome in outcomes) >= 1


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
