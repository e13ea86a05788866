"""Hydra resolvers: the folders of runs, and the choices of a job, for use in `conf/`."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf


def register_resolvers() -> None:
    """Register the resolvers of this module under their own names."""
    for resolver in (choices_made, job_folder, run_folder, sweep_folder):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def is_multirun() -> bool:
    """Return whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def choices_made() -> list[str]:
    """Return the choice of each group of `conf/`, such as `model=unet`; an empty list without a command line."""
    if not HydraConfig.initialized():
        return []
    chosen = HydraConfig.get().runtime.choices
    return [f"{group}={choice}" for group, choice in sorted(chosen.items()) if choice and group.isidentifier()]


def job_folder(own: str | None) -> str | None:
    """Return the folder of a job: in a multirun the one that Hydra made for it, otherwise its own."""
    if is_multirun():
        return str(HydraConfig.get().runtime.output_dir)
    return own


def run_folder(resume: str | None, task: str, name: str | None, now: str) -> str:
    """Return the folder of the resumed run, otherwise `runs/<task>/<name or time>`."""
    if resume:
        return str(Path(str(resume)).parent.parent)
    return str(Path("runs") / task / (str(name) if name is not None else now))


def sweep_folder(task: str, name: str | None, now: str) -> str:
    """Return the folder of a multirun, which holds the folders of its jobs by number."""
    return str(Path("runs") / task / f"sweep-{name if name is not None else now}")
