"""Search: the words of its command, and the study that processes share."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from panda.app.search import SearchSettings, main, search
from panda.app.search_space import Dimension, parse_words
from panda.errors import ConfigError
from panda.report.job_end import JobEnd

optuna = pytest.importorskip("optuna", reason="the extra cluster is not installed")

from panda.app import search_study  # noqa: E402  (needs optuna)
from panda.app.search_study import Plan, SearchStudy, open_storage  # noqa: E402

OWN = tuple(SearchSettings.model_fields)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
STUDIES = ("sqlite:///study.db", "journal:///study.log")
RATE = Dimension(low=1e-5, high=1e-2, is_log=True)
SPACE = {"optim.lr": RATE, "loss": Dimension(choices=("bce", "dice"))}
PLAN = Plan("study", SPACE, ("trainer.max_epochs=3",), "segmentation", maximize=True, prune=True, seed=0)


@pytest.fixture(autouse=True)
def work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("word", "dimension"),
    [
        ("k=choice(bce,bce_dice)", Dimension(choices=("bce", "bce_dice"))),
        ("k=256,512", Dimension(choices=("256", "512"))),
        ("k=range(16,65,16)", Dimension(low=16, high=64, step=16)),
        ("k=range(0,0.5,0.1)", Dimension(low=0, high=0.4, step=0.1)),
        ("k=sort(3,1)", Dimension(choices=("1", "3"))),
        ("k=interval(0,0.5)", Dimension(low=0.0, high=0.5)),
        ("k=int(interval(1,8))", Dimension(low=1, high=8, step=1)),
        ("k=log(1e-5,1e-2)", RATE),
        ("k=tag(log,interval(1e-5,1e-2))", RATE),
    ],
)
def test_parse_words_reads_values_as_hydra(word: str, dimension: Dimension) -> None:
    read = parse_words([word], OWN).space["k"]
    assert read.choices == dimension.choices
    assert (read.low, read.high, read.step) == pytest.approx((dimension.low, dimension.high, dimension.step))
    assert read.is_log == dimension.is_log


def test_parse_words_sorts_them() -> None:
    words = parse_words(
        ["study=sqlite:///a b.db", "n=5", "name=x", "optim.lr=log(0.1,1)", "+a.b=choice(x,y)", "model=unet", "~c"], OWN
    )
    assert words.own == {"study": "sqlite:///a b.db", "n": 5, "name": "x"}
    assert list(words.space) == ["optim.lr", "+a.b"]
    assert words.fixed == ["model=unet", "~c"]
    assert words.list_probes() == [
        ["model=unet", "~c", "optim.lr=0.1", "+a.b=x"],
        ["model=unet", "~c", "optim.lr=1.0", "+a.b=y"],
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=unet"], "no key is searched; give a key with its values, such as optim.lr=log"),
        (["k=range(0,0.5)"], r"k=range\(0,0.5\): there is no second value; give interval\(0,0.5\)"),
        (["k=choice(1)"], "there is no second value; give the key without choice"),
        (["k=interval(2,1)"], "2.0 is not below 1.0; give the lower end first"),
        (["k=log(0,1)"], "a logarithm needs numbers above 0"),
        (["k=log(1)"], "missing a required argument"),
        (["k=shuffle(range(1,4))"], "these values cannot be searched"),
        (["model=glob(*)"], r"these values cannot be searched; give choice\(a,b\)"),
        (["k=1,2", "k=3"], "k=3: k is given twice"),
        (["k=1,2", "resume=x"], "resume=x: a search sets this itself"),
        (["k=1,2", "hydra/launcher=joblib"], "a search sets this itself"),
        (["task=segmentation,grading"], "figures of two tasks cannot be compared"),
        (["k=1,2", "-m"], "-m: a search takes no options"),
    ],
)
def test_parse_words_impossible_is_refused(words: Sequence[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_words(words, OWN)


def test_search_all_faults_are_refused_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        search(["study=sqlite:///study.db", "n=3", "optim.lr=log(1e-5,1e-2)", "loss=choice(bce,bcee)", "model.x=1"])
    assert "model.x=1: there is no such key" in str(caught.value)
    assert "loss=bcee: there is no such choice" in str(caught.value)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n=3"], "study is not given"),
        (["study=sqlite:///a.db"], "n is not given"),
        (["study=sqlite:///a.db", "n=0"], "n=0"),
        (["study=sqlite:///a.db", "n=2", "prune=maybe"], "prune=maybe"),
    ],
)
def test_search_own_keys_are_checked(words: Sequence[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        search([*words, "optim.lr=0.1,0.2"])


def test_search_without_optuna_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "panda.app.search_study")
    monkeypatch.delattr("panda.app.search_study")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'panda-wsi\[cluster\]'"):
        search(["study=sqlite:///study.db", "n=3", "optim.lr=0.1,0.2"])


def test_search_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in OWN)


@pytest.mark.parametrize("address", STUDIES)
def test_search_trials_are_counted_over_processes(address: str) -> None:
    one, other = (SearchStudy(open_storage(address), PLAN, Path("sweep-study")) for _ in range(2))
    with one.take_trial(2) as first, other.take_trial(2) as second, one.take_trial(2) as third:
        assert first is not None
        assert second is not None
        assert (first.number, second.number, third) == (0, 1, None)
        assert first.params["loss"] in ("bce", "dice")
        assert 1e-5 <= first.params["optim.lr"] <= 1e-2
        assert first.params != second.params
        one.end(first, 0.5)
        other.end(second, float("nan"))
    assert one.count_states() == {"complete": 1, "fail": 1}
    assert (best := one.find_best()) is not None
    assert (best.number, best.value) == (0, 0.5)
    with one.take_trial(2) as none:
        assert none is None


def test_search_same_seed_draws_same_values() -> None:
    drawn = []
    for name in ("a", "b"):
        study = SearchStudy(open_storage(f"sqlite:///{name}.db"), PLAN, Path(f"sweep-{name}"))
        for figure in (0.1, 0.2, 0.3):
            with study.take_trial(3) as trial:
                assert trial is not None
                drawn.append(trial.params)
                study.end(trial, figure)
    assert drawn[:3] == drawn[3:]


_DIES = """
import os, signal, sys
from pathlib import Path
from tests.test_search import PLAN, SearchStudy, open_storage

study = SearchStudy(open_storage(sys.argv[1]), PLAN, Path("sweep-study"))
with study.take_trial(1) as trial:
    study.report(trial, 0, 0.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("address", STUDIES)
def test_search_trial_of_killed_process_is_continued(address: str) -> None:
    ended = [
        subprocess.run([sys.executable, "-c", _DIES, address], env=ENVIRONMENT, check=False).returncode
        for _ in range(2)
    ]
    assert ended == [-signal.SIGKILL] * 2
    study = SearchStudy(open_storage(address), PLAN, Path("sweep-study"))
    with study.take_trial(1) as trial:
        assert trial is not None
        assert trial.number == 0
        assert not study.report(trial, 0, 0.5)
        study.end(trial, 0.7)
    assert study.count_states() == {"complete": 1}


def test_search_trial_whose_processes_die_fails() -> None:
    study = SearchStudy(open_storage("sqlite:///study.db"), PLAN, Path("sweep-study"))
    for _ in range(3):
        with study.take_trial(1) as trial:
            assert trial is not None
    with study.take_trial(1) as trial:
        assert trial is None
    assert study.count_states() == {"fail": 1}
    end = JobEnd.read(Path("sweep-study/0"))
    assert end
    assert "killed 3 times without progress" in end.message


def test_search_trial_that_progresses_is_always_continued() -> None:
    study = SearchStudy(open_storage("sqlite:///study.db"), PLAN, Path("sweep-study"))
    (checkpoints := Path("sweep-study/0/checkpoints")).mkdir(parents=True)
    for epoch in range(6):
        with study.take_trial(1) as trial:
            assert trial is not None
            (checkpoints / "last.ckpt").write_text(str(epoch))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"optim.lr": RATE}}, "the study has space optim.lr, loss, not optim.lr"),
        ({"fixed": ()}, "the study has overrides trainer.max_epochs=3"),
        ({"task": "grading"}, "the study has task segmentation, not grading"),
        ({"maximize": False}, "the study has the other direction"),
    ],
)
def test_search_study_of_another_command_is_refused(changes: dict[str, object], said: str) -> None:
    import dataclasses

    SearchStudy(open_storage(STUDIES[0]), PLAN, Path("sweep-study"))
    with pytest.raises(ConfigError, match=said):
        SearchStudy(open_storage(STUDIES[0]), dataclasses.replace(PLAN, **changes), Path("sweep-study"))  # type: ignore[arg-type]


def test_search_folder_of_another_study_is_refused() -> None:
    SearchStudy(open_storage("sqlite:///a.db"), PLAN, Path("sweep-study"))
    for address, folder in (("sqlite:///b.db", "sweep-study"), ("sqlite:///a.db", "elsewhere")):
        with pytest.raises(ConfigError, match="do not belong together"):
            SearchStudy(open_storage(address), PLAN, Path(folder))


def test_search_folder_of_a_sweep_is_refused() -> None:
    Path("sweep-study", "0").mkdir(parents=True)
    with pytest.raises(ConfigError, match="do not belong together"):
        SearchStudy(open_storage("sqlite:///a.db"), PLAN, Path("sweep-study"))


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "postgresql://nobody:secret@localhost:1/x",
        *(scheme + name for scheme in ("sqlite:///", "journal:///") for name in ("", "a file/study", "a folder")),
    ],
)
def test_open_storage_impossible_is_refused(address: str) -> None:
    Path("a file").touch()
    Path("a folder").mkdir()
    with pytest.raises(ConfigError, match=r"- study=(?!.*secret).* cannot be opened .*; give "):
        open_storage(address)


@pytest.mark.parametrize("content", [b"text\n", b"\xff\xfe no line", b'{"op_code":0}\n', b'{"op_code":0\n{"op_code":'])
def test_open_storage_of_another_file_leaves_it(content: bytes) -> None:
    path = Path("study.log")
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"study=journal:///study.log cannot be opened .*; give "):
        open_storage("journal:///study.log")
    assert path.read_bytes() == content


def test_open_storage_of_another_database_leaves_it() -> None:
    path = Path("study.db")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE slides (name TEXT)")
    content = path.read_bytes()
    with pytest.raises(ConfigError, match="database of another program"):
        open_storage("sqlite:///study.db")
    assert path.read_bytes() == content


@pytest.mark.parametrize("word", ["name=a/b", "name=..", "study=sqlite:///-x.db"])
def test_search_name_of_no_folder_is_refused(word: str) -> None:
    words = {"study": "study=sqlite:///x.db"} | {word.partition("=")[0]: word}
    with pytest.raises(ConfigError, match=r"name=\S+ must be a plain name.*begin with a letter"):
        search([*words.values(), "n=1", "optim.lr=log(1e-5,1e-2)"])


_OPENS = """
import sys, time
from pathlib import Path
from panda.app.search_study import open_storage

Path(sys.argv[1]).touch()
while not Path("all_are_ready").exists():
    time.sleep(0.001)
open_storage("sqlite:///study.db")
"""


def test_open_storage_of_processes_at_once_works() -> None:
    names = [f"ready{number}" for number in range(4)]
    started = [subprocess.Popen([sys.executable, "-c", _OPENS, name], env=ENVIRONMENT) for name in names]
    while not all(map(os.path.exists, names)):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    Path("all_are_ready").touch()
    assert [process.wait(timeout=60) for process in started] == [0] * 4


@pytest.mark.parametrize(("kind", "refused"), [("nfs4", True), ("lustre", True), ("fuse.sshfs", True), ("ext4", False)])
def test_open_storage_sqlite_on_network_is_refused(monkeypatch: pytest.MonkeyPatch, kind: str, refused: bool) -> None:
    monkeypatch.setattr(search_study, "_find_file_system", lambda path: kind)
    open_storage("journal:///study.log")
    if refused:
        with pytest.raises(
            ConfigError, match=rf"on {kind}, and databases of SQLite break .* study=journal:///study.log"
        ):
            open_storage("sqlite:///study.db")
    else:
        open_storage("sqlite:///study.db")


def test_search_report_below_the_median_stops() -> None:
    study = SearchStudy(open_storage("sqlite:///study.db"), PLAN, Path("sweep-study"))
    stops = []
    for figure in (0.5, 0.6, 0.7, 0.8, 0.9, 0.1):
        with study.take_trial(6) as trial:
            assert trial is not None
            stops.append(study.report(trial, 0, figure))
            study.prune(trial) if stops[-1] else study.end(trial, figure)
    assert stops == [False] * 5 + [True]
    assert study.count_states() == {"complete": 5, "pruned": 1}
