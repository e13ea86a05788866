"""What an earlier command left in the folder of a run or of a job of a sweep, and how a new command uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from panda.app.resume import read_run_config
from panda.app.tracking import flatten, set_wandb_aside
from panda.app.training_reuse import RECORD, Training
from panda.errors import ConfigError, PandaError
from panda.files import remove
from panda.report.run_summary import RunSummary, read_summary

_OF_COMMAND = ("name", "run_dir", "resume", "debug", "allow_packages")
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


def continue_job(cfg: DictConfig, folder: Path) -> tuple[Path | None, RunSummary | None]:
    """Return how the command of a sweep continues a job: the checkpoint to resume, or the summary of a finished job.

    Both are None for a job that is to begin, which includes one that took its checkpoints from another job.

    Raises:
        ConfigError: If the job has another configuration.
    """
    if not (folder / "config.yaml").is_file() or not holds_run(folder):
        return None, None
    _check_config(cfg, folder)
    summary, _ = read_summary(folder)
    if summary is not None and (folder / "report.html").is_file():
        return None, summary
    last = folder / "checkpoints" / "last.ckpt"
    return (last if last.is_file() and not _was_taken_over(folder) else None), None


def _was_taken_over(folder: Path) -> bool:
    try:
        return Training.read(folder).trained_by is not None
    except (OSError, PandaError):  # there is none, or it was edited
        return False


def _check_config(cfg: DictConfig, folder: Path) -> None:
    """Check that a job of a sweep began with the configuration that it has now."""
    begun, now = _describe(read_run_config(folder / "config.yaml")), _describe(cfg)
    if changed := [key for key in sorted(begun.keys() | now.keys()) if begun.get(key) != now.get(key)]:
        key = changed[0]
        others = f" and {len(changed) - 1} other key{'s' * (len(changed) > 2)}" if changed[1:] else ""
        raise ConfigError(
            f"name={cfg.name}: {folder} is a job with {key}={begun.get(key)}, not {now.get(key)}"
            f"{others}; give another name, or the command that the sweep began with"
        )


def _describe(cfg: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return flatten({key: value for key, value in plain.items() if key not in _OF_COMMAND})
