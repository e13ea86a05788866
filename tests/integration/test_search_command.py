"""Searches with real trainings: several processes, an interrupted and a pruned trial, and the page."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from panda.app import search
from panda.app.entry_point import enter, forget_refusals
from panda.report.job_end import JobEnd
from tests.integration.entry_points import REPOSITORY, table
from tests.integration.test_entry_points import TINY

optuna = pytest.importorskip("optuna", reason="the extra cluster is not installed")

from panda.app.search_study import SearchStudy  # noqa: E402  (needs optuna)

pytestmark = pytest.mark.slow

SPACE = ("optim.lr=log(1e-3,1e-2)", "loss=choice(bce,bce_dice)")
COMMON = (*TINY, "data.draw.slides=6", "logger=csv", "test_slides=false")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def _run(*words: str) -> object:
    forget_refusals()
    with pytest.raises(SystemExit) as ended:
        enter(lambda: search.main(words))
    return ended.value.code


def _words(name: str, *more: str) -> tuple[str, ...]:
    given = {word.partition("=")[0]: word for word in (*COMMON, f"study=sqlite:///{name}.db", *SPACE, *more)}
    return tuple(given.values())


def test_search_of_two_processes_shares_trials_and_page(home: Path) -> None:
    command = [sys.executable, "-m", "panda.app.search", *_words("shared", "n=3")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    both = [
        subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
    assert all("best: trial " in out for out, _ in said)
    assert all("run: runs/segmentation/sweep-shared/" in error for _, error in said), "one process did nothing"
    rows = table(home / "runs" / "segmentation" / "sweep-shared" / "sweep.csv")
    assert [row["job"] for row in rows] == ["0", "1", "2"]
    study = optuna.load_study(study_name="shared", storage=f"sqlite:///{home / 'shared.db'}")
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    for row, trial in zip(rows, study.trials, strict=True):
        assert float(row["val_dice"]) == pytest.approx(trial.value)
        assert (float(row["optim.lr"]), row["loss"]) == (trial.params["optim.lr"], trial.params["loss"])
        assert list(trial.intermediate_values) == [0]


def test_search_interrupted_and_pruned_trials(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    words, folder = _words("one", "trainer.max_epochs=2"), Path("runs/segmentation/sweep-one")
    report = SearchStudy.report

    def interrupt(study: SearchStudy, trial: Any, epoch: int, value: float) -> bool:
        if epoch == 1:
            raise KeyboardInterrupt
        return report(study, trial, epoch, value)

    with monkeypatch.context() as patched:
        patched.setattr(SearchStudy, "report", interrupt)
        assert _run(*words, "n=1") == 130
    assert "interrupted; the same command continues the search" in capsys.readouterr().err
    assert not (folder / "0" / "summary.json").exists()
    assert _run(*words, "n=1") == 0
    study = optuna.load_study(study_name="one", storage="sqlite:///one.db")
    [trial] = study.trials
    assert sorted(trial.intermediate_values) == [0, 1]
    assert [row["epoch"] for row in table(folder / "0" / "metrics.csv") if row["val/dice"]] == ["0", "1"]

    for _ in range(5):
        better = optuna.trial.create_trial(
            params=trial.params, distributions=trial.distributions, value=1.0, intermediate_values={0: 1.0}
        )
        study.add_trial(better)
    assert _run(*words, "n=7") == 0
    assert study.trials[6].state == optuna.trial.TrialState.PRUNED
    assert list(study.trials[6].intermediate_values) == [0]
    end = JobEnd.read(folder / "6")
    assert end
    assert end.message.startswith("pruned: val/dice of epoch 0 is 0.")
    assert [(row["job"], row["state"]) for row in table(folder / "sweep.csv")] == [("0", "done"), ("6", "pruned")]
    assert "trials: 6 complete, 1 pruned" in capsys.readouterr().out
