"""The doors on real H&E slides, where they lie beside the checkout."""

import json
from pathlib import Path

import pytest

from tests.integration.doors import run_door, table

pytestmark = [pytest.mark.slow, pytest.mark.real_data]


def test_real_slides_are_trained_on_and_mapped(glas: Path, odd_slides: Path, tmp_path: Path) -> None:
    done = run_door(
        "train",
        tmp_path,
        "data=panda",
        f"data.root={glas}",
        f"data.groups={glas / 'patients.csv'}",
        "data.level=null",
        "data.mpp=6.0",
        "data.patch_size=64",
        "data.num_workers=0",
        "model.encoder_name=resnet18",
        "model.decoder_channels=[16,16,8,8,8]",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "task.overlap=0.25",
        "task.panels=2",
        "logger=csv",
        "name=glas",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "segmentation" / "glas"
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["data"]["slides"].values()) == {6, 2}
    assert "patients.csv" in summary["data"]["groups"]
    assert summary["test"]["slides"] == 2
    for row in table(run / "test_slides.csv"):
        facts = json.loads((run / "slides" / row["slide_id"] / "quantification.json").read_text())
        assert facts["mpp"] == pytest.approx([0.62, 0.62], rel=0.01)
        assert 0 < facts["tissue_mm2"] < 30

    done = run_door(
        "infer",
        tmp_path,
        f"checkpoint={run}/checkpoints/best.ckpt",
        f"slides={odd_slides}",
        "output=out",
    )
    assert done.returncode == 1  # one of them cannot be opened
    failed = {row["slide_id"]: row for row in table(tmp_path / "out/failures.csv")}
    assert "unopenable" in failed
    mapped = {row["slide_id"]: row for row in table(tmp_path / "out/quantification.csv")}
    assert float(mapped["CMU-1-Small-Region"]["tissue_mm2"]) > 0
    assert all(row["error"] == "SlideError" and row["message"] for row in failed.values())
