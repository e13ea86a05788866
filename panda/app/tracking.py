"""Where a run's metrics go: `metrics.csv` always, W&B unless disabled."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import wandb
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from panda.files import read_output_table
from panda.settings import Names, Settings

log = logging.getLogger(__name__)

TAG = 64
"""Characters of a W&B tag at most."""
REACH, FINISH = 30.0, 600.0
"""Seconds that an online run waits for W&B at its start, and for the last uploads at its end."""


class Tracking(Settings):
    """Settings of the loggers.

    Args:
        mode: `offline` writes W&B's files into the run's folder and sends nothing; `online` sends them as the
            run goes, or is offline where W&B cannot be reached; `disabled` leaves W&B out.
        project: W&B project.
        entity: W&B team or user; None takes the account's own.
        tags: W&B tags, beside the choices.
        choices: What was chosen of each group of the configuration, `model=unet`: tags too.
        checkpoints: Send the best and the last checkpoint with the run. They are read where they lie when the run is
            sent, and not copied before.
    """

    node: ClassVar[str] = "logger"

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "panda"
    entity: str | None = None
    tags: Names = ()
    choices: Names = ()
    checkpoints: bool = True

    def loggers(
        self, run_dir: Path, name: str, task: str, group: str | None, config: Mapping[str, Any]
    ) -> list[Logger]:
        """The loggers of one run.

        Args:
            run_dir: The run's folder: gets `metrics.csv` and `wandb/`.
            name: The run's name in W&B.
            task: W&B's job type.
            group: W&B group: the sweep a job belongs to.
            config: The resolved configuration as plain data, which W&B gets flat.
        """
        loggers: list[Logger] = [_metrics_csv(run_dir)]
        if self.mode != "disabled":
            loggers.append(
                EpochLogger(
                    name=name,
                    # W&B's own process may have been started in another folder: a relative path would be one there.
                    save_dir=run_dir.absolute(),
                    project=self.project,
                    entity=self.entity,
                    mode=self.mode,
                    tags=list(dict.fromkeys(tag[:TAG] for tag in (*self.choices, *self.tags) if tag)),
                    group=group,
                    job_type=task,
                    config=flat(config),
                    settings=wandb.Settings(
                        quiet=True,
                        silent=self.mode == "offline",
                        console="off",
                        init_timeout=REACH,
                        finish_timeout=FINISH,
                    ),
                )
            )
        return loggers


class EpochLogger(WandbLogger):
    """Lightning's W&B logger with charts over epochs and all files in the run's folder; it asks nobody anything."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, which begins when it is first asked for; of several devices the first one has it."""
        if self._experiment is None and (begun := getattr(self, "_attach_id", None)) is not None:
            # In a process that trains alone: Lightning sends along which run the first process began, W&B no folder.
            os.environ["WANDB_DIR"] = str(self._wandb_init["dir"])
            self._experiment = wandb._attach(begun)  # type: ignore[attr-defined]
        if self._experiment is None:
            self._wandb_init.pop("anonymous", None)  # of which W&B says that it has no effect
            folder = Path(str(self._wandb_init["dir"])) / "wandb"
            # W&B would put what it has yet to send into the home folder, which may be full or not to be written to.
            os.environ.update(WANDB_DATA_DIR=str(folder / "data"), WANDB_CACHE_DIR=str(folder / "cache"))
            if self._wandb_init["mode"] == "online":
                self._online_or_offline()
            if self._experiment is None:
                self._experiment = wandb.init(**self._wandb_init)
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("train/loss_step", step_metric="trainer/global_step")
            self._experiment.define_metric("*", step_metric="epoch")
        return self._experiment

    def _online_or_offline(self) -> None:
        try:
            if not wandb.login(prompt=False):
                raise wandb.errors.UsageError("no account is known here: `wandb login`")
            self._experiment = wandb.init(**self._wandb_init)
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0]
            log.warning("logger.mode=online: W&B cannot be used (%s): the run is kept offline", reason)
            self._wandb_init["mode"] = "offline"


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by their paths, `model/encoder_name`: a dot in a key would be taken for nesting by W&B."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{below}": deep for below, deep in flat(value).items()}
        else:
            found[str(key)] = value
    return found


def _metrics_csv(run_dir: Path) -> CSVLogger:
    """Lightning's CSV logger at `run_dir/metrics.csv`; what lay there is gone."""
    logger = CSVLogger(save_dir=run_dir, name="", version="")
    with warnings.catch_warnings():
        # The run's folder holds config.yaml before any metric; Lightning warns of any folder that is not empty.
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        _ = logger.experiment
    return logger


def read_metrics(run_dir: Path, before: int | None = None) -> list[dict[str, int | float]]:
    """The rows of a run's `metrics.csv`.

    Args:
        run_dir: The run's folder.
        before: Only rows of steps before this one: what was logged of an epoch that was cut off will be logged
            again. None for all.

    Returns:
        What each row holds, `step` among it; a row that was cut off itself is left out.
    """
    path = run_dir / "metrics.csv"
    table = read_output_table(path)
    if table and not path.read_bytes().endswith(b"\n"):
        table.pop()
    rows = [{key: _number(value) for key, value in row.items() if value} for row in table]
    return [row for row in rows if "step" in row and (before is None or row["step"] < before)]


def _number(text: str) -> int | float:
    """A whole number stays one, so that it is written as it was."""
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def replay(rows: Sequence[Mapping[str, int | float]], loggers: Sequence[Logger]) -> None:
    """Log again what an earlier session or another job logged, so that each log is whole by itself."""
    for logger in loggers:
        for row in rows:
            logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
        logger.save()


def set_wandb_aside(run_dir: Path) -> None:
    """Move what an interrupted session kept for W&B out of the way: the session that goes on logs all of it.

    Sent both, the dashboard would show the run twice, and the epoch that was cut off with it.
    """
    for folder in sorted((run_dir / "wandb").glob("offline-run-*")):
        aside = run_dir / "wandb" / "interrupted" / folder.name
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)


def wandb_of(loggers: Sequence[Logger]) -> WandbLogger | None:
    """The W&B logger among the loggers, if there is one."""
    return next((logger for logger in loggers if isinstance(logger, WandbLogger)), None)
