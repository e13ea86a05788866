"""The frame around jobs: refusals in plain words, exit status, traces of failed jobs."""

import contextlib
import errno
import gc
import logging
import os
import shlex
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import cast

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from panda.app import entry_point
from panda.app.audit import audit
from panda.app.entry_point import (
    Interrupted,
    close_logs,
    enter,
    exit_status,
    forget_refusals,
    guard,
    log_to_file,
    pause_collection,
)
from panda.app.features import extract_features
from panda.app.hydra_job import list_overrides, register_resolvers
from panda.app.infer import infer
from panda.app.train import train
from panda.errors import ConfigError, SlideError
from panda.files import write_whole
from panda.report.job_end import JobEnd
from panda.settings import quote

CONF = Path(__file__).resolve().parents[1] / "conf"


@pytest.fixture(autouse=True)
def reset_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("panda"), "handlers", [])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")


def run_refused(*overrides: str, entry_point: str = "train") -> str:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(ConfigError) as caught:
        compose(entry_point, overrides=list(overrides))
    return caught.value.faults[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("modle=unet", ("modle=unet", "did you mean model?")),
        ("data.patchsize=3", ("data.patchsize=3", "patch_size")),
        ("trainer.epochs=3", ("trainer.epochs=3", "max_epochs")),
        ("target=cancer", ("target=cancer: there is no such key (did you mean task.target with task=grading?)",)),
        ("lr=0.1", ("lr=0.1: there is no such key (did you mean optim.lr?)",)),
        ("batch_size=4", ("did you mean data.batch_size, engine.batch_size?",)),
        ("momentum=0.9", ("did you mean optim.momentum with optim=sgd?",)),
        ("gamma=2", ("gamma=2: there is no such key (did you mean loss.gamma with loss=focal?)",)),
        ("data.slides=4", ("did you mean data.draw.slides?",)),
        ("model=unett", ("model=unett", "did you mean unet?")),
        ("experiment=dmo", ("experiment=dmo", "did you mean demo?")),
        ("slides", ("slides is no key=value",)),
        ("name=a,b", ("name=a,b", "-m", "'name=\"a,b\"'")),
        ("output=a=b", ("output=a=b", "'output=\"a=b\"'")),
        ("slides=my slides (1).tiff", ("slides=my slides (1).tiff", "'slides=\"my slides (1).tiff\"'")),
        ("slides=a,", ("slides=a,:", "'slides=\"a,\"'")),
        ("nothing=1", ("nothing=1: there is no such key; --help lists the keys",)),
        ("~modle", ("modle", "--help")),
        ("model=null", ("model=null", "--help")),
        ("tiles=tissue", ("tiles=tissue needs task=grading: give both",)),
        ("tiles.k=4", ("tiles.k=4 needs task=grading",)),
    ],
)
def test_entry_point_hydra_refusal_is_reworded(override: str, said: tuple[str, ...]) -> None:
    text = run_refused(override)
    assert "\n" not in text
    assert "hydra.cc" not in text
    for part in said:
        assert part in text


@pytest.mark.parametrize(
    "override", ["trainer.check_val_every_n_epoch=2", "optim.momentum=0.9", "trainer.limit_train_batches=3"]
)
def test_entry_point_key_that_target_takes_is_named_with_plus(override: str) -> None:
    assert run_refused(override) == f"{override}: there is no such key in conf: add it with +{override}"


def test_entry_point_values_of_list_need_no_brackets() -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("infer", overrides=["slides=a b.svs,c/*.svs"])
        assert cfg.slides == ["a b.svs", "c/*.svs"]
        assert compose("train", overrides=["data.exclude=blur,unopenable"]).data.exclude == ["blur", "unopenable"]
        assert compose("infer", overrides=['slides="a,b.svs"']).slides == "a,b.svs"


def test_entry_point_key_of_other_task_names_task() -> None:
    assert run_refused("task=grading", "target=cancer").endswith("(did you mean task.target?)")
    assert run_refused("task=grading", "tiles.kk=4").startswith("tiles.kk=4: there is no such key")
    message = run_refused("checkpoint=a", "slides=b", "min_region_px=9", entry_point="infer")
    assert message == "min_region_px=9: there is no such key (did you mean quantify.min_region_px?)"


def test_entry_point_refused_key_has_one_fault() -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(ConfigError) as caught:
        compose("infer", overrides=["checkpoint=a,b", "slides=c,"])
    assert sorted(fault.partition(":")[0] for fault in caught.value.faults) == ["checkpoint=a,b", "slides=c,"]


def test_entry_point_refused_composition_leaves_no_overrides() -> None:
    run_refused("checkpoint=a", "slides=b", "min_region_px=9", entry_point="infer")
    assert list_overrides() == []


@pytest.mark.parametrize(
    "value", ["a=b", "my slides (1).tiff", 'say "a"', "it's", "C:\\x\\", 'a\\"', "[x", "{", "a,b", "#1"]
)
def test_quoted_value_survives_shell_and_hydra(value: str) -> None:
    (typed,) = shlex.split(quote(f"slides={value}"))
    assert OverridesParser.create().parse_override(typed).value() == value


def job(tmp_path: Path, **more: object) -> DictConfig:
    return OmegaConf.create({"debug": False, "run_dir": str(tmp_path), **more})


def test_entry_point_ctrl_c_prints_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @guard
    def stopped(cfg: DictConfig) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        enter(lambda: stopped(job(tmp_path)))
    assert left.value.code == 130
    err = capsys.readouterr().err
    assert err.startswith("interrupted; ")
    assert "Traceback" not in err


def test_entry_point_ctrl_c_prints_resume_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @guard
    def stopped(cfg: DictConfig) -> None:
        raise Interrupted("resume it with: that")

    with pytest.raises(SystemExit) as left:
        enter(lambda: stopped(job(tmp_path)))
    assert left.value.code == 130
    assert capsys.readouterr().err == "interrupted; resume it with: that\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ("RUN: No space left", "make room")),
        (OSError(errno.EROFS, "Read-only file system", "a/b.log"), ("a/b.log: Read-only", "can be written")),
        (OSError("odd"), ("odd",)),
    ],
)
def test_guard_system_error_names_path_and_remedy(
    error: OSError, said: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    @guard
    def failing(cfg: DictConfig) -> None:
        raise error

    failing(job(Path("RUN")))
    err = capsys.readouterr().err
    for part in said:
        assert part in err


def test_enter_hydra_refusal_is_one_message_and_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "modle=unet"])

    def main() -> None:
        refused = "Config group override must be a string"
        raise ValueError(refused)

    with pytest.raises(SystemExit) as left:
        enter(main)
    assert left.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("ConfigError: 1 fault")
    assert "modle=unet" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("entry_point", ["train", "infer", "audit", "features"])
def test_entry_point_configuration_can_be_resolved(entry_point: str) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(entry_point, return_hydra_config=True)
    OmegaConf.resolve(cfg)


def test_enter_option_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed=3"])
    with pytest.raises(SystemExit) as left:
        enter(lambda: pytest.fail("it ran"), "train")
    assert left.value.code == 1
    assert "--seed=3: there is no such option; a key is typed without dashes" in capsys.readouterr().err


def test_enter_configuration_of_other_entry_point_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--config-name=infer", "seed=1"])
    with pytest.raises(SystemExit) as left:
        enter(lambda: pytest.fail("it ran"), "train")
    assert left.value.code == 1
    assert [line for line in capsys.readouterr().err.splitlines() if "configuration of" in line] == [
        "  - --config-name=infer: that is the configuration of python infer.py: run it, or leave the option out"
    ]


@pytest.mark.parametrize(
    ("call", "reader", "said"),
    [
        ("entry_point.enter(lambda: print('x\\n' * 100_000), 'train')", "head -n 1", "x\n0\n"),
        ("entry_point.end_at_closed_output()(lambda: (print('x'), sys.exit(3)))()", "true", "3\n"),
    ],
)
def test_enter_reader_that_ended_is_no_error(call: str, reader: str, said: str) -> None:
    code = f"import sys; from panda.app import entry_point; {call}"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | {reader}; echo ${{PIPESTATUS[0]}}"
    here = {"PYTHONPATH": str(CONF.parent), "PYTHONUNBUFFERED": ""}
    done = subprocess.run(["bash", "-c", command], env=os.environ | here, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (said, "")


def test_guard_unexpected_error_keeps_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "sweep-x" / "0"

    @guard
    def broken(cfg: DictConfig) -> None:
        raise ZeroDivisionError("seven")

    with pytest.raises(ZeroDivisionError):
        enter(lambda: broken(job(folder)))
    assert JobEnd.read(folder) == JobEnd(state="failed", message="ZeroDivisionError: seven")


def test_log_to_file_forgets_how_an_earlier_job_ended(tmp_path: Path) -> None:
    JobEnd(state="failed", message="no space").write(tmp_path)
    close_logs(log_to_file)(tmp_path / "infer.log")
    assert JobEnd.read(tmp_path) is None


@pytest.mark.parametrize("debug", [False, True])
def test_log_to_file_holds_traceback_and_terminal_if_debug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], debug: bool
) -> None:
    @guard
    def warned(cfg: DictConfig) -> None:
        log_to_file(tmp_path / "run.log")
        logging.getLogger("panda.x").warning("it failed", exc_info=ZeroDivisionError("seven"))

    warned(job(tmp_path, debug=debug))
    err = capsys.readouterr().err
    assert "it failed" in err
    assert ("ZeroDivisionError" in err) == debug
    assert "ZeroDivisionError: seven" in (tmp_path / "run.log").read_text()


def test_close_logs_job_from_python_ends_its_file_and_guard_later(tmp_path: Path) -> None:
    @close_logs
    def fail(cfg: DictConfig) -> None:
        log_to_file(tmp_path / f"{cfg.debug}.log")
        raise SlideError("damaged")

    with pytest.raises(SlideError):
        fail(job(tmp_path, debug=True))
    assert not any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger("panda").handlers)
    guard(fail)(job(tmp_path, debug=False))
    assert "SlideError: damaged" in (tmp_path / "False.log").read_text()
    assert (tmp_path / "True.log").read_text() == ""
    assert not any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger("panda").handlers)


@pytest.mark.parametrize("entry", [train, infer, audit, extract_features])
def test_entry_points_called_from_python_close_logs(entry: FunctionType) -> None:
    assert entry.__code__ is cast(FunctionType, close_logs(entry)).__code__


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_entry_point_signal_ends_as_ctrl_c_does(capsys: pytest.CaptureFixture[str], name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def job(cfg: DictConfig) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            os.kill(os.getpid(), number)  # schedulers repeat it
            raise RuntimeError("a helper process was killed by the same signal") from None

    with pytest.raises(SystemExit) as end:
        enter(lambda: guard(job)(DictConfig({"run_dir": None, "debug": False})))
    assert end.value.code == 130
    assert capsys.readouterr().err == (
        f"interrupted by {name}; finished work is kept, and the same command continues from there\n"
    )
    assert signal.getsignal(number) == before


def test_guard_full_disk_under_log_gives_one_message(
    small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk("16k")

    def fill(cfg: DictConfig) -> None:
        log_to_file(disk / "run.log")
        with contextlib.suppress(OSError), (disk / "others").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        logging.getLogger("panda").info("%s", "a line that does not fit " * 400)
        write_whole(disk / "summary.json", bytes(8192))

    forget_refusals()
    guard(fill)(DictConfig({"run_dir": str(disk), "debug": False}))
    said = capsys.readouterr().err
    assert exit_status() == 1
    assert said.count("No space left") == 1
    assert "make room" in said
    assert "Traceback" not in said


def test_guard_refused_sweep_job_leaves_error_and_choices(tmp_path: Path) -> None:
    @guard
    def refused(cfg: DictConfig) -> None:
        raise SlideError("no")

    folder = tmp_path / "sweep-x" / "1"
    refused(job(folder))
    assert exit_status() == 1
    assert JobEnd.read(folder) == JobEnd(state="failed", message="SlideError: no")
    assert (folder / "overrides.txt").exists()
    alone = tmp_path / "alone"
    refused(job(alone))
    assert not alone.exists()


def test_pause_collection_keeps_no_garbage_of_earlier_jobs() -> None:
    class Node:
        """Refers to itself."""

    with pause_collection():
        pass
    node = Node()
    node.self = node  # type: ignore[attr-defined]
    seen = weakref.ref(node)
    with pause_collection():
        del node
    gc.collect()
    assert seen() is None


def test_pause_collection_leaves_no_leak_reports() -> None:
    """Triton, which torch may import, reports frozen objects in thirty lines at the end of a process."""
    pytest.importorskip("triton")
    text = "from panda.app.entry_point import pause_collection\nwith pause_collection():\n    import triton\n"
    done = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_pause_collection_passes_over_what_was_imported() -> None:
    entry_point._freeze_once.cache_clear()
    before = gc.get_freeze_count()
    try:
        with pause_collection():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
