"""Grading runs on small slides, without a segmentation."""

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch

from panda.app.encoder_choice import copy_encoder
from panda.app.grading import GradingExperiment
from panda.app.split_grading import grade_split
from panda.data.bags import read_tiles
from panda.data.bagset import BagItem
from panda.data.manifest import SlideRecord
from panda.errors import ConfigError, SlideError
from panda.inference.features import TileBag
from panda.inference.grader import GradingPredictor
from panda.models.mil import MILNet
from panda.models.segmentation import Segmenter
from panda.report.run_summary import SCHEMA, CommonSummary
from panda.tables import read_output_table
from panda.wsi.slide import Slide, SlideOptions
from tests.checkpoints import grading_checkpoint
from tests.panda_folder import HEIGHT, WIDTH, make_folder
from tests.pyramids import write_pyramid
from tests.summaries import make_summary
from tests.test_config_check import compose_settings


def make_experiment(tmp_path: Path, *overrides: str, grade: str = "4,4+4") -> GradingExperiment:
    """One on eight slides, of small tiles; `grade` replaces the grade and score of slides with cancer."""
    make_folder(tmp_path / "data", 8)
    table = tmp_path / "data" / "train.csv"
    table.write_text(table.read_text().replace("4,4+4", grade))
    own = (
        "data=panda",
        f"data.root={tmp_path / 'data'}",
        f"data.store_root={tmp_path / 'patches'}",
        "data.patch_size=64",
    )
    small = (
        "task=grading",
        "tiles=tissue",
        "tiles.k=4",
        "model.encoder=resnet10t",
        "model.hidden=8",
        "engine.device=cpu",
    )
    return GradingExperiment(compose_settings(*own, *small, *overrides))


@pytest.mark.parametrize("typed", ["colour_map=viridis", "quantify.min_hole_px=9", "engine.tta=d4"])
def test_grading_map_keys_without_maps_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setattr("panda.app.hydra_job.list_overrides", lambda: [typed])
    with pytest.raises(ConfigError, match=f"{typed} is not used with tiles=tissue or all"):
        make_experiment(tmp_path, typed)


@pytest.mark.parametrize(
    ("grade", "fault"),
    [
        ("0,0+0", r"all \d training slides have class 0 of task\.target=isup, so there is nothing to learn"),
        (",", r"(?s)4 of 8 slides have no isup_grade, which grading needs.*data\.exclude=\[missing_grade\].*- '0"),
    ],
)
def test_grading_one_class_or_no_grade_raises(tmp_path: Path, grade: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        make_experiment(tmp_path, grade=grade)


def test_grading_slides_without_grade_can_be_excluded(tmp_path: Path) -> None:
    grading = make_experiment(tmp_path, "data.exclude=[missing_grade]", "task.target=cancer", grade="4.0,")
    assert grading.data.select().exclusion_counts == {}
    with pytest.raises(ConfigError, match="left out are missing_grade: 4"):
        make_experiment(tmp_path / "b", "data.exclude=[missing_grade]", grade=",")


class Trains(Exception):
    """Raised where the training would begin."""


def make_run_without_training(tmp_path: Path) -> Any:
    """Return a run that ends when its training would begin."""

    def fit(*_: object) -> None:
        raise Trains

    return SimpleNamespace(
        folder=tmp_path / "run",
        dashboard=None,
        failures=[],
        notes=[],
        fit=fit,
        log_summary=lambda *_, **__: None,
    )


@pytest.mark.parametrize("scored", [True, False])
def test_grading_unscored_test_slides_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: bool
) -> None:
    grading = make_experiment(tmp_path, f"test_slides={str(scored).lower()}")
    tested = {record.slide_id for record in grading.data.list_splits()["test"]}
    looked_at: set[str] = set()
    make_bag = grading._make_bag

    def seen(record: SlideRecord, *given: Any) -> tuple[SlideRecord, TileBag]:
        looked_at.add(record.slide_id)
        return make_bag(record, *given)

    monkeypatch.setattr(grading, "_make_bag", seen)
    with pytest.raises(Trains):
        grading.run(make_run_without_training(tmp_path))
    assert tested <= looked_at if scored else not tested & looked_at


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EFBIG])
def test_grading_feature_store_on_full_disk_fails_no_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    grading, run = make_experiment(tmp_path, "model.freeze_encoder=true"), make_run_without_training(tmp_path)
    monkeypatch.setattr("panda.inference.feature_store.write_feature_file", full)
    with pytest.raises(OSError, match=os.strerror(code)):
        grading.run(run)
    assert run.failures == []


def test_grading_report_names_the_file_of_the_encoder(tmp_path: Path) -> None:
    source = timm.create_model("resnet10t")
    torch.save({f"module.{key}": value for key, value in source.state_dict().items()}, tmp_path / "w.bin")
    grading = make_experiment(tmp_path, f"model.encoder_weights={tmp_path / 'w.bin'}")
    run = make_run_without_training(tmp_path)
    with pytest.raises(Trains):
        grading.run(run)
    count = len(grading.network.encoder.state_dict())
    assert run.notes[0] == f"The encoder took {count} weights from {tmp_path / 'w.bin'}; not used of the file: fc."


def test_grading_slide_without_features_is_a_failure_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grading, run = make_experiment(tmp_path, "model.freeze_encoder=true"), make_run_without_training(tmp_path)
    lost = grading.data.list_splits()["train"][0]
    read = read_tiles

    def fail(slide: Slide, *args: Any) -> Any:
        if slide.slide_id == lost.slide_id:
            raise SlideError(f"{slide.path}: damaged")
        return read(slide, *args)

    monkeypatch.setattr("panda.inference.features.read_tiles", fail)
    with pytest.raises(Trains):
        grading.run(run)
    assert [(failure.slide_id, failure.stage) for failure in run.failures] == [(lost.slide_id, "features of train")]
    assert lost.slide_id not in grading.prepare().train_slides
    for item in [*grading._items["train"], *grading._items["test"]]:
        assert item.features is not None
        assert item.features.name.startswith(item.record.slide_id)


@pytest.mark.parametrize(("frozen", "colours"), [("true", "none"), ("false", "light")])
def test_grading_summary_names_augmentation_of_encoded_tiles_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: str, colours: str
) -> None:
    grading, run = make_experiment(tmp_path, f"model.freeze_encoder={frozen}"), make_run_without_training(tmp_path)
    own = {"tiles": grading.tiles.selection}
    run.best = grading_checkpoint(tmp_path / "grade.ckpt", grading.network, **own)
    given = make_summary({})
    common = {name: getattr(given, name) for name in CommonSummary.model_fields if name not in ("version", "task")}
    run.describe, run.fit = lambda: common | {"schema": SCHEMA}, lambda *_: None
    assert grading.run(run).data.colours == f"data.normalize=null augment={colours}"


def test_grading_absent_class_is_noted_before_training(tmp_path: Path) -> None:
    run = make_run_without_training(tmp_path)
    with pytest.raises(Trains):
        make_experiment(tmp_path).run(run)
    assert run.notes == [
        "No training slide has class 1, 2, 3, 5, so the grader cannot learn it.",
        "All validation slides have one class, so the best epoch says little.",
    ]


@pytest.mark.parametrize(
    ("encoder", "given", "remedy"),
    [
        ("resnet18", {"encoder": "resnet10t"}, "; give model.encoder=resnet18, or model.encoder_weights=null"),
        # of one name, and of a name that timm does not have
        ("efficientnet-b0", {"encoder": "efficientnet_b0"}, "timm's efficientnet_b0; give model.encoder_weights=null"),
        ("resnet18", {"encoder": "resnet18", "mean": [0.5] * 3}, "; give model.mean=[0.485,0.456,0.406]"),
    ],
)
def test_take_encoder_other_than_segmentation_raises(
    tmp_path: Path, encoder: str, given: dict[str, Any], remedy: str
) -> None:
    network = Segmenter("unet", encoder, decoder_channels=[16, 16, 8, 8, 8])
    segmenter: Any = SimpleNamespace(network=network)
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        copy_encoder(MILNet(**given), segmenter)


@pytest.mark.parametrize("code", [None, 9])
def test_grading_bad_mask_slide_is_still_graded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    """One that cannot be opened, and one of a code that its provider does not have."""
    opened: list[str | None] = []
    open_slide = SlideOptions.open

    def count(self: SlideOptions, path: Path, slide_id: str | None = None) -> Slide:
        opened.append(slide_id)
        return open_slide(self, path, slide_id)

    monkeypatch.setattr(SlideOptions, "open", count)
    grading, run = make_experiment(tmp_path), make_run_without_training(tmp_path)
    tiles = {"how": "tissue", "k": 3, "random_fraction": 1.0, "min_tissue": 0.25, "seed": 0}
    checkpoint = grading_checkpoint(tmp_path / "grade.ckpt", MILNet("resnet10t", hidden=8), tiles=tiles)
    grader = GradingPredictor.from_checkpoint(checkpoint, grading.engine)
    good, bad = (BagItem(record, np.zeros((0, 2), np.int64)) for record in grading.data.list_splits()["test"])
    mask = bad.record.mask_path
    assert mask is not None
    if code is None:
        mask.write_bytes(b"II*\0 this is no mask")
    else:
        write_pyramid(mask, np.full((HEIGHT, WIDTH), code, np.uint8), (1, 2, 4), mpp=2.0)
    found = grade_split(run, grading.cfg, grader, [good, bad], "test")
    assert (len(found), run.failures) == (2, [])
    assert sorted(map(str, opened)) == sorted([good.record.slide_id, bad.record.slide_id])
    grading._write_slides(run, {"test": found})
    (note,) = run.notes
    assert note.startswith("The label masks of 1 graded slides cannot be used")
    assert str(mask) in note or "label codes 9" in note
    rows = {row["slide_id"]: row for row in read_output_table(run.folder / "test_slides.csv")}
    assert rows[bad.record.slide_id]["cancer_attended"] == ""


def test_grading_validation_ignores_older_temperature(tmp_path: Path) -> None:
    """A run that is resumed after its end finds a calibrated checkpoint, on which a temperature must not be fitted."""
    grading, run = make_experiment(tmp_path), make_run_without_training(tmp_path)
    tiles = {"how": "tissue", "k": 3, "random_fraction": 1.0, "min_tissue": 0.25, "seed": 0}
    origin = {"note": "", "chosen_on": "", "date": "2026-01-01T00:00:00Z"}
    older = {"calibration": {"value": 5.0, **origin}, "abstain_below": {"value": 0.9, "risk": 0.1, **origin}}
    items = [BagItem(record, np.zeros((0, 2), np.int64)) for record in grading.data.list_splits()["val"]]
    network, found = MILNet("resnet10t", hidden=8), []
    for changes in ({}, older):
        run.best = grading_checkpoint(tmp_path / "b.ckpt", network, tiles=tiles, **changes)
        found.append([slide.grade for slide in grading._grade_validation(run, items)])
    assert found[0] == found[1]
    assert found[0][0].abstain_below is None
