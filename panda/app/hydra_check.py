"""Refuse what a file would make Hydra build from `hydra.*`, before Hydra builds it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from panda.app.build import Faults
from panda.app.command_line import ENTRY_POINTS, explain
from panda.app.hydra_job import is_plain_name, read_key
from panda.app.ranks import find_launch, find_sweep_faults
from panda.app.registry import SPECIAL
from panda.choices import name_tool
from panda.errors import ConfigError

ALLOWED = re.compile(
    r"hydra\.callbacks\.\w+\._target_=panda\.app\.sweep\.SweepPage"
    r"|hydra\.(launcher|sweeper)\._target_=(hydra\._internal\.core_plugins|hydra_plugins)\.[\w.]+"
)
"""What Hydra may build. Hydra itself allows only registered plugins as launcher and sweeper."""
OPTUNA = (
    "hydra/sweeper=optuna searches for the worst setting, as its default direction is minimize, and needs optuna 2; "
    f"search with: {name_tool('panda.app.search')} study=sqlite:///study.db n=50 and your arguments (--help says more)"
)
_LIST = re.compile(r"(slides|data\.exclude|logger\.tags|allow_packages)=([^][{}()'\"=,]+(?:,[^][{}()'\"=,]+)+)")
"""An override of a key that takes a list, with values that commas separate. Without -m it means the list."""
LOGGING_PARTS = ("handlers", "formatters", "filters", "loggers", "root")
"""Parts of a logging configuration that can name classes and files."""


def install_hydra_check() -> None:
    """Make Hydra check each configuration that it composes, also those of the jobs of a sweep.

    Hydra has no hook between composing a configuration and building callbacks from it, and reports one fault only.
    """
    compose = ConfigLoaderImpl.load_configuration

    def load_configuration(
        loader: ConfigLoaderImpl,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        *more: Any,
        **options: Any,
    ) -> DictConfig:
        faults, left = Faults(), [text for text in overrides if text != "hydra/sweeper=optuna"]
        refused: list[str] = []
        if left != overrides:
            faults.add(OPTUNA)
        if run_mode == RunMode.RUN:
            left = [_LIST.sub(r"\1=[\2]", text) if _LIST.fullmatch(text) else text for text in left]
        while True:
            try:
                cfg = compose(loader, config_name, left, run_mode, *more, **options)
                break
            except Exception as error:  # Hydra raises several classes
                fault, argument = explain(error, left, config_name or "")
                faults.add(fault)
                if argument is None or argument not in left:
                    raise ConfigError(faults.found) from error
                left.remove(argument)
                refused.append(argument)
        with faults.collect():
            check_hydra_node(cfg)
            if run_mode == RunMode.MULTIRUN and config_name == "train":
                if not is_plain_name(name := read_key(cfg, "name")):
                    faults.add(f"name={name} must be a plain name: it becomes a folder under runs/")
                if not _varies_trainer(left):
                    faults.add(*find_sweep_faults(find_launch(), cfg))
        if faults.found:
            if run_mode == RunMode.RUN and config_name in ENTRY_POINTS:
                _add_faults_of_job(cfg, config_name, faults, refused)
            faults.raise_any()
        return cfg

    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign, assignment]


def _varies_trainer(overrides: list[str]) -> bool:
    """Return whether the jobs of a sweep may have different trainers; then each job checks its own."""
    return any(text.lstrip("+").startswith("trainer") and "," in text for text in overrides)


def _add_faults_of_job(cfg: DictConfig, entry_point: str, faults: Faults, refused: Sequence[str]) -> None:
    """Add what the check of a job finds in the rest of a refused configuration, without its `refused` arguments."""
    job, own = cfg.copy(), Faults()
    keys = "|".join(re.escape(text.lstrip("+~").partition("=")[0]) for text in refused)
    with open_dict(job):
        del job["hydra"]
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(cfg)
    try:
        with own.collect():
            importlib.import_module(f"panda.app.{entry_point}").check(job, own)
    finally:
        hydra.cfg = before
    faults.add(*(fault for fault in own.found if not (keys and re.match(rf"({keys})[=: ]", fault))))


def check_hydra_node(cfg: DictConfig) -> None:
    """Check the node `hydra` of a composed configuration.

    Raises:
        ConfigError: If Hydra would build an object from it that this package does not declare.
    """
    found: list[str] = []
    for name in ("callbacks", "launcher", "sweeper"):
        node = OmegaConf.select(cfg, f"hydra.{name}")
        try:
            plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        except OmegaConfBaseException as error:
            raise ConfigError(f"hydra.{name}: {str(error).splitlines()[0]}; mend the ${{…}} it names") from error
        if name == "sweeper" and isinstance(plain, dict) and "hydra_optuna_sweeper" in str(plain.get("_target_")):
            raise ConfigError(OPTUNA)
        found += [text for text in _find_special(f"hydra.{name}", plain) if not ALLOWED.fullmatch(text)]
    own = [f"hydra.{node}.{part}" for node in ("job_logging", "hydra_logging") for part in LOGGING_PARTS]
    for key in (*own, "hydra.sweeper.custom_search_space"):
        if value := OmegaConf.select(cfg, key):
            found.append(f"{key}={value}")
    if found:
        raise ConfigError([f"{text} is not allowed: remove it from the file that sets it" for text in found])


def _find_special(key: str, node: Any) -> Iterator[str]:
    """Find the keys in a node that Hydra gives a meaning, such as `_target_`; each as `key=value`."""
    children = list(enumerate(node)) if isinstance(node, list) else list(node.items()) if isinstance(node, dict) else []
    for name, child in children:
        if isinstance(node, dict) and SPECIAL.fullmatch(str(name)):
            yield f"{key}.{name}={child}"
        yield from _find_special(f"{key}.{name}", child)
