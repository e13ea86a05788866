"""Train on the columns of a table with train.py, and predict new slides with infer.py."""

import csv
import json
from pathlib import Path

import pytest

from panda.report.run_summary import GradingSummary, parse_summary
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.metadata import GradingMetadata
from tests.checkpoints import segmentation_checkpoint
from tests.integration.entry_points import run_entry_point, table
from tests.panda_folder import make_folder

pytestmark = pytest.mark.slow

COMMON = (
    "task=grading", "tiles=tissue", "tiles.k=2", "tiles.tile_size=32", "tiles.batch_size=4", "data=panda",
    "data.root=data", "data.num_workers=0", "data.val_fraction=0.3", "data.test_fraction=0.3", "model.hidden=8",
    "model.encoder=resnet10t", "model.freeze_encoder=true", "trainer=cpu", "trainer.max_epochs=2", "logger=csv",
)  # fmt: skip
KINDS = {
    "classes": ("task.target=stain",),
    "ordinal": ("task.target=stage", "task.classes=[low,mid,high]", "model.head=ordinal"),
    "regression": ("task.target=ki67",),
    "survival": ("task.target=os", "task.time=months", "task.event=dead"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where twelve slides have four columns, and there is a segmentation for `infer.py`."""
    home = tmp_path_factory.mktemp("home")
    make_folder(home / "data", 12)
    rows = table(home / "data" / "train.csv")
    for number, row in enumerate(rows):
        row |= {"stain": "abbabaababba"[number], "stage": ("low", "high", "mid")[number % 3], "ki67": f"{7.5 * number}"}
        row |= {"months": f"{60 - 5 * number}", "dead": str(int(number % 3 != 1))}
    with (home / "data" / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    segmentation_checkpoint(home / "map.ckpt")
    return home


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_infer_on_a_column(home: Path, kind: str) -> None:
    done = run_entry_point("train", home, *COMMON, f"task.kind={kind}", *KINDS[kind], f"name={kind}")
    assert done.returncode == 0, done.stderr[-3000:]
    run = home / "runs" / "grading" / kind
    summary, faults = parse_summary(json.loads((run / "summary.json").read_text()))
    assert isinstance(summary, GradingSummary), faults
    assert summary.scoring == kind
    assert summary.test is not None
    assert (summary.calibration is not None) == (kind in ("classes", "ordinal"))
    metadata = read_checkpoint(run / "checkpoints" / "best.ckpt", GradingMetadata).metadata
    assert metadata.target == summary.target
    assert (metadata.scale is not None) == (kind == "regression")
    slide = table(run / "test_slides.csv")[0]["slide_id"]
    done = run_entry_point(
        "infer", home, "checkpoint=map.ckpt", f"grading_checkpoint={run}/checkpoints/best.ckpt",
        f"slides=data/train_images/{slide}.tiff", f"output=out/{kind}", "engine.device=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = table(home / "out" / kind / "quantification.csv")
    own = {"classes": "stain_predicted", "ordinal": "stage_predicted", "regression": "ki67_predicted",
           "survival": "os_risk"}[kind]  # fmt: skip
    tested = next(row for row in table(run / "test_slides.csv") if row["slide_id"] == slide)
    if kind in ("classes", "ordinal"):
        assert row[own] == tested["predicted_class"]
        assert sum(float(row[f"p_{name}"]) for name in summary.target.classes) == pytest.approx(1)
    else:
        assert float(row[own]) == pytest.approx(float(tested["predicted"]), rel=1e-3)
    pages = [home / "out" / kind / name for name in ("report.html", f"{slide}/slide.html")] + [run / "report.html"]
    for page in pages:
        assert "ISUP" not in page.read_text(), page
    assert "not read" not in pages[1].read_text()
