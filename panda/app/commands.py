"""The commands: `panda train`, which is `python train.py`, `panda infer` and others, from any folder."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig

from panda.app.entry_point import end_at_closed_output, enter, guard, pause_collection
from panda.app.hydra_job import read_key
from panda.choices import CONF, remember_name
from panda.errors import suggest

TOOLS = {
    "search": ("panda.app.search", "search the best choices"),
    "sweep": ("panda.report.sweep", "write table and page of a sweep"),
    "runs": ("panda.report.runs", "write one page over all runs below a folder"),
    "compare": ("panda.report.compare", "compare two runs slide by slide"),
    "folds": ("panda.report.folds", "pool the folds of a cross-validation"),
    "next": ("panda.report.next", "choose the slides and fields to correct next"),
    "corrections": ("panda.data.corrections", "turn corrected regions into training masks"),
    "view": ("panda.view", "look at slides and maps at full resolution in a browser"),
    "store": ("panda.data.store", "list patch stores"),
}
"""Module and purpose of each command without a configuration; `python -m MODULE` is the same, and ends in its name."""


@guard
def train(cfg: DictConfig) -> float | None:
    """Train and evaluate; the figure that is returned is what a sweep compares."""
    with pause_collection():
        from panda.app.train import train as run  # noqa: PLC0415  (slow imports only once the command is understood)

    return run(cfg)


@guard
def infer(cfg: DictConfig) -> None:
    """Map slides with a checkpoint, or collect what jobs left."""
    with pause_collection():
        if read_key(cfg, "collect") is None:
            from panda.app.infer import infer as run  # noqa: PLC0415
        else:
            from panda.app.inference_tables import collect_maps as run  # noqa: PLC0415

    run(cfg)


@guard
def audit(cfg: DictConfig) -> None:
    """Inspect a data set, or collect what shards left."""
    with pause_collection():
        if read_key(cfg, "collect") is None:
            from panda.app.audit import audit as run  # noqa: PLC0415
        else:
            from panda.app.audit_collection import collect as run  # noqa: PLC0415

    run(cfg)


@guard
def features(cfg: DictConfig) -> None:
    """Encode tiles into feature files, or collect what jobs left."""
    with pause_collection():
        if read_key(cfg, "collect") is None:
            from panda.app.features import extract_features as run  # noqa: PLC0415
        else:
            from panda.app.feature_tables import collect_features as run  # noqa: PLC0415

    run(cfg)


JOBS: dict[str, tuple[Callable[[DictConfig], Any], str]] = {
    "train": (train, "train and evaluate"),
    "infer": (infer, "map slides with a checkpoint"),
    "audit": (audit, "inspect a data set"),
    "features": (features, "encode tiles into feature files"),
}
"""Job and purpose of each command that has a configuration of its name in `conf`."""


def run_job(name: str) -> NoReturn:
    """Run a job of `JOBS` with the arguments of the command line, and exit."""
    job, purpose = JOBS[name]
    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)
    enter(main, name, purpose, joint=name == "train")


def main() -> None:
    """Run `panda COMMAND …`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in JOBS:
        del sys.argv[1]
        run_job(name)
    with end_at_closed_output():
        if name in TOOLS:
            del sys.argv[1]
            with remember_name():
                runpy.run_module(TOOLS[name][0], run_name="__main__", alter_sys=True)
        elif name == "--version":
            print(version("panda-wsi"))
        elif name in ("--help", "-h"):
            print("panda COMMAND …; panda COMMAND --help says more\n")
            print("\n".join(f"  {command:13}{purpose}" for command, (_, purpose) in (JOBS | TOOLS).items()))
        else:
            sys.exit(f"panda {name}: there is no such command{suggest(name, [*JOBS, *TOOLS])}")
