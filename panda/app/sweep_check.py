"""Check all jobs of a sweep before the first one begins, so that each fault is said once, and number the jobs."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from panda.app.build import Faults
from panda.app.command_line import ENTRY_POINTS
from panda.app.hydra_job import list_overrides
from panda.app.ranks import find_launch
from panda.errors import ConfigError, PandaError

log = logging.getLogger(__name__)

_ELSEWHERE = "SlurmLauncher"
"""Ends the class of the launcher whose jobs run on other machines, which alone know what they have."""
_DIVIDING = {"slides", "labels", "groups", "shard"}
"""Keys in which jobs of one output may differ."""
_jobs: list[list[str]] = []
_said: set[str] = set()


def install_sweep_check() -> None:
    """Make Hydra check the jobs of a sweep when it composes them, before it launches the first one."""
    Sweeper.validate_batch_is_legal = _validate_batch  # type: ignore[method-assign, assignment]


def is_said(message: str) -> bool:
    """Return whether a refusal was said before the first job of the sweep."""
    return message in _said


def describe_job(folder: Path) -> str:
    """Return the number of this job of a sweep and what it varies, or its overrides if the others are not known."""
    own = list_overrides()
    if own not in _jobs:
        return f"job {folder.name}: {' '.join(own)}"
    varied = [text for text in own if not all(text in job for job in _jobs)]
    return f"job {folder.name} ({_jobs.index(own) + 1} of {len(_jobs)}): {' '.join(varied)}"


def forget_jobs() -> None:
    """Forget the jobs, for a program that runs several entry points."""
    _jobs.clear()
    _said.clear()


def _validate_batch(sweeper: Sweeper, batch: Sequence[Sequence[str]]) -> None:
    """Compose each job of a sweep and check it, in place of Hydra's method that only composes them.

    Raises:
        ConfigError: If each job has a fault, with all faults; or if jobs would replace each other's results.
    """
    assert sweeper.hydra_context is not None
    assert sweeper.config is not None
    first = len(_jobs)
    _jobs.extend([*overrides] for overrides in batch)
    refused: dict[int, ConfigError] = {}
    folders: dict[str, Sequence[str]] = {}
    for number, overrides in enumerate(batch, first):
        cfg = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, list(overrides))
        folder = _name_job(cfg, number)
        if keys := _list_different_keys(overrides, folders.setdefault(folder, overrides)):
            raise ConfigError(
                f"jobs that differ in {', '.join(keys)} would replace each other's results in {folder}: start them one "
                "by one, each with an output of its own"
            )
        try:
            _check_job(cfg, number)
        except ConfigError as error:
            refused[number] = error
    if not refused:
        return
    faults = _list_faults(refused, len(batch))
    if len(refused) == len(batch):
        raise ConfigError(faults)
    _said.update(map(str, refused.values()))
    if not find_launch().rank:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        log.error("%d of %d jobs will be refused:\n%s", len(refused), len(batch), listed)


def _list_faults(refused: Mapping[int, ConfigError], jobs: int) -> list[str]:
    """Return each fault once, with the jobs that have it unless all have."""
    numbers: dict[str, list[int]] = {}
    for number, error in refused.items():
        for fault in error.faults:
            numbers.setdefault(fault, []).append(number)
    return [
        fault if len(own) == jobs else f"job{'s' * (len(own) > 1)} {', '.join(map(str, own))}: {fault}"
        for fault, own in numbers.items()
    ]


def _list_different_keys(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return the keys in which two jobs differ, without those of jobs that add slides to one output."""
    return sorted({text.lstrip("+").partition("=")[0] for text in {*one} ^ {*other}} - _DIVIDING)


def _name_job(cfg: DictConfig, number: int) -> str:
    """Give a job its number and its folder, as its launcher does, and return the folder."""
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.job.id = str(number)
        cfg.hydra.job.num = number
        folder = os.path.abspath(os.path.join(cfg.hydra.sweep.dir, str(cfg.hydra.sweep.subdir)))
        cfg.hydra.runtime.output_dir = folder
    return folder


def _check_job(cfg: DictConfig, number: int) -> None:
    """Check the configuration of a job as the job does; it finds its other errors itself."""
    entry_point = cfg.hydra.job.config_name
    if entry_point not in ENTRY_POINTS or str(cfg.hydra.launcher._target_).endswith(_ELSEWHERE):
        return
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(cfg)
    job = cfg.copy()
    with open_dict(job):
        del job["hydra"]
    faults = Faults()
    try:
        if OmegaConf.select(job, "collect") is None:
            importlib.import_module(f"panda.app.{entry_point}").check(job, faults)
    except ConfigError:
        raise
    except PandaError as error:
        log.debug("job %d: %s", number, error)
    finally:
        hydra.cfg = before
