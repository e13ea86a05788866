"""The configuration of a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from panda.app.build import Faults
from panda.app.hydra_job import find_resumed, is_typed, list_overrides
from panda.errors import ConfigError
from panda.settings import escape

RESUMABLE = (
    "trainer.max_epochs",
    "task.patience",
    "task.panels",
    "task.views",
    "data.num_workers",
    "engine.",
    "logger.",
    "quantify.",
    "colour_map",
)
"""Prefixes of the keys that a command may change when it resumes a run. None decides what the run learns from."""
DECIDES_BAGS = ("engine.precision", "engine.compile", "engine.tta")
"""Exceptions in grading, because tiles are chosen on maps and features are computed with these settings."""
SESSION_KEYS = ("resume", "debug", "allow_packages")
"""Keys that each command gives itself."""
_OLD_DATA = "panda.data.datamodule.PatchDataModule"
"""Target of the data of runs before their settings had a class of their own."""


def is_resumable(key: str, grading: bool) -> bool:
    """Return whether a command may change a key when it resumes a run."""
    return key.startswith(RESUMABLE) and not (grading and key in DECIDES_BAGS)


def load_resumed_config(cfg: DictConfig, given: Path | str) -> DictConfig:
    """Return the configuration of the run that `resume=` gives, changed by the overrides of this command."""
    resume = find_resumed(given)
    own = _read_config(resume)
    grading = OmegaConf.select(own, "task.name") == "grading"
    faults = Faults()
    for override in list_overrides():
        key = override.partition("=")[0]
        if key.lstrip("+") in SESSION_KEYS:
            continue
        if grading and key in DECIDES_BAGS:
            faults.add(f"{override}: a resumed grading keeps the tiles and features that it learns from; leave it out")
        elif is_resumable(key, grading):
            OmegaConf.update(own, key, _select_raw(cfg, key), force_add=True)
        else:
            faults.add(f"{override}: a resumed run keeps its choices; what can be changed is {', '.join(RESUMABLE)}")
    faults.raise_any()
    own.resume, own.run_dir, own.debug = escape(str(resume)), escape(str(resume.parent.parent)), cfg.debug
    # The run's folder may come from somebody else, so what it allows does not count.
    own.allow_packages = cfg.allow_packages if is_typed("allow_packages") else []
    return own


def _select_raw(cfg: DictConfig, key: str) -> Any:
    """Return the value of a key as it was typed, its interpolations included."""
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    for name in key.split("."):
        plain = plain[name]
    return plain


def _escape_texts(plain: Any) -> Any:
    """Escape all text of plain data, so that none of it is an interpolation."""
    if isinstance(plain, dict):
        return {key: _escape_texts(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_escape_texts(value) for value in plain]
    return escape(plain) if isinstance(plain, str) else plain


def read_run_config(written: Path) -> DictConfig:
    """Read the `config.yaml` of a run. It has the resolved values of the run, so a ${…} in it is text.

    Raises:
        ConfigError: If the file cannot be read or holds no keys.
    """
    try:
        own = OmegaConf.create(_escape_texts(OmegaConf.to_container(OmegaConf.load(written), resolve=False)))
    except Exception as error:  # the YAML reader has errors of its own
        raise ConfigError(f"{written} cannot be read ({str(error).splitlines()[0]}): start a new run") from error
    if not isinstance(own, DictConfig) or not own:
        raise ConfigError(f"{written} holds no keys: start a new run")
    return own


def _read_config(resume: Path) -> DictConfig:
    """Read `config.yaml` of the run that a checkpoint belongs to."""
    written = resume.parent.parent / "config.yaml"
    for needed in (resume, written):
        if not needed.is_file():
            raise ConfigError(
                f"resume={resume}: {needed} does not exist; give the folder of a run, or its checkpoints/last.ckpt"
            )
    last = resume.with_name("last.ckpt")
    if resume.name != last.name:
        raise ConfigError(
            f"resume={resume}: a run continues from its {last.name} and overwrites it; give resume={last}, or copy "
            f"{resume.name} to {last.name} to train the later epochs again"
        )
    own = read_run_config(written)
    if isinstance(data := own.get("data"), DictConfig) and data.get("_target_") == _OLD_DATA:
        raise ConfigError(f"{written} is of an earlier version (data._target_={_OLD_DATA}): start a new run")
    return own
