"""Jobs of a sweep that share a training: one trains, and then evaluates those that registered.

A job that finds its training held does not wait, because it would keep a GPU idle. It registers and ends. The holder
looks for registered jobs after its own evaluation, and runs them in its process. A job registers before it tries to
hold the training for the last time, and a holder looks after it has let go. So no job is forgotten.

After a kill, the first job that is started again may be another one than that which has the `last.ckpt` of the
training. It registers both, ends, and its process continues that job first.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from panda.app.begun_job import is_finished
from panda.app.hydra_job import write_overrides
from panda.app.resume import read_run_config
from panda.app.training_reuse import RECORD
from panda.errors import ConfigError, LockedError
from panda.files import hold_lock, write_whole
from panda.report.job_end import JobEnd, forget_end
from panda.report.run_folder import read_text
from panda.settings import escape

log = logging.getLogger(__name__)

_held_trainings: set[Path] = set()
"""Trainings that this process has held, and whose registered jobs it has not looked for since."""

_continued: set[Path] = set()
"""Stopped jobs that this process has continued, or has tried to."""


def look_after(training: Path) -> None:
    """Let `run_registered` look for the jobs that registered for a training; `training` is the name of its lock."""
    _held_trainings.add(training)


def hold_training(
    training: Path, folder: Path, held: contextlib.ExitStack, cfg: DictConfig, *, resumed: bool, joint: bool = False
) -> bool:
    """Hold a training for a job until `held` closes, or register the job and return False.

    The latter happens if another job holds the training, or has begun it and was stopped.

    Args:
        training: Name of the lock, in the folder of the sweep.
        folder: Folder of the job.
        held: Gets the lock.
        cfg: Configuration of the job.
        resumed: The job has trained before.
        joint: Several ranks train. They end with this job, so it does not continue another one.
    """
    holder = training.with_name(f".{training.name}.holder")
    for last in (False, True):
        with contextlib.suppress(LockedError), contextlib.ExitStack() as lock:
            lock.enter_context(hold_lock(training, wait=False))
            look_after(training)
            begun = training.parent / read_text(holder)
            if begun not in {folder, *_continued} and not (resumed or joint) and _was_stopped(begun):
                _continued.add(begun)
                log.info("%s: job %s has begun this training, and is continued first", folder, begun.name)
                _register(training, folder, cfg, resumed=resumed)
                _register(training, begun)
                return False
            write_whole(holder, folder.name)
            held.enter_context(lock.pop_all())
            return True
        if not last:
            _register(training, folder, cfg, resumed=resumed)
    _held_trainings.discard(training)
    log.info("%s: job %s trains for this one too, and then evaluates it", folder, read_text(holder) or "another")
    return False


def _has_begun(folder: Path) -> bool:
    return (folder / "checkpoints" / "last.ckpt").is_file()


def _was_stopped(folder: Path) -> bool:
    """Return whether a job, which runs no more, was stopped in its training; one that failed would fail again."""
    end = JobEnd.read(folder)
    is_open = end is None or end.state == "interrupted"
    return _has_begun(folder) and is_open and not (folder / RECORD).exists()


def _register(training: Path, folder: Path, cfg: DictConfig | None = None, *, resumed: bool = True) -> None:
    """Register a job; `cfg` is None if it has a configuration already."""
    try:
        with hold_lock(folder / "run", wait=False):
            if cfg is not None:
                write_whole(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
                write_overrides(folder, resumed=resumed)
            forget_end(folder)
    except LockedError:  # the job itself runs
        return
    registered = _find_registered(training)
    registered.mkdir(exist_ok=True)
    (registered / folder.name).touch()


def _find_registered(training: Path) -> Path:
    """Return the folder with an empty file for each registered job, see `panda.report.sweep_jobs.WAITING`."""
    return training.with_name(f".{training.name}.waiting")


def run_registered(run: Callable[[DictConfig], object], allow_packages: list[str]) -> None:
    """Run the jobs that registered for the trainings that this process has held.

    Args:
        run: Runs a job, whose errors it writes to the folder of the job.
        allow_packages: Packages that were typed with the command of this process. No file can allow others.
    """
    tried: set[Path] = set()
    while _held_trainings:
        training = _held_trainings.pop()
        if not (left := sorted(set(_list_registered(_find_registered(training))) - tried)):
            continue
        # a stopped training is continued before jobs that would begin it
        file = min(left, key=lambda file: not _has_begun(training.parent / file.name))
        folder = training.parent / file.name
        log.info("%s: it registered for this training", folder)
        look_after(training)  # again after this job, unless another process holds the training by then
        try:
            with _enter_job(folder) as cfg:
                cfg.allow_packages = allow_packages
                run(cfg)
        except ConfigError as error:  # its config.yaml was edited
            log.error("%s", error)
        if training in _held_trainings:
            tried.add(file)


def _list_registered(registered: Path) -> list[Path]:
    """Return the files of registered jobs, and remove those of jobs that have ended since."""
    files = list(registered.glob("*"))
    for file in files:
        folder = registered.parent / file.name
        if is_finished(folder) or JobEnd.read(folder):
            file.unlink(missing_ok=True)
    return [file for file in files if file.exists()]


@contextlib.contextmanager
def _enter_job(folder: Path) -> Iterator[DictConfig]:
    """Make another job of the sweep the current one of Hydra, and yield its configuration."""
    cfg = read_run_config(folder / "config.yaml")
    cfg.run_dir, cfg.resume = escape(str(folder)), None  # it finds its own checkpoint
    hydra = HydraConfig.instance()
    before = hydra.cfg
    assert before is not None
    now: Any = copy.copy(before)
    with read_write(now.hydra), open_dict(now.hydra):
        now.hydra.overrides.task = read_text(folder / "overrides.txt").splitlines()
        now.hydra.runtime.output_dir = str(folder)
    hydra.cfg = now
    try:
        yield cfg
    finally:
        hydra.cfg = before
