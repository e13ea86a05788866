"""Runs that are killed in mid-epoch, or whose disk is full, resume to the same result."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from panda.tasks.segmentation import SegmentationTask
from tests.integration.entry_points import REPOSITORY, run_entry_point, table
from tests.integration.test_entry_points import TINY

pytestmark = pytest.mark.slow

# With dropout (DeepLabV3), augmentation and draws by past losses: all have to go on where they were.
RUN = (
    *(o for o in TINY if not o.startswith(("trainer.max_epochs", "model.", "data.num_workers"))),
    "data.num_workers=2",
    "model=deeplabv3",
    "model.encoder_name=mobilenet_v2",
    "model.decoder_channels=16",
    "data.sampler=hard",
    "trainer.max_epochs=3",
    "+trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "task.views_every=2",
    "task.views=1",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def read_last(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def test_train_killed_in_mid_epoch_resumes_to_same_result(home: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.killed_training", "1", "2", *RUN, "name=killed"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    run, whole = (home / "runs" / "segmentation" / name for name in ("killed", "whole"))
    begun = read_last(run)
    assert begun["epoch"] == 0
    half = table(run / "metrics.csv")
    assert any(int(row["step"]) >= begun["global_step"] for row in half), "it was killed before anything was logged"
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1

    done = run_entry_point("train", home, f"resume={run}")
    assert done.returncode == 0, done.stderr[-3000:]
    done = run_entry_point("train", home, *RUN, "name=whole")
    assert done.returncode == 0, done.stderr[-3000:]
    resumed, uninterrupted = read_last(run), read_last(whole)
    assert resumed["epoch"] == 2
    for name, tensor in uninterrupted["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], tensor), name
    (ours,), (theirs,) = resumed["optimizer_states"], uninterrupted["optimizer_states"]
    for key, state in theirs["state"].items():
        assert all(torch.equal(ours["state"][key][name], tensor) for name, tensor in state.items())
    assert ours["param_groups"] == theirs["param_groups"]
    assert table(run / "metrics.csv") == table(whole / "metrics.csv")
    for name in ("threshold_curve.csv", "test_slides.csv"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    pictures = [{path.name: path.read_bytes() for path in (folder / "views").iterdir()} for folder in (run, whole)]
    assert pictures[0] == pictures[1]
    assert {name[:9] for name in pictures[0]} == {"epoch_001", "epoch_002"}
    # what is sent to W&B is the whole run, once
    logged = [[log.read_bytes() for log in folder.glob("wandb/offline-run-*/*.wandb")] for folder in (run, whole)]
    counts = [[log.count(b"train/loss_step") for log in logs] for logs in logged]
    assert counts[0] == counts[1]
    assert counts[0][0] > 0
    assert len(list((run / "wandb" / "interrupted").glob("offline-run-*"))) == 1


def test_train_full_disk_is_named_and_keeps_last_checkpoint(
    home: Path, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("120m")  # the checkpoints and not much more
    step = SegmentationTask.training_step
    ballast = disk / "others"

    def filling(task: SegmentationTask, batch: Any, batch_idx: int) -> torch.Tensor:
        if (task.current_epoch, batch_idx) == (1, 1) and not ballast.exists():
            free = os.statvfs(disk)
            ballast.write_bytes(b"\0" * (free.f_bavail * free.f_frsize))
        return step(task, batch, batch_idx)

    data = (f"data.root={home}/data/synthetic", f"data.store_root={home}/patches", "logger=csv", "test_slides=false")
    with monkeypatch.context() as patched:
        patched.setattr(SegmentationTask, "training_step", filling)
        done = run_entry_point("train", disk, *RUN, *data, "name=full")
    run = disk / "runs" / "segmentation" / "full"
    assert done.returncode == 1
    assert f"{run.relative_to(disk)}" in done.stderr
    assert os.strerror(errno.ENOSPC) in done.stderr
    assert "make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_last(run)["epoch"] == 0
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    ballast.unlink()
    done = run_entry_point("train", disk, f"resume={run.relative_to(disk)}/checkpoints/last.ckpt")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["epoch"] for row in table(run / "metrics.csv") if row["val/loss"]] == ["0", "1", "2"]
    assert "resume=" not in (run / "overrides.txt").read_text()
    assert "name=full" in (run / "overrides.txt").read_text()
