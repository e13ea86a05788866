"""Log a run to MLflow: to a local database, or to a server."""

from __future__ import annotations

import csv
import importlib
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pydantic import TypeAdapter
from pytorch_lightning.loggers import MLFlowLogger

from panda.app.dashboard import Dashboard, End, spare_run
from panda.errors import PandaError
from panda.files import hold_lock, write_json
from panda.stored import Plain, read_model

RECORD = "mlflow.json"
LOCAL = "sqlite:///"
_STATES: dict[End, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


_REFUSED = re.compile(r"[^A-Za-z0-9_./: -]+")
"""Characters that MLflow takes in no name."""


class MlflowRecord(Plain, frozen=True):
    """Where a run is logged, the content of `mlflow.json` in its folder."""

    tracking_uri: str
    run_id: str


class MlflowDashboard(MLFlowLogger, Dashboard):
    """Lightning's MLflow logger, which continues the run of an earlier session and sends nothing else anywhere.

    Args:
        run_dir: Folder of the run.
        tracking_uri: Address of a server, or `sqlite:///PATH`.
        experiment: Name of the experiment.
        name: Name of the run.
        tags: Tags of the run.
        config: Flat settings of the run.
        resumed: Whether the run of `mlflow.json` is continued.
    """

    title = "MLflow"

    def __init__(
        self,
        run_dir: Path,
        *,
        tracking_uri: str,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        resumed: bool,
    ) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before the first import
        importlib.import_module("mlflow")  # it sets levels itself
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.run_dir = run_dir
        database = Path(tracking_uri.removeprefix(LOCAL)) if tracking_uri.startswith(LOCAL) else None
        # Two processes cannot make the tables of a database together, nor an experiment. The client makes tables.
        with hold_lock(database) if database else nullcontext():
            super().__init__(experiment, name, tracking_uri)
            self._experiment_id = self._find_experiment(database)
        self._begin(dict(tags), config, resumed)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The client of MLflow; `_begin` has begun the run."""
        return self._mlflow_client

    def _begin(self, tags: dict[str, str], config: Mapping[str, Any], resumed: bool) -> None:
        known = self._find_run()
        if known is not None and resumed:
            self._run_id, self.is_continued = known.info.run_id, True
            self._mlflow_client.update_run(self._run_id, status="RUNNING")
        else:
            if known is not None and known.info.status == "RUNNING":
                self._mlflow_client.set_terminated(known.info.run_id, "KILLED")
            run = self._mlflow_client.create_run(self._experiment_id, tags=_rename(tags), run_name=self._run_name)
            self._run_id = run.info.run_id
            record = MlflowRecord(tracking_uri=self._tracking_uri, run_id=self._run_id)
            write_json(self.run_dir / RECORD, record.model_dump())
        self._initialized = True
        if not self.is_continued:
            self.log_hyperparams(_rename(config))

    def _find_experiment(self, database: Path | None) -> str:
        known = self._mlflow_client.get_experiment_by_name(self._experiment_name)
        if known is not None:
            return str(known.experiment_id)
        # MLflow would store files in the folder of the command.
        folder = None if database is None else database.absolute().with_suffix("").as_uri()
        return str(self._mlflow_client.create_experiment(self._experiment_name, artifact_location=folder))

    def _find_run(self) -> Any:
        """Return what the database knows of the run of an earlier session; None if it has none."""
        from mlflow.exceptions import MlflowException  # noqa: PLC0415  (optional package)

        with suppress(OSError, PandaError, MlflowException):
            record = read_model(self.run_dir / RECORD, TypeAdapter(MlflowRecord), "it is not continued")
            if record.tracking_uri == self._tracking_uri:
                run = self._mlflow_client.get_run(record.run_id)
                return run if run.info.lifecycle_stage == "active" else None
        return None

    @spare_run
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics as the base class does."""
        super().log_metrics(metrics, step)

    def finalize(self, status: str = "success") -> None:
        """Leave the run open, because it evaluates after its training; see `end`."""

    def put_picture(self, key: str, path: Path, epoch: int | None) -> None:
        """Log a picture under its own name, which has the epoch if there is one."""
        self._mlflow_client.log_artifact(self._run_id, str(path), key.partition("/")[0])

    def put_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        self._mlflow_client.log_text(str(self._run_id), text.getvalue(), f"{key}.csv")

    def put_figures(self, figures: Mapping[str, float]) -> None:
        """See `Dashboard`."""
        super().log_metrics(figures)

    @spare_run
    def log_checkpoints(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Copy the checkpoints."""
        for name in ("last", "best"):
            self._mlflow_client.log_artifact(self._run_id, str(folder / f"{name}.ckpt"), "checkpoints")
        self._mlflow_client.log_dict(str(self._run_id), dict(about), "checkpoints/about.json")

    def end(self, state: End) -> None:
        """See `Dashboard`."""
        with suppress(Exception):  # a failure was said before
            if self._run_id is not None:
                self._mlflow_client.set_terminated(self._run_id, _STATES[state])


def _rename(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return tags or parameters under names that MLflow takes."""
    return {_REFUSED.sub("_", name): value for name, value in given.items()}
