"""Search the best choices: `python -m panda.app.search study=ADDRESS n=TRIALS KEY=VALUES … [key=value …]`."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from omegaconf import DictConfig
from pydantic import Field

from panda.app.calls import compose_job
from panda.app.entry_point import Interrupted, enter, guard, refuse, set_up_logging
from panda.app.hydra_job import AUTO, sweep_folder
from panda.app.resume import SESSION_KEYS
from panda.app.search_space import Words, parse_words
from panda.choices import name_tool
from panda.errors import INSTALL_CLUSTER, ConfigError, PandaError
from panda.report.job_end import JobEnd
from panda.settings import Count, Seed, Settings, Text, accept, escape

if TYPE_CHECKING:
    import optuna

    from panda.app.search_study import SearchStudy

log = logging.getLogger(__name__)

HELP = """{command} study=ADDRESS n=TRIALS KEY=VALUES … [key=value …]

Trains trial after trial of train.py and chooses the values of the keys by the figure on validation. The same command
continues a search, and several processes share it.

  study         sqlite:///FILE.db on a local disk, journal:///FILE.log on any disk, or a database server.
  n             Number of trials, those of other processes and of earlier commands included.
  name          Of the study and of its folder runs/<task>/sweep-NAME. The default is the name of the file.
  prune         true (default): stop trials that are worse than the median of the others at the same epoch.
  sampler_seed  Seed of the sampler, 0 by default.

  KEY=choice(a,b)  KEY=range(16,65,16)  KEY=interval(0.0,0.5)  KEY=int(interval(1,8))  KEY=log(1e-5,1e-2).
  key=value        As for train.py, for all trials; test_slides=false saves the maps of the test slides.
"""


def _is_name(name: Any) -> bool:
    return name is None or re.fullmatch(r"\w[\w .+-]*", str(name)) is not None


class SearchSettings(Settings):
    """Settings of a search, which `HELP` describes."""

    node: ClassVar[str] = ""
    study: Text
    n: Count
    name: Annotated[str | int | None, accept("a plain name", _is_name)] = Field(
        None, description="use letters, digits, blanks and _ . + - in it, and begin with a letter, a digit or _"
    )
    prune: bool = True
    sampler_seed: Seed = 0


def search(arguments: Sequence[str]) -> None:
    """Run trials until the study has as many as asked for, then write the page.

    Raises:
        ConfigError: With all faults, before a study is made.
    """
    words = parse_words(arguments, tuple(SearchSettings.model_fields))
    address = str(words.own.get("study", ""))
    settings = SearchSettings(**{"name": Path(address.rpartition("/")[2]).stem or None, **words.own})
    try:
        from panda.app import search_study  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"a search needs optuna ({error}): {INSTALL_CLUSTER}") from error
    name = str(settings.name or "search")
    task, maximize = _check_probes(words, name)
    plan = search_study.Plan(
        name=name,
        space=words.space,
        fixed=tuple(text for text in words.fixed if not text.lstrip("+").startswith(SESSION_KEYS)),
        task=task,
        maximize=maximize,
        prune=settings.prune,
        seed=settings.sampler_seed,
    )
    study = search_study.SearchStudy(
        search_study.open_storage(settings.study), plan, Path(sweep_folder(task, name, ""))
    )
    try:
        while True:
            with study.take_trial(settings.n) as trial:
                if trial is None:
                    break
                _run_trial(study, trial, words)
    except KeyboardInterrupt as stop:
        raise Interrupted("the same command continues the search") from stop
    _say_result(study)


def _check_probes(words: Words, name: str) -> tuple[str, bool]:
    """Check trials with each choice and each end of a range; return the task, and whether its figure is to be large.

    Raises:
        ConfigError: With the faults of all of them.
    """
    from panda.app.ranks import is_joint  # noqa: PLC0415
    from panda.app.train import check, find_direction  # noqa: PLC0415

    faults: dict[str, None] = {}
    for overrides in words.list_probes():
        try:
            cfg, config = check(_compose(overrides, Path("runs") / f"check-{name}"))
            task, maximize = cfg.task.name, find_direction(config)
            if is_joint(config.trainer.strategy):
                fault = (
                    f"trainer.strategy={config.trainer.strategy}: a trial of a search is one command; give trainer=ddp"
                )
                faults[fault] = None
        except ConfigError as error:
            faults.update(dict.fromkeys(error.faults))
    if faults:
        raise ConfigError(list(faults))
    return task, maximize


def _compose(overrides: Sequence[str], folder: Path) -> DictConfig:
    """Compose the configuration of a trial, as Hydra does for train.py. It resumes what the folder holds."""
    cfg = compose_job("train", overrides)
    cfg.name, cfg.run_dir, cfg.resume = folder.name, escape(str(folder)), AUTO
    return cfg


def _run_trial(study: SearchStudy, trial: optuna.Trial, words: Words) -> None:
    """Train a trial, or continue it, and end it in the study."""
    from panda.app.pruning import Pruned, report_epoch  # noqa: PLC0415
    from panda.app.train import train  # noqa: PLC0415

    folder = study.folder / str(trial.number)
    log.info("trial %d: %s", trial.number, " ".join(f"{key}={value}" for key, value in trial.params.items()))
    cfg = _compose(words.format_trial(trial.params), folder)
    token = report_epoch.set(partial(study.report, trial) if study.plan.prune else None)

    def run(cfg: DictConfig) -> Any:
        try:
            return train(cfg)
        except Pruned as stop:
            log.info("%s", stop)
            JobEnd(state="pruned", message=str(stop)).write(folder)
            study.prune(trial)
            return None

    try:
        figure = guard(run)(cfg)
    except Exception as error:  # a fault in the code, which another trial may not meet
        traceback.print_exc()
        refuse(PandaError(f"trial {trial.number}: {type(error).__name__}: {error}"), folder)
        figure = float("nan")
    finally:
        report_epoch.reset(token)
    if figure is not None:
        study.end(trial, float(figure))


def _say_result(study: SearchStudy) -> None:
    from panda.report.sweep_page import write_sweep  # noqa: PLC0415

    counts = ", ".join(f"{count} {state}" for state, count in study.count_states().items())
    print(f"trials: {counts}")
    if (best := study.find_best()) is not None:
        values = " ".join(f"{key}={value}" for key, value in best.params.items())
        print(f"best: trial {best.number} with {best.value:.4f} on validation: {values}")
    print(f"sweep: {write_sweep(study.folder)}")


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    if {"--help", "-h"} & set(arguments):
        print(HELP.replace("{command}", name_tool("panda.app.search")))
        return
    set_up_logging("debug=true" in arguments)
    search(arguments)


if __name__ == "__main__":
    enter(lambda: main(sys.argv[1:]))
