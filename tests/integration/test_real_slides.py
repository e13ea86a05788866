"""The entry points on real H&E slides, if these are next to the checkout."""

import json
from pathlib import Path

import pytest

from panda.audit.dataset import audit_folder
from tests.integration.entry_points import run_entry_point, table

pytestmark = [pytest.mark.slow, pytest.mark.real_data]


def test_real_slides_train_and_infer(glas: Path, odd_slides: Path, tmp_path: Path) -> None:
    done = run_entry_point(
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

    done = run_entry_point(
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


def test_audit_real_slides_has_no_finding(glas: Path, tmp_path: Path) -> None:
    summary = audit_folder(glas, tmp_path, workers=2, progress=False)
    assert summary.slides == 10
    assert summary.findings == {}
    assert summary.groups is not None
    assert summary.groups.groups == 0


def test_audit_real_odd_slides_reports_findings(odd_slides: Path, tmp_path: Path) -> None:
    (tmp_path / "train_images").mkdir()
    lines = ["image_id,data_provider,isup_grade,gleason_score"]
    for path in sorted(odd_slides.iterdir()):
        (tmp_path / "train_images" / f"{path.stem}.tiff").symlink_to(path)
        lines.append(f"{path.stem},radboud,0,negative")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    audit_folder(tmp_path, tmp_path / "audit", workers=2, progress=False)
    found: dict[str, set[str]] = {}
    for row in table(tmp_path / "audit" / "findings.csv"):
        found.setdefault(row["slide_id"], set()).add(row["finding"])
    assert all("missing_mask" in names for names in found.values())
    assert {slide_id: names - {"missing_mask"} for slide_id, names in found.items()} == {
        "CMU-1-Small-Region": {"unusual_levels"},
        "jpeg2000_no_mpp": {"mpp_missing"},
        "nonsense_mpp": {"mpp_nonsense", "no_tissue", "pen_marks"},
        "unopenable": {"unopenable"},
    }
