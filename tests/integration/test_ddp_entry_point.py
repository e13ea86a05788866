"""Train on two devices with train.py, and resume."""

import json
from pathlib import Path

import pytest
import torch

from tests.integration.entry_points import run_entry_point, table
from tests.integration.test_entry_points import TINY
from tests.wandb_log import OfflineRun

pytestmark = pytest.mark.slow

OVERRIDES = (
    *(override for override in TINY if not override.startswith(("trainer", "task.views"))),
    "task.views_every=1",
    "task.views=2",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.ema=0.9",
    "+trainer.limit_train_batches=2",
    "data.sampler=hard",
    "data.normalize=macenko",
    "test_slides=false",
    "name=ddp",
)


def test_train_two_devices_make_one_run_and_resume(tmp_path: Path) -> None:
    done = run_entry_point("train", tmp_path, *OVERRIDES)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "segmentation" / "ddp"
    assert [path.name for path in run.parent.iterdir()] == ["ddp"]
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
    done = run_entry_point("train", tmp_path, f"resume={run / 'checkpoints' / 'last.ckpt'}", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr[-3000:]
    second = json.loads((run / "summary.json").read_text())
    assert (second["devices"], second["epochs"]) == (2, 2)
    assert second["seconds"] > first["seconds"]
    assert int(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["averaging_state"]["n_averaged"]) == 4
    assert [row["epoch"] for row in table(run / "metrics.csv") if row["val/dice"]] == ["0", "1"]
