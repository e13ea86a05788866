"""TensorBoard and MLflow: what a run logs to them, resumed runs, and how a run ended."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from panda.app.dashboard import Dashboard, find_dashboard
from panda.app.tracking import MlflowTracking, TensorBoardTracking, TrackingSettings
from panda.files import remove
from tests.summaries import make_summary
from tests.test_train import train_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.15
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches"),
    # MLflow 3.17 on SQLAlchemy 2.1
    pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SCORES = {"threshold": 0.3, "test": {"dice": 0.5, "dice_interval": [0.4, 0.7], "slides": 3}}
CONFIG = {
    "model": {"encoder_name": "resnet18"},
    "optim": {"lr": 0.1, "betas": [0.9, 0.99]},
    "name": None,
    "software": {"x (y)": 1},
}
STEPS = [2, 5, 8]
"""The last step of each epoch of `train_run`."""


def require(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'panda-wsi[{name}]'")


def log_run(settings: TrackingSettings, folder: Path, *, resumed: bool = False) -> Dashboard:
    """Log one of each to a new run."""
    loggers = settings.build_loggers(folder, "r", "segmentation", "sweep-a", CONFIG, resumed=resumed)
    found = find_dashboard(loggers)
    assert found is not None
    picture = folder / "epoch_004_fixed.png"
    Image.new("RGB", (8, 6), (255, 0, 0)).save(picture)
    (folder / "curve.csv").write_text("threshold,dice\n0.1,0.5\n0.2,\n")
    for logger in loggers:
        logger.log_metrics({"val/dice": 0.25, "epoch": 1}, step=7)
    found.log_rows("views/fixed", picture, [], 0.5, epoch=4)
    found.log_pictures({"curves/none": folder / "none.png"})
    found.log_csv("curve_table", folder / "curve.csv")
    found.log_slides("test_slides", [{"slide_id": "a|b", "dice": None}], folder)
    found.log_figures(make_summary(SCORES))
    return found


class TensorBoardRun:
    """The events of a run, as TensorBoard reads them."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self.events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0, "images": 0}).Reload()

    def read_scalars(self, key: str) -> list[tuple[int, float]]:
        return [(event.step, round(event.value, 6)) for event in self.events.Scalars(key)]

    def read_text(self, key: str) -> str:
        return str(self.events.Tensors(f"{key}/text_summary")[0].tensor_proto.string_val[0].decode())

    def read_sessions(self) -> tuple[Any, str]:
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.api_pb2 import Status

        content = self.events.summary_metadata
        start = content[metadata.SESSION_START_INFO_TAG].plugin_data.content
        end = content[metadata.SESSION_END_INFO_TAG].plugin_data.content
        status = metadata.parse_session_end_info_plugin_data(end).status
        return metadata.parse_session_start_info_plugin_data(start).hparams, Status.Name(status)


@pytest.mark.parametrize(("state", "status"), [("finished", "STATUS_SUCCESS"), ("interrupted", "STATUS_FAILURE")])
def test_tensorboard_has_all_that_a_run_logs(tmp_path: Path, state: Any, status: str) -> None:
    require("tensorboard")
    log_run(TensorBoardTracking(tags=("mine",), choices=("model=unet",)), tmp_path).end(state)
    run = TensorBoardRun(tmp_path)
    assert run.read_scalars("val/dice") == [(7, 0.25)]
    assert {key: run.read_scalars(f"test/final_dice{key}") for key in ("", "_low", "_high")} == {
        "": [(0, 0.5)], "_low": [(0, 0.4)], "_high": [(0, 0.7)],
    }  # fmt: skip
    (picture,) = run.events.Images("views/fixed")
    assert (picture.step, picture.width, picture.height) == (4, 8, 6)
    assert run.read_text("curve_table").splitlines()[-1] == "| 0.2 |  |"
    assert "a\\|b" in run.read_text("test_slides")
    assert "| test | all | Dice, all pixels pooled | 0.5 | 0.4 | 0.7 |" in run.read_text("figures")
    settings, ended = run.read_sessions()
    assert ended == status
    assert settings["model/encoder_name"].string_value == "resnet18"
    assert settings["optim/lr"].number_value == 0.1
    assert (settings["model"].string_value, settings["sweep"].string_value) == ("unet", "sweep-a")


def open_mlflow(folder: Path) -> tuple[MlflowTracking, Any]:
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{folder}/mlflow.db"
    return MlflowTracking(
        tracking_uri=address, tags=("mine",), choices=("model=unet",), checkpoints=True
    ), MlflowClient(address)


def test_mlflow_has_all_that_a_run_logs_and_continues_it(tmp_path: Path) -> None:
    require("mlflow")
    settings, client = open_mlflow(tmp_path)
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / name).write_text(name)
    first = log_run(settings, tmp_path)
    first.log_checkpoints(tmp_path, {"threshold": 0.3})
    first.end("interrupted")
    (experiment,) = client.search_experiments(filter_string="name = 'panda'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("KILLED", "r")
    assert run.data.params == {
        "model/encoder_name": "resnet18",
        "optim/lr": "0.1",
        "optim/betas": "[0.9, 0.99]",
        "name": "None",
        "software/x _y_": "1",
    }
    assert run.data.metrics["test/final_dice_low"] == 0.4
    expected = {"model": "unet", "mine": "true", "task": "segmentation", "sweep": "sweep-a", "folder": str(tmp_path)}
    assert expected.items() <= run.data.tags.items()
    files = {path.relative_to(tmp_path / "mlflow").parts[2:] for path in (tmp_path / "mlflow").rglob("*.*")}
    assert files == {
        ("views", "epoch_004_fixed.png"), ("curve_table.csv",), ("test_slides.csv",), ("figures.csv",),
        ("checkpoints", "best.ckpt"), ("checkpoints", "last.ckpt"), ("checkpoints", "about.json"),
    }  # fmt: skip
    again = log_run(settings, tmp_path, resumed=True)
    assert again.is_continued
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "RUNNING"  # and then the process is killed
    log_run(settings, tmp_path).end("finished")
    states = [run.info.status for run in client.search_runs([experiment.experiment_id])]
    assert sorted(states) == ["FINISHED", "KILLED"]


def test_mlflow_that_fails_is_one_warning_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require("mlflow")
    (tmp_path / "bad.db").write_text("no database at all")
    loggers = {
        name: MlflowTracking(tracking_uri=f"sqlite:///{tmp_path}/{name}.db").build_loggers(
            tmp_path, "r", "segmentation", None, CONFIG
        )
        for name in ("bad", "good")
    }
    assert [type(logger) for logger in loggers["bad"]] == [CSVLogger]
    assert "MLflow: (sqlite3.DatabaseError) file is not a database; the run continues without it" in caplog.text
    caplog.clear()
    remove(tmp_path / "good")
    (tmp_path / "good").touch()  # the folder of its files
    dashboard = find_dashboard(loggers["good"])
    assert dashboard is not None
    for _ in range(3):
        dashboard.log_pictures({"views/fixed": tmp_path / "bad.db"})
    dashboard.end("finished")
    assert caplog.text.count("the run continues without it") == 1


def read_tensorboard(folder: Path) -> list[int]:
    return [step for step, _ in TensorBoardRun(folder).read_scalars("val/dice")]


def read_mlflow(folder: Path) -> list[int]:
    _, client = open_mlflow(folder)
    (experiment,) = client.search_experiments(filter_string="name = 'panda'")
    (run,) = client.search_runs([experiment.experiment_id])
    return sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "val/dice"))


@pytest.mark.parametrize(("name", "read"), [("tensorboard", read_tensorboard), ("mlflow", read_mlflow)])
def test_resumed_run_is_one_log_with_each_epoch(tmp_path: Path, name: str, read: Callable[[Path], list[int]]) -> None:
    require(name)
    logger = [f"logger={name}", *([f"logger.tracking_uri=sqlite:///{tmp_path}/mlflow.db"] if name == "mlflow" else [])]
    train_run(tmp_path, *logger, stop=2)
    assert read(tmp_path) == STEPS[:2]
    train_run(tmp_path, *logger, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert read(tmp_path) == STEPS
