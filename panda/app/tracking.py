"""The loggers of a run: `metrics.csv`, and beside it W&B, TensorBoard or MLflow."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import wandb
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from panda.app.dashboard import Dashboard, flatten, warn_of_failure
from panda.app.wandb_dashboard import WandbDashboard
from panda.errors import ManifestError
from panda.files import check_plain_file, write_whole
from panda.settings import Names, Settings, Text, rule
from panda.tables import read_output_table

MAX_TAG_LENGTH = 64
"""Maximum number of characters of a W&B tag."""
INIT_TIMEOUT, FINISH_TIMEOUT = 30.0, 600.0
"""Seconds that an online run waits for W&B at its start, and for the last uploads at its end."""


class TrackingSettings(Settings):
    """Settings of the loggers; the derived classes say where a run is logged beside `metrics.csv`.

    Args:
        tags: Your own tags, in addition to the choices.
        choices: The choice of each group of the configuration, such as `model=unet`, which are tags too.
    """

    node: ClassVar[str] = "logger"
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    tags: Names = ()
    choices: Names = ()

    @rule
    def _check_packages(self) -> Iterator[str]:
        if absent := [name for name in self.packages if importlib.util.find_spec(name) is None]:
            yield (
                f"logger={self.extra} needs the package {', '.join(absent)}, which is not installed: "
                f"pip install 'panda-wsi[{self.extra}]'"
            )

    @property
    def logs_checkpoints(self) -> bool:
        """Whether checkpoints are logged too."""
        return False

    def split_tags(self) -> dict[str, str]:
        """Return name and value of each tag, such as `model=unet`; the value of a tag without one is `true`."""
        parts = [tag.partition("=") for tag in (*self.choices, *self.tags) if tag]
        return {name: value or "true" for name, _, value in parts}

    def build_loggers(
        self,
        run_dir: Path,
        name: str,
        task: str,
        group: str | None,
        config: Mapping[str, Any],
        *,
        kept: Sequence[Mapping[str, int | float]] = (),
        resumed: bool = False,
    ) -> list[Logger]:
        """Build the loggers of one run.

        Args:
            run_dir: Folder of the run.
            name: Name of the run.
            task: Name of the task.
            group: The sweep of the job, or None.
            config: Settings of the run, as plain data.
            kept: Rows of an earlier session, with which `metrics.csv` begins, see `read_metrics`.
            resumed: Whether the run continues an earlier session.
        """
        loggers: list[Logger] = [_build_csv_logger(run_dir, kept)]
        about = {"task": task} | ({"sweep": group} if group else {})
        return loggers + self._build_dashboard(run_dir, name, about, flatten(config, "/"), resumed)

    def _build_dashboard(
        self, run_dir: Path, name: str, about: Mapping[str, str], config: Mapping[str, Any], resumed: bool
    ) -> list[Logger]:
        return []


class Tracking(TrackingSettings):
    """Settings of W&B.

    Args:
        mode: `offline` writes W&B's files into the run's folder and sends nothing. `online` sends them during the run,
            or is offline if W&B cannot be reached. `disabled` does not use W&B.
        project: W&B project.
        entity: W&B team or user; None is the default of the account.
        checkpoints: Whether the best and the last checkpoint are sent with the run. They are not copied before.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "panda"
    entity: str | None = None
    checkpoints: bool = True

    @property
    def logs_checkpoints(self) -> bool:
        """See `TrackingSettings`."""
        return self.checkpoints

    def _build_dashboard(
        self, run_dir: Path, name: str, about: Mapping[str, str], config: Mapping[str, Any], resumed: bool
    ) -> list[Logger]:
        if self.mode == "disabled":
            return []
        wandb_logger = WandbDashboard(
            name=name,
            # A relative path would be relative to the folder of W&B's own process.
            save_dir=run_dir.absolute(),
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            tags=list(dict.fromkeys(tag[:MAX_TAG_LENGTH] for tag in (*self.choices, *self.tags) if tag)),
            group=about.get("sweep"),
            job_type=about["task"],
            config=dict(config),  # W&B takes a dot for nesting
            settings=wandb.Settings(
                quiet=True,
                silent=self.mode == "offline",
                console="off",
                init_timeout=INIT_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
            ),
        )
        return [wandb_logger]


class TensorBoardTracking(TrackingSettings):
    """Settings of TensorBoard, whose files are in `tensorboard/` of the run."""

    packages: ClassVar[tuple[str, ...]] = ("tensorboard",)
    extra: ClassVar[str] = "tensorboard"

    def _build_dashboard(
        self, run_dir: Path, name: str, about: Mapping[str, str], config: Mapping[str, Any], resumed: bool
    ) -> list[Logger]:
        from panda.app.tensorboard_dashboard import TensorBoardDashboard  # noqa: PLC0415  (optional package)

        return [TensorBoardDashboard(run_dir, {**self.split_tags(), **about, **config})]


class MlflowTracking(TrackingSettings):
    """Settings of MLflow.

    Args:
        tracking_uri: A database, `sqlite:///PATH`, which is made, or the address of a server.
        experiment: Name of the experiment of MLflow.
        checkpoints: Whether the best and the last checkpoint are copied to the files of MLflow.
    """

    packages: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")
    extra: ClassVar[str] = "mlflow"

    tracking_uri: Text = "sqlite:///runs/mlflow.db"
    experiment: Text = "panda"
    checkpoints: bool = False

    @rule
    def _check_address(self) -> Iterator[str]:
        kind, found, _ = self.tracking_uri.partition("://")
        if not found or kind == "file":
            yield f"{self.setting('tracking_uri')} must be sqlite:///PATH or a server: MLflow ended folders"

    @property
    def logs_checkpoints(self) -> bool:
        """See `TrackingSettings`."""
        return self.checkpoints

    def _build_dashboard(
        self, run_dir: Path, name: str, about: Mapping[str, str], config: Mapping[str, Any], resumed: bool
    ) -> list[Logger]:
        from panda.app.mlflow_dashboard import MlflowDashboard  # noqa: PLC0415  (optional package)

        tags = {**self.split_tags(), **about, "folder": str(run_dir.absolute())}
        try:
            dashboard = MlflowDashboard(
                run_dir,
                tracking_uri=self.tracking_uri,
                experiment=self.experiment,
                name=name,
                tags=tags,
                config=config,
                resumed=resumed,
            )
        except Exception as error:  # of MLflow, of the database, of the network
            warn_of_failure(MlflowDashboard.title, error)
            return []
        return [dashboard]


class _MetricsWriter(ExperimentWriter):
    """Lightning's writer, without its removal of the rows that are there."""

    def _check_log_dir_exists(self) -> None:
        """Keep the file."""


def _build_csv_logger(run_dir: Path, kept: Sequence[Mapping[str, int | float]]) -> CSVLogger:
    """Build Lightning's CSV logger for `run_dir/metrics.csv`, which begins with the rows of an earlier session.

    The file is replaced whole, so that a process that is killed at this point loses no row.
    """
    check_plain_file(path := run_dir / "metrics.csv")  # Lightning would follow a link and empty its target
    columns = sorted({key for row in kept for key in row})
    if kept:
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(kept)
        write_whole(path, text.getvalue().encode())
    else:
        path.unlink(missing_ok=True)
    logger = CSVLogger(save_dir=run_dir, name="", version="")
    logger._experiment = writer = _MetricsWriter(log_dir=logger.log_dir)
    writer.metrics_keys = columns
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
    """Log the rows of an earlier session or another job again to each logger that lacks them."""
    for logger in loggers:
        if isinstance(logger, Dashboard) and logger.is_continued:
            continue
        for row in rows:
            logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
        logger.save()
