"""Log the metrics of a run: to `metrics.csv`, and to W&B unless it is disabled."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec

import wandb
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from panda.errors import ManifestError
from panda.files import check_plain_file
from panda.settings import Names, Settings
from panda.tables import read_output_table

log = logging.getLogger(__name__)

P = ParamSpec("P")

MAX_TAG_LENGTH = 64
"""Maximum number of characters of a W&B tag."""
INIT_TIMEOUT, FINISH_TIMEOUT = 30.0, 600.0
"""Seconds that an online run waits for W&B at its start, and for the last uploads at its end."""


class Tracking(Settings):
    """Settings of the loggers.

    Args:
        mode: `offline` writes W&B's files into the run's folder and sends nothing. `online` sends them during the run,
            or is offline if W&B cannot be reached. `disabled` does not use W&B.
        project: W&B project.
        entity: W&B team or user; None is the default of the account.
        tags: W&B tags, in addition to the choices.
        choices: The choice of each group of the configuration, such as `model=unet`, which are tags too.
        checkpoints: Whether the best and the last checkpoint are sent with the run. They are not copied before.
    """

    node: ClassVar[str] = "logger"

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "panda"
    entity: str | None = None
    tags: Names = ()
    choices: Names = ()
    checkpoints: bool = True

    def build_loggers(
        self, run_dir: Path, name: str, task: str, group: str | None, config: Mapping[str, Any]
    ) -> list[Logger]:
        """Build the loggers of one run, which write `metrics.csv` and `wandb/`. The group is the sweep of the job."""
        csv_logger = _build_csv_logger(run_dir)
        if self.mode == "disabled":
            return [csv_logger]
        wandb_logger = EpochLogger(
            name=name,
            # A relative path would be relative to the folder of W&B's own process.
            save_dir=run_dir.absolute(),
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            tags=list(dict.fromkeys(tag[:MAX_TAG_LENGTH] for tag in (*self.choices, *self.tags) if tag)),
            group=group,
            job_type=task,
            config=flatten(config, "/"),  # W&B takes a dot for nesting
            settings=wandb.Settings(
                quiet=True,
                silent=self.mode == "offline",
                console="off",
                init_timeout=INIT_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
            ),
        )
        return [csv_logger, wandb_logger]


def spare_run(log_it: Callable[Concatenate[EpochLogger, P], None]) -> Callable[Concatenate[EpochLogger, P], None]:
    """Wrap a function that logs to W&B: if it fails, warn and log no more to W&B, and the run continues.

    W&B has a folder and a process of its own, which may be full or killed.
    """

    @functools.wraps(log_it)
    def log_unless_failed(logger: EpochLogger, /, *args: P.args, **options: P.kwargs) -> None:
        if logger.has_failed:
            return
        try:
            log_it(logger, *args, **options)
        except Exception as error:
            logger.has_failed = True
            log.warning("W&B: %s; the run continues without it, and metrics.csv has all metrics", error)
            end_wandb()

    return log_unless_failed


def end_wandb() -> None:
    """End the W&B run of this process, if there is one. Otherwise the next job of a multirun would log into it."""
    if wandb.run is None:
        return
    try:
        wandb.finish()
    except Exception as error:
        log.warning("W&B: %s; its files of this run may be incomplete", error)
        with contextlib.suppress(Exception, SystemExit):  # a job after this one needs another W&B process
            wandb.teardown()


class EpochLogger(WandbLogger):
    """Lightning's W&B logger with charts over epochs and all files in the folder of the run, without prompts.

    Attributes:
        has_failed: Whether W&B failed, see `spare_run`.
    """

    has_failed = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which starts on first access, on the first device only."""
        if self._experiment is None and (begun := getattr(self, "_attach_id", None)) is not None:
            # In a training process, Lightning passes the id of the run, but W&B does not pass its folder.
            os.environ["WANDB_DIR"] = str(self._wandb_init["dir"])
            self._experiment = wandb._attach(begun)  # type: ignore[attr-defined]
        if self._experiment is None:
            self._wandb_init.pop("anonymous", None)  # W&B warns that it has no effect
            folder = Path(str(self._wandb_init["dir"])) / "wandb"
            # W&B would use the home folder, which may be full or read-only.
            os.environ.update(WANDB_DATA_DIR=str(folder / "data"), WANDB_CACHE_DIR=str(folder / "cache"))
            if self._wandb_init["mode"] == "online":
                self._connect()
            if self._experiment is None:
                self._experiment = wandb.init(**self._wandb_init)
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("train/loss_step", step_metric="trainer/global_step")
            self._experiment.define_metric("*", step_metric="epoch")
        return self._experiment

    @spare_run
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics as the base class does."""
        super().log_metrics(metrics, step)

    def _connect(self) -> None:
        try:
            if not wandb.login(prompt=False):
                raise wandb.errors.UsageError("no account is known here: `wandb login`")
            self._experiment = wandb.init(**self._wandb_init)
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0]
            log.warning("logger.mode=online: W&B cannot be used (%s): the run is logged offline", reason)
            self._wandb_init["mode"] = "offline"


def flatten(config: Mapping[str, Any], joint: str = ".") -> dict[str, Any]:
    """Flatten nested settings to keys such as `model.encoder_name`; an empty node stays a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{key}{joint}{below}": deep for below, deep in flatten(value, joint).items()}
        else:
            found[str(key)] = value
    return found


def _build_csv_logger(run_dir: Path) -> CSVLogger:
    """Build Lightning's CSV logger for `run_dir/metrics.csv`, which replaces an existing file."""
    check_plain_file(run_dir / "metrics.csv")  # Lightning would follow a link and empty its target
    logger = CSVLogger(save_dir=run_dir, name="", version="")
    with warnings.catch_warnings():
        # Lightning warns of any folder that is not empty, and this one has config.yaml.
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        _ = logger.experiment
    return logger


def read_metrics(run_dir: Path, before: int | None = None) -> list[dict[str, int | float]]:
    """Read the rows of a run's `metrics.csv`, `step` among their columns. A row that was cut off is skipped.

    `before` drops the steps from this one on, because an epoch that was cut off is logged again.

    Raises:
        ManifestError: If a value is no number.
    """
    path = run_dir / "metrics.csv"
    table = read_output_table(path)
    if table and not path.read_bytes().endswith(b"\n"):
        table.pop()
    try:
        rows = [{key: _parse_number(value) for key, value in row.items() if value} for row in table]
        if any(not isinstance(row.get("step", 0), int) for row in rows):
            raise ValueError("a step is no whole number")
    except ValueError as error:
        raise ManifestError(f"{path}: {error}; the file was edited: restore it, or start a new run") from error
    return [row for row in rows if "step" in row and (before is None or row["step"] < before)]


def _parse_number(text: str) -> int | float:
    """Parse a number. An integer stays one, so that it is written back unchanged."""
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def replay_metrics(rows: Sequence[Mapping[str, int | float]], loggers: Sequence[Logger]) -> None:
    """Log the rows of an earlier session or another job again, so that each log is complete."""
    for logger in loggers:
        for row in rows:
            logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
        logger.save()


def set_wandb_aside(run_dir: Path) -> None:
    """Move the W&B files of an interrupted session to another folder, because the resumed session logs all again.

    Otherwise the dashboard would show the run twice, with the epoch that was cut off.
    """
    for folder in sorted((run_dir / "wandb").glob("offline-run-*")):
        aside = run_dir / "wandb" / "interrupted" / folder.name
        try:
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)
        except OSError as error:
            log.warning("W&B: %s; it shows the interrupted session too", error)


def find_wandb_logger(loggers: Sequence[Logger]) -> EpochLogger | None:
    """Return the W&B logger among the loggers, if there is one."""
    return next((logger for logger in loggers if isinstance(logger, EpochLogger)), None)
