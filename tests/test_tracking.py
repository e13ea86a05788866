"""W&B: all files in the run's folder, no prompt, charts over epochs; no account or network needed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
from PIL import Image

from panda.app.dashboard import find_dashboard, flatten, replay_views
from panda.app.tracking import Tracking, TrackingSettings, read_metrics, replay_metrics
from panda.app.wandb_dashboard import WandbDashboard, end_wandb
from tests.summaries import make_summary
from tests.wandb_log import OfflineRun

REPOSITORY = Path(__file__).resolve().parents[1]

RUN = """
import socket, sys
from pathlib import Path
def refused(*_, **__):
    raise OSError("there is no network")
connect = socket.socket.connect
socket.socket.connect = lambda own, to: connect(own, to) if own.family == socket.AF_UNIX else refused()
from panda.app.dashboard import find_dashboard
from panda.app.tracking import Tracking
import wandb
folder = Path(sys.argv[2])
loggers = Tracking(mode=sys.argv[1]).build_loggers(folder, "r", "segmentation", None, {"a": {"b": 1}})
for logger in loggers:
    logger.log_metrics({"val/dice": 0.5, "epoch": 0}, step=3)
    logger.save()
find_dashboard(loggers).log_checkpoints(folder, {})
find_dashboard(loggers).log_table("t", columns=["x"], data=[[1]])
wandb.finish()
"""


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_run_finishes_without_account_network_or_home(tmp_path: Path, mode: str) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "no_folder").touch()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path / "no_folder" / "home"), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, mode, str(tmp_path)],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("logged offline" in done.stderr) == (mode == "online")
    run = OfflineRun(tmp_path)
    assert run.config["a/b"] == 1
    assert [item["epoch"] for item in run.find_logged("val/dice")] == [0]
    here = [Path(c.local_path) for artifact in run.artifacts for c in artifact.manifest.contents]
    assert here
    assert all(tmp_path in path.parents and path.is_file() for path in here)


def test_flat_settings_have_no_dots() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": None}, "/") == {
        "a/b/c": 1,
        "a/d": [1, {"e": 2}],
        "f": None,
    }


@pytest.fixture
def logger(tmp_path: Path) -> WandbDashboard:
    choices = ("model=unet", "x=" + "y" * 100)
    tracking = Tracking(tags=("mine", "model=unet"), choices=choices)
    found = find_dashboard(tracking.build_loggers(tmp_path, "3", "segmentation", "sweep-a", {"seed": 1}))
    assert isinstance(found, WandbDashboard)
    return found


def test_log_figures_has_group_tags_and_intervals(tmp_path: Path, logger: WandbDashboard) -> None:
    scores = {"dice": 0.5, "dice_interval": [0.4, 0.7], "slides": 3, "by_provider": {"radboud": {"dice": 0.6}}}
    logger.log_figures(make_summary({"threshold": 0.3, "test": scores}))
    logger.end("interrupted")
    run = OfflineRun(tmp_path)
    assert run.exit_status == 1
    assert run.about.run_group == "sweep-a"
    assert list(run.about.tags) == ["model=unet", ("x=" + "y" * 100)[:64], "mine"]
    table = run.table("figures")
    assert ["test", "all", "Dice, all pixels pooled", 0.5, 0.4, 0.7] in table["data"]
    assert ["test", "radboud", "Dice, all pixels pooled", 0.6, None, None] in table["data"]


def test_log_checkpoints_names_files_without_copy(tmp_path: Path, logger: WandbDashboard) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / name).write_bytes(name.encode() * 100_000)
    logger.log_checkpoints(tmp_path, {"threshold": 0.3})
    wandb.finish()
    # `latest` is W&B's own
    found = {alias: a for a in OfflineRun(tmp_path).artifacts for alias in a.aliases if alias != "latest"}
    assert found.keys() == {"best", "last"}
    for alias, artifact in found.items():
        assert artifact.type == "model"
        assert [c.local_path for c in artifact.manifest.contents] == [str(tmp_path / f"{alias}.ckpt")]
    assert max(path.stat().st_size for path in (tmp_path / "wandb").rglob("*") if path.is_file()) < 900_000


def test_replay_views_logs_pictures_of_whole_epochs_again(tmp_path: Path, logger: WandbDashboard) -> None:
    (tmp_path / "views").mkdir()
    for epoch in (1, 3, 5):
        Image.new("RGB", (8, 8)).save(tmp_path / "views" / f"epoch_{epoch:03d}_fixed.png")
    replay_views(tmp_path, [logger], before=4)
    wandb.finish()
    assert [item["epoch"] for item in OfflineRun(tmp_path).find_logged("views/fixed")] == [1, 3]


def test_wandb_full_disk_is_one_warning_and_no_error(
    tmp_path: Path, small_disk: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk("64k")
    (tmp_path / "wandb").symlink_to(disk)
    Image.effect_noise((300, 300), 90).save(tmp_path / "noise.png")
    logger = find_dashboard(Tracking().build_loggers(tmp_path, "r", "t", None, {}))
    assert logger is not None
    try:
        for _ in range(3):
            logger.log_pictures({"noise": tmp_path / "noise.png"})
            logger.log_metrics({"loss": 0.5, "epoch": 0})
    finally:
        end_wandb()
    assert caplog.text.count("the run continues without it") == 1
    assert "No space left" in caplog.text


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_build_loggers_resumed_run_never_lacks_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that ends while its loggers are built leaves all rows, and later columns are added to them."""
    before = [{"step": 3, "epoch": 0, "val/dice": 0.5}, {"step": 7, "epoch": 1, "val/dice": 0.25}]
    settings = TrackingSettings()
    (csv_logger,) = settings.build_loggers(tmp_path, "run", "segmentation", None, {})
    replay_metrics(before, [csv_logger])
    text = (tmp_path / "metrics.csv").read_bytes()
    kept = read_metrics(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("panda.app.tracking._MetricsWriter", interrupt)
        with pytest.raises(KeyboardInterrupt):
            settings.build_loggers(tmp_path, "run", "segmentation", None, {}, kept=kept, resumed=True)
    assert (tmp_path / "metrics.csv").read_bytes() == text
    (again,) = settings.build_loggers(tmp_path, "run", "segmentation", None, {}, kept=kept, resumed=True)
    assert (tmp_path / "metrics.csv").read_bytes() == text
    again.log_metrics({"epoch": 2, "train/loss": 0.1}, step=9)
    again.save()
    assert read_metrics(tmp_path) == [*before, {"step": 9, "epoch": 2, "train/loss": 0.1}]
