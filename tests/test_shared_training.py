"""Jobs of a sweep that share a training: one holds it, the others register and end, and none is forgotten."""

from __future__ import annotations

import time
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from panda.app import shared_training
from panda.app.hydra_job import job_folder, list_overrides
from panda.app.shared_training import hold_training, look_after, run_registered
from panda.report.job_end import JobEnd
from panda.report.sweep_jobs import list_waiting


def make_hydra_config() -> Any:
    hydra = {"mode": RunMode.MULTIRUN, "overrides": {"task": ["threshold=0.3"]}, "runtime": {"output_dir": "x"}}
    cfg = OmegaConf.create({"hydra": hydra})
    OmegaConf.set_readonly(cfg.hydra, True)
    OmegaConf.set_struct(cfg, True)
    return cfg


@pytest.fixture(autouse=True)
def job_of_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", make_hydra_config())
    shared_training._held_trainings.clear()
    shared_training._continued.clear()


def configure(sweep: Path, job: str) -> DictConfig:
    return OmegaConf.create({"run_dir": str(sweep / job), "seed": 1, "allow_packages": ["x"], "root": "a/\\${b}"})


def ask(sweep: Path, job: str, held: ExitStack) -> bool:
    (sweep / job).mkdir(exist_ok=True)
    return hold_training(sweep / "training-0", sweep / job, held, configure(sweep, job), resumed=False)


def finish(job: Path) -> None:
    for name in ("training.json", "summary.json", "report.html"):
        (job / name).touch()


def finish_job(sweep: Path, ran: list[str], cfg: DictConfig) -> None:
    ran.append(Path(cfg.run_dir).name)
    finish(sweep / ran[-1])


def test_hold_training_second_job_registers_and_is_run_later(tmp_path: Path) -> None:
    ran: list[str] = []
    with ExitStack() as held, ExitStack() as other:
        assert ask(tmp_path, "0", held)
        (tmp_path / "1").mkdir()
        JobEnd(state="interrupted", message="x").write(tmp_path / "1")
        assert not ask(tmp_path, "1", other)
        assert list_waiting(tmp_path) == {"1"}
        assert JobEnd.read(tmp_path / "1") is None
    seen: list[tuple[list[str], str | None]] = []

    def run(cfg: DictConfig) -> None:
        assert (cfg.allow_packages, cfg.root) == (["y"], "a/${b}")
        seen.append((list_overrides(), job_folder(None)))
        finish_job(tmp_path, ran, cfg)

    (tmp_path / "1" / "overrides.txt").write_text("threshold=0.5\nname=${x}\n")
    before = HydraConfig.instance().cfg
    look_after(tmp_path / "training-0")  # job 1 was in this process too
    run_registered(run, ["y"])
    assert ran == ["1"]
    assert seen == [(["threshold=0.5", "name=${x}"], str(tmp_path / "1"))]
    assert HydraConfig.instance().cfg is before
    assert list_waiting(tmp_path) == set()
    run_registered(run, [])
    assert ran == ["1"]


def test_hold_training_freed_between_two_tries_runs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a job that registers just after the holder has looked would wait for ever."""
    with ExitStack() as held, ExitStack() as other:
        assert ask(tmp_path, "0", held)
        register = shared_training._register

        def register_late(*args: object, **options: object) -> None:
            held.close()
            run_registered(lambda cfg: pytest.fail("nothing is registered yet"), [])
            register(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(shared_training, "_register", register_late)
        assert ask(tmp_path, "1", other)
    ran: list[str] = []
    run_registered(lambda cfg: finish_job(tmp_path, ran, cfg), [])
    assert ran == ["1"], "it is registered, and a finished job is only looked at"


def stop_in_training(sweep: Path, job: str) -> Path:
    """Leave what a job leaves that is killed after an epoch."""
    with ExitStack() as held:
        assert ask(sweep, job, held)
    folder = sweep / job
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").write_text(f"run_dir: {folder}\nresume: {folder}/checkpoints/last.ckpt\nseed: 1\n")
    return folder


@pytest.mark.parametrize("end", [None, JobEnd(state="interrupted", message="the same command continues")])
def test_hold_training_stopped_job_is_continued_first(tmp_path: Path, end: JobEnd | None) -> None:
    stopped = stop_in_training(tmp_path, "2")
    if end:
        end.write(stopped)
    with ExitStack() as held:
        assert not ask(tmp_path, "10", held)
        assert list_waiting(tmp_path) == {"2", "10"}
        with ExitStack() as other:
            assert hold_training(tmp_path / "training-0", stopped, other, configure(tmp_path, "2"), resumed=True)
    ran: list[str] = []

    def run(cfg: DictConfig) -> None:
        assert cfg.resume is None, "the job looks for its checkpoint itself"
        finish_job(tmp_path, ran, cfg)

    run_registered(run, [])
    assert ran == ["2", "10"]
    assert list_waiting(tmp_path) == set()


def test_hold_training_job_that_cannot_continue_blocks_none(tmp_path: Path) -> None:
    stopped = stop_in_training(tmp_path, "0")
    (stopped / "config.yaml").write_text("{broken")
    ran: list[str] = []

    def run(cfg: DictConfig) -> None:
        with ExitStack() as held:
            assert ask(tmp_path, "1", held)
            finish_job(tmp_path, ran, cfg)

    with ExitStack() as held:
        assert not ask(tmp_path, "1", held)
    run_registered(run, [])
    assert ran == ["1"]


def test_hold_training_ended_failed_or_joint_begins_it(tmp_path: Path) -> None:
    stopped = stop_in_training(tmp_path, "0")
    with ExitStack() as held:
        (tmp_path / "1").mkdir()
        cfg = configure(tmp_path, "1")
        assert hold_training(tmp_path / "training-0", tmp_path / "1", held, cfg, resumed=False, joint=True)
    JobEnd(state="failed", message="SlideError: x").write(stopped)
    for name in ("error.json", "training.json"):
        (tmp_path / ".training-0.holder").write_text("0")
        (stopped / name).touch()
        with ExitStack() as held:
            assert ask(tmp_path, "1", held), name
        (stopped / name).unlink()


def test_run_registered_tries_each_job_once(tmp_path: Path) -> None:
    with ExitStack() as held, ExitStack() as other:
        ask(tmp_path, "0", held)
        for job in ("1", "2"):
            ask(tmp_path, job, other)
    (tmp_path / "1" / "config.yaml").write_text("{broken")
    ran: list[str] = []
    look_after(tmp_path / "training-0")

    def leave_nothing(cfg: DictConfig) -> None:
        ran.append(Path(cfg.run_dir).name)
        look_after(tmp_path / "training-0")

    run_registered(leave_nothing, [])
    assert ran == ["2"]
    assert list_waiting(tmp_path) == {"1", "2"}, "nothing shows that they ended"


def run_job(sweep: Path, job: str) -> None:
    """Do in a process of its own what a process of a launcher does: run a job, then those that registered."""

    def run(cfg: DictConfig) -> None:
        name = Path(cfg.run_dir).name
        with ExitStack() as held:
            if not ask(sweep, name, held):
                return
            if not (sweep / name / "summary.json").exists():
                time.sleep(0.02)
                with (sweep / "ran").open("a") as log:
                    log.write(f"{name}\n")
                finish(sweep / name)

    HydraConfig.instance().cfg = make_hydra_config()
    run(configure(sweep, job))
    run_registered(run, [])


def test_hold_training_many_processes_lose_no_job(tmp_path: Path) -> None:
    jobs = [str(job) for job in range(24)]
    stop_in_training(tmp_path, "17")
    with get_context("spawn").Pool(4) as pool:
        pool.starmap(run_job, [(tmp_path, job) for job in jobs], chunksize=1)
    ran = (tmp_path / "ran").read_text().split()
    assert (ran[0], sorted(ran, key=int)) == ("17", jobs)
    assert list_waiting(tmp_path) == set()
