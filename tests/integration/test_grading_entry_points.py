"""Grading guided by the folds of a cross-validation, with train.py and infer.py: which fold guides which slide."""

import json
from pathlib import Path

import numpy as np
import pytest

from panda.inference.canvas import Canvas
from panda.report.run_summary import parse_summary
from tests.checkpoints import segmentation_checkpoint
from tests.integration.entry_points import run_entry_point, table

pytestmark = pytest.mark.slow

SMALL = ("data.num_workers=0", "data.patch_size=64", "trainer=cpu", "trainer.max_epochs=1", "logger=csv")
SLIDES = ("data.draw.slides=9", "data.draw.width=640", "data.draw.height=512")
SEGMENTATION = (
    "data.batch_size=8",
    "model.encoder_name=resnet18",
    "model.decoder_channels=[16,16,8,8,8]",
    "task.overlap=0.25",
    "task.panels=0",
    "task.views_every=0",
)
FOLDS = "runs/segmentation/sweep-folds"
GRADING = ("data=panda", "data.root=data/synthetic", "task=grading", "tiles.k=4", "tiles.cross_fit=true")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three folds were trained, and a grader on tiles that they chose."""
    home = tmp_path_factory.mktemp("home")
    folds = ("data.split=kfold", "data.folds=3", "data.fold=0,1,2", "name=folds")
    done = run_entry_point("train", home, "-m", *SMALL, *SLIDES, *SEGMENTATION, *folds)
    assert done.returncode == 0, done.stderr[-3000:]
    # a split of its own: its training slides come from the test slides of all folds
    given = f"segmentation_checkpoint='{FOLDS}/*/checkpoints/best.ckpt'"
    done = run_entry_point("train", home, *SMALL, *GRADING, given, "name=fitted")
    assert done.returncode == 0, done.stderr[-3000:]
    return home


def find_unseen_fold(home: Path) -> dict[str, str]:
    """Return for each slide the fold that did not train or validate on it, from the splits of the folds."""
    return {
        row["slide_id"]: fold
        for fold in "012"
        for row in table(home / FOLDS / fold / "splits.csv")
        if row["split"] == "test"
    }


def test_cross_fit_each_slide_is_guided_by_unseen_fold(home: Path) -> None:
    new_to = find_unseen_fold(home)
    assert len(new_to) == 9
    run = home / "runs" / "grading" / "fitted"
    guides = {path.name.rpartition("-")[0]: path for path in (home / "patches").glob("canvases-*/*.zarr")}
    assert guides.keys() == new_to.keys()
    used = {row["slide_id"]: row["split"] for row in table(run / "splits.csv")}
    assert {new_to[slide] for slide, split in used.items() if split == "train"} == set("012")
    maps = {}
    for slide, fold in new_to.items():
        # what the fold itself mapped as one of its test slides
        maps[slide] = np.asarray(Canvas.open(home / FOLDS / fold / "slides" / slide / "canvas.zarr"))
        assert np.array_equal(np.asarray(Canvas.open(guides[slide])), maps[slide]), slide
        if used[slide] == "test":
            facts = json.loads((run / "slides" / slide / "quantification.json").read_text())
            assert facts["made_with"]["checkpoint"] == f"{FOLDS}/{fold}/checkpoints/best.ckpt"
    assert len({guides[slide].parent for slide in guides}) == 3
    summary = json.loads((run / "summary.json").read_text())
    assert parse_summary(summary)[1] == []
    assert summary["tiles"]["cross_fit"] is True
    assert summary["threshold"] is None
    said = "chosen by one of 3 segmentations that was not trained or validated on any slide of its group"
    assert said in " ".join(summary["notes"])
    assert said in (run / "report.html").read_text()
    assert "in-sample" not in (run / "report.html").read_text()


def test_cross_fit_slide_without_guide_is_refused_before_mapping(home: Path) -> None:
    before = sorted((home / "patches").glob("canvases-*/*"))
    given = f"segmentation_checkpoint='{FOLDS}/[01]/checkpoints/best.ckpt'"
    done = run_entry_point("train", home, *SMALL, *GRADING, given, "name=two")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "3 of 9 slides are new to none of the 2 segmentations" in done.stderr
    assert any(slide in done.stderr for slide, fold in find_unseen_fold(home).items() if fold == "2")
    assert sorted((home / "patches").glob("canvases-*/*")) == before


def test_infer_with_cross_fitted_grader_grades(home: Path) -> None:
    tested = table(home / "runs" / "grading" / "fitted" / "test_slides.csv")[0]
    slide = tested["slide_id"]
    fold = find_unseen_fold(home)[slide]
    best = {
        "own": home / FOLDS / fold / "checkpoints" / "best.ckpt",
        "stranger": segmentation_checkpoint(home / "stranger.ckpt"),
    }
    for name, checkpoint in best.items():
        done = run_entry_point(
            "infer",
            home,
            f"checkpoint={checkpoint}",
            "grading_checkpoint=runs/grading/fitted/checkpoints/best.ckpt",
            f"slides=data/synthetic/train_images/{slide}.tiff",
            f"output={name}",
            "engine.device=cpu",
        )
        assert done.returncode == 0, done.stderr[-3000:]
        # the tiles of a segmentation that had no part in training are news to the grader
        strange = "tiles that another segmentation chose" in (home / name / "report.html").read_text()
        assert strange == (name == "stranger")
    facts = json.loads((home / "own" / slide / "quantification.json").read_text())
    page = (home / "own" / slide / "slide.html").read_text()
    grade = facts["grade"]
    # what the run itself found on this test slide
    assert grade["probabilities"] == pytest.approx([float(tested[f"p{i}"]) for i in range(6)], abs=1e-6)
    for probability in grade["probabilities"]:
        assert f"{probability:.2f}</" in page
    assert facts["tumor_mm2"] is not None
    for shown in (
        'class="of-map" src="data:image/',
        "Tumour, share of tissue",
        "Predicted grade",
        ">ISUP grade</h2>",
        'class="attention" type="checkbox"',
        ">Where the grading network looked</h2>",
        'href="attention_tiles.png"',
    ):
        assert shown in page, shown
    assert 1 < len(grade["tiles"]) <= 4
