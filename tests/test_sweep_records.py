"""The table of a sweep is put together from one record a job, at any time and from folders alone."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from panda.files import hold_lock
from panda.report.job_end import JobEnd
from panda.report.sweep import main
from panda.report.sweep_jobs import read_jobs
from panda.report.sweep_page import write_sweep
from tests.summaries import fill_summary

_opened: list[str] = []
_hooked: list[bool] = []


def list_opened(folder: Path) -> list[str]:
    """Return the files of a folder that were opened since the last call."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(lambda event, args: _opened.append(str(args[0])) if event == "open" else None)
    found = [name for name in _opened if name.startswith(str(folder))]
    _opened.clear()
    return found


def add_job(sweep: Path, name: str, *files: str, **about: Any) -> Path:
    """Add a job with a summary if `about` says something of it, and empty files."""
    folder = sweep / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text("")
    if about:
        (folder / "summary.json").write_text(json.dumps(fill_summary(about)))
    return folder


def test_read_jobs_opens_one_file_for_each_job(tmp_path: Path) -> None:
    for job in range(60):
        files = ("overrides.txt", "config.yaml", "failures.csv", "report.html", "threshold_curve.csv")
        add_job(tmp_path, str(job), *files, val={"dice_mean_slide": 0.5}, overrides=[f"seed={job}"], lost_slides=job)
    list_opened(tmp_path)
    jobs = read_jobs(tmp_path)
    assert len(list_opened(tmp_path)) == 60
    assert [(job.choices["seed"], job.lost_slides) for job in jobs] == [(str(job), job) for job in range(60)]
    write_sweep(tmp_path)
    # the page compares the slides and the curves of the first 40
    assert len([name for name in list_opened(tmp_path) if name.endswith((".json", ".txt", "failures.csv"))]) == 60


def test_read_jobs_older_summary_uses_files_beside_it(tmp_path: Path) -> None:
    folder = add_job(tmp_path, "0", val={"dice_mean_slide": 0.5})
    (folder / "overrides.txt").write_text("seed=4\n")
    (folder / "failures.csv").write_text("slide_id,error,message\na,E,m\n")
    (job,) = read_jobs(tmp_path)
    assert (job.choices, job.lost_slides) == ({"seed": "4"}, 1)


def test_sweep_command_shows_states_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = {"val": {"dice_mean_slide": 0.5}, "overrides": ["seed=0"], "lost_slides": 0}
    add_job(tmp_path, "0", **done)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 jobs: 1 done"
    assert said[1].startswith("1. 0: validation 0.50 ")
    assert said[-1] == f"sweep: {tmp_path / 'sweep.html'}"
    add_job(tmp_path, "1", "config.yaml")
    add_job(tmp_path, "2", "config.yaml")
    add_job(tmp_path, "3", "config.yaml")
    JobEnd(state="failed", message="interrupted in spirit only").write(add_job(tmp_path, "4"))
    JobEnd(state="interrupted", message="the same command").write(add_job(tmp_path, "5"))
    (add_job(tmp_path, "6") / "error.json").write_text("{")
    waiting = tmp_path / ".training-0.waiting"
    waiting.mkdir()
    (waiting / "2").touch()
    with hold_lock(tmp_path / "1" / "run"):
        assert main([str(tmp_path)]) == 1
    with (tmp_path / "sweep.csv").open(newline="") as file:
        states = [row["state"] for row in csv.DictReader(file)]
    assert states == ["done", "running", "waiting", "lost", "failed", "interrupted", "failed"]
    page = (tmp_path / "sweep.html").read_text()
    assert "1 waiting" in page
    assert "the command of the sweep with its name continues it" in page
    with hold_lock(tmp_path / "1" / "run", wait=False):
        pass  # the reader has let it go


@pytest.mark.parametrize(("lost", "status"), [(0, 0), (2, 1)])
def test_sweep_command_lost_slides_are_no_success(tmp_path: Path, lost: int, status: int) -> None:
    add_job(tmp_path, "0", val={"dice_mean_slide": 0.5}, overrides=[], lost_slides=lost)
    assert main([str(tmp_path)]) == status


def test_sweep_command_missing_folder_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent")]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_sweep_command_folder_without_jobs_is_refused_untouched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    assert main([str(tmp_path)]) == 1
    assert "has no jobs of a sweep: give the folder of a sweep" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_sweep_command_run_is_refused_untouched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert main([str(tmp_path)]) == 1
    assert "is a run: give the folder of a sweep" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
