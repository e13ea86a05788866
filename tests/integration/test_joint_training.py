"""Train on two devices, in processes of train.py and in ranks that torchrun starts, and resume."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.entry_points import REPOSITORY, run_entry_point, table
from tests.integration.test_entry_points import TINY
from tests.wandb_log import OfflineRun

pytestmark = pytest.mark.slow

OVERRIDES = (
    *(override for override in TINY if not override.startswith(("trainer", "task.views"))),
    "task.views_every=1",
    "task.views=2",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.ema=0.9",
    "+trainer.limit_train_batches=2",
    "data.sampler=hard",
    "data.normalize=macenko",
    "test_slides=false",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def spawned(home: Path) -> Path:
    """Return the folder of a training in two processes that train.py starts: an epoch, and one more after a resume."""
    done = run_entry_point("train", home, *OVERRIDES, "trainer=ddp", "name=spawned")
    assert done.returncode == 0, done.stderr[-3000:]
    run = home / "runs" / "segmentation" / "spawned"
    assert [path.name for path in run.parent.iterdir()] == ["spawned"]
    shown = OfflineRun(run)
    for name in ("fixed", "telling"):
        assert (run / "views" / f"epoch_000_{name}.png").is_file()
        (logged,) = shown.find_logged(f"views/{name}")
        patches = logged[f"views/{name}_patches"]
        assert all((shown.folder / "files" / path).is_file() for path in patches["filenames"])
    assert [item["epoch"] for item in shown.find_logged("val/dice")] == [0]
    first = json.loads((run / "summary.json").read_text())
    assert (first["devices"], first["epochs"]) == (2, 1)
    assert first["data"]["colours"] == "data.normalize=macenko augment=light"
    done = run_entry_point("train", home, f"resume={run / 'checkpoints' / 'last.ckpt'}", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr[-3000:]
    second = json.loads((run / "summary.json").read_text())
    assert (second["devices"], second["epochs"]) == (2, 2)
    assert second["seconds"] > first["seconds"]
    return run


def run_torchrun(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*command, str(REPOSITORY / "train.py"), *overrides],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def load_last(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def test_train_two_devices_make_one_run_and_resume(spawned: Path) -> None:
    assert int(load_last(spawned)["averaging_state"]["n_averaged"]) == 4
    assert [row["epoch"] for row in table(spawned / "metrics.csv") if row["val/dice"]] == ["0", "1"]


def test_torchrun_gives_weights_of_ddp_and_resumes(home: Path, spawned: Path) -> None:
    joint = spawned.with_name("joint")
    begun = run_torchrun(home, *OVERRIDES, "trainer=ddp_slurm", "name=joint", "logger=csv")
    assert begun.returncode == 0, begun.stderr[-3000:]
    assert begun.stderr.count("run: ") == begun.stderr.count("training 11.3 million") == 1
    assert "srun" not in begun.stderr
    resumed = run_torchrun(home, f"resume={joint / 'checkpoints/last.ckpt'}", "trainer.max_epochs=2")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    ours, theirs = load_last(joint), load_last(spawned)
    assert (ours["epoch"], ours["global_step"]) == (theirs["epoch"], theirs["global_step"]) == (1, 4)
    for name, weight in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], weight, rtol=0, atol=0)
    assert json.loads((joint / "summary.json").read_text())["devices"] == 2
    assert not [path.name for path in joint.iterdir() if "partial" in path.name]
