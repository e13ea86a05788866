"""Train in two ranks that torchrun starts, and resume."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.entry_points import REPOSITORY, run_entry_point
from tests.integration.test_entry_points import TINY

pytestmark = pytest.mark.slow

OVERRIDES = (
    *(override for override in TINY if not override.startswith("trainer")),
    "trainer.accelerator=cpu",
    "+trainer.limit_train_batches=2",
    "task.views_every=1",
    "task.views=1",
    "test_slides=false",
    "logger=csv",
    "optim.schedule=none",  # another would depend on the number of epochs
)


def run_torchrun(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*command, str(REPOSITORY / "train.py"), *overrides],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def load_last(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def test_torchrun_gives_weights_of_ddp_and_resumes(tmp_path: Path) -> None:
    runs = tmp_path / "runs" / "segmentation"
    whole = run_entry_point("train", tmp_path, *OVERRIDES, "trainer=ddp", "trainer.max_epochs=2", "name=spawned")
    assert whole.returncode == 0, whole.stderr[-3000:]
    begun = run_torchrun(tmp_path, *OVERRIDES, "trainer=ddp_slurm", "trainer.max_epochs=1", "name=joint")
    assert begun.returncode == 0, begun.stderr[-3000:]
    assert begun.stderr.count("run: ") == begun.stderr.count("training 11.3 million") == 1
    assert "srun" not in begun.stderr
    resumed = run_torchrun(tmp_path, f"resume={runs / 'joint/checkpoints/last.ckpt'}", "trainer.max_epochs=2")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    ours, theirs = load_last(runs / "joint"), load_last(runs / "spawned")
    assert (ours["epoch"], ours["global_step"]) == (theirs["epoch"], theirs["global_step"]) == (1, 4)
    for name, weight in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], weight, rtol=0, atol=0)
    assert json.loads((runs / "joint/summary.json").read_text())["devices"] == 2
    assert not [path.name for path in (runs / "joint").iterdir() if "partial" in path.name]
    refused = run_torchrun(tmp_path, *OVERRIDES, "trainer=cpu", "name=refused")
    assert refused.returncode == 1
    assert refused.stderr.count("torchrun started 2 processes, and each would be a whole training") == 1
    assert not (runs / "refused").exists()
