"""Where a run's metrics go: `metrics.csv` always, W&B unless disabled."""

import csv
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import wandb
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger


@dataclass(frozen=True)
class Tracking:
    """Settings of the loggers.

    Args:
        mode: `offline` writes W&B's files into the run's folder and sends nothing; `online` sends them as the
            run goes; `disabled` leaves W&B out.
        project: W&B project.
        entity: W&B team or user; None takes the account's own.
        tags: W&B tags.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "panda"
    entity: str | None = None
    tags: Sequence[str] = ()

    def loggers(
        self, run_dir: Path, name: str, task: str, group: str | None, config: Mapping[str, Any]
    ) -> list[Logger]:
        """The loggers of one run.

        Args:
            run_dir: The run's folder: gets `metrics.csv` and `wandb/`.
            name: The run's name in W&B.
            task: W&B's job type.
            group: W&B group: the sweep a job belongs to.
            config: The resolved configuration as plain data.
        """
        loggers: list[Logger] = [_metrics_csv(run_dir)]
        if self.mode != "disabled":
            loggers.append(
                WandbLogger(
                    name=name,
                    # W&B's own process may have been started in another folder: a relative path would be one there.
                    save_dir=run_dir.absolute(),
                    project=self.project,
                    entity=self.entity,
                    offline=self.mode == "offline",
                    tags=list(self.tags),
                    group=group,
                    job_type=task,
                    config=dict(config),
                    settings=wandb.Settings(quiet=True, silent=self.mode == "offline", console="off"),
                )
            )
        return loggers


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
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    rows = [{key: _number(value) for key, value in row.items() if value} for row in csv.DictReader(whole.splitlines())]
    return [row for row in rows if "step" in row and (before is None or row["step"] < before)]


def _number(text: str) -> int | float:
    """A whole number stays one, so that it is written as it was."""
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def replay(rows: Sequence[Mapping[str, int | float]], loggers: Sequence[Logger]) -> None:
    """Logs again what an earlier session or another job logged, so that each log is whole by itself."""
    for logger in loggers:
        for row in rows:
            logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
        logger.save()


def set_wandb_aside(run_dir: Path) -> None:
    """Moves what an interrupted session kept for W&B out of the way: the session that goes on logs all of it.

    Sent both, the dashboard would show the run twice, and the epoch that was cut off with it.
    """
    for folder in sorted((run_dir / "wandb").glob("offline-run-*")):
        aside = run_dir / "wandb" / "interrupted" / folder.name
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)


def wandb_of(loggers: Sequence[Logger]) -> WandbLogger | None:
    """The W&B logger among the loggers, if there is one."""
    return next((logger for logger in loggers if isinstance(logger, WandbLogger)), None)


def log_csv(logger: WandbLogger, key: str, path: Path) -> None:
    """Logs a CSV file of the run as a W&B table; nothing where the run left no such file."""
    if path.exists():
        with path.open(newline="") as file:
            header, *rows = list(csv.reader(file))
        logger.log_table(key, columns=header, data=rows)
