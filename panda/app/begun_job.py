"""What an earlier command left in the folder of a run or of a job of a sweep, and how a new command uses it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from panda.app.dashboard import flatten
from panda.app.hydra_job import AUTO, is_unnamed
from panda.app.resume import read_run_config
from panda.app.training_reuse import RECORD, Training
from panda.app.wandb_dashboard import set_wandb_aside
from panda.errors import ConfigError, PandaError
from panda.files import remove
from panda.report.run_summary import RunSummary, read_summary

_COMMAND_KEYS = ("name", "run_dir", "resume", "debug", "allow_packages")
"""Keys that may differ between two commands for the same job."""


def holds_run(folder: Path) -> bool:
    """Return whether a folder has a run that is finished or can be resumed, or files of another program.

    A run that failed before its first `last.ckpt` leaves a folder that the same command can use again.
    """
    ended = (folder / name for name in ("summary.json", RECORD, "checkpoints/last.ckpt"))
    foreign = (folder / "checkpoints").exists() and not (folder / "config.yaml").is_file()
    return foreign or any(path.exists() for path in ended)


def clear_failed_start(folder: Path) -> None:
    """Remove what a run that failed before its first `last.ckpt` would mix into a new one."""
    for name in ("checkpoints/best.ckpt", "views", RECORD):
        remove(folder / name)
    set_wandb_aside(folder)


@dataclass(frozen=True)
class BegunRun:
    """What a command finds of its run.

    Attributes:
        folder: Folder of the run.
        last: Checkpoint to resume, or None for a run that is to begin. This includes a job of a sweep that took its
            checkpoints from another job.
        finished: Summary of a finished run, or None.
    """

    folder: Path
    last: Path | None = None
    finished: RunSummary | None = None


def find_begun_run(cfg: DictConfig, folder: Path) -> BegunRun:
    """Find the run that a command began, in `folder` or, for an unnamed run with `resume=auto`, beside it.

    Raises:
        ConfigError: If the run has another configuration, or has lost its checkpoint.
    """
    if cfg.resume not in (None, AUTO):
        return BegunRun(folder, Path(cfg.resume))
    if is_unnamed(cfg):
        found = _find_newest(cfg, folder.parent) if cfg.resume == AUTO else None
        if found is None:
            return BegunRun(folder)
        folder = found
    if not (folder / "config.yaml").is_file() or not holds_run(folder):
        return BegunRun(folder)
    _check_config(cfg, folder)
    summary, _ = read_summary(folder)
    if summary is not None and is_finished(folder):
        return BegunRun(folder, finished=summary)
    if _was_taken_over(folder):
        return BegunRun(folder)
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise ConfigError(
            f"name={cfg.name}: {folder} has results of a run, but no file {last} to continue from: restore it, or give "
            "another name"
        )
    return BegunRun(folder, last)


def is_finished(folder: Path) -> bool:
    """Return whether a run has written its last file."""
    return all((folder / name).is_file() for name in ("summary.json", "report.html"))


def _find_newest(cfg: DictConfig, folder: Path) -> Path | None:
    """Return the newest unnamed run of a folder that has this configuration."""
    configs = [run / "config.yaml" for run in folder.glob("*") if holds_run(run)]
    times = {path: path.stat().st_mtime_ns for path in configs if path.is_file()}
    for path in sorted(times, key=times.__getitem__, reverse=True):
        with contextlib.suppress(ConfigError):
            _check_config(cfg, path.parent)
            if read_run_config(path).get("name") is None:
                return path.parent
    return None


def _was_taken_over(folder: Path) -> bool:
    try:
        return Training.read(folder).trained_by is not None
    except (OSError, PandaError):  # there is none, or it was edited
        return False


def _check_config(cfg: DictConfig, folder: Path) -> None:
    """Check that a run began with the configuration that it has now."""
    begun, now = _describe(read_run_config(folder / "config.yaml")), _describe(cfg)
    if changed := [key for key in sorted(begun.keys() | now.keys()) if begun.get(key) != now.get(key)]:
        key = changed[0]
        others = f" and {len(changed) - 1} other key{'s' * (len(changed) > 2)}" if changed[1:] else ""
        raise ConfigError(
            f"name={cfg.name}: {folder} is a run with {key}={begun.get(key)}, not {now.get(key)}"
            f"{others}; give another name, or the command that it began with"
        )


def _describe(cfg: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return flatten({key: value for key, value in plain.items() if key not in _COMMAND_KEYS})
