"""Which segmentation guides a slide's tiles."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from panda.app.guidance import Guidance, TileSettings
from panda.errors import ConfigError
from panda.inference.compute import EngineSettings
from panda.tasks.metadata import TileSelection, TrainedResolution
from tests.checkpoints import segmentation_checkpoint

TILES = TileSettings(level=1)


def make_fold(train: str, val: str) -> Any:
    resolution = TrainedResolution(level=1, mpp=None, train_mpp=None)
    slides = {"train_slides": tuple(train), "val_slides": tuple(val)}
    return SimpleNamespace(metadata=SimpleNamespace(**slides, resolution=resolution))


FOLDS = [make_fold("cd", "b"), make_fold("da", "c"), make_fold("ab", "d"), make_fold("bc", "a")]


def slides(names: str, **groups: str) -> Any:
    return [SimpleNamespace(slide_id=name, group=groups.get(name, name)) for name in names]


def test_guidance_cross_fit_takes_model_that_never_saw_slide(tmp_path: Path) -> None:
    guidance = Guidance(FOLDS, cross_fit=True, folder=tmp_path)
    assert [guidance.find_segmenter(slide) for slide in "abcd"] == FOLDS
    assert guidance.find_segmenter("new") is FOLDS[0]
    guidance.check(slides("abcdn"))
    (note,) = guidance.list_notes({}, TILES)
    assert "was not trained or validated on any slide of its group" in note
    assert guidance.threshold is None
    few = Guidance(FOLDS[:2], cross_fit=True, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"2 of 4 slides are new to none of the 2 segmentations \(c, d\)"):
        few.check(slides("abcd"))


def test_guidance_cross_fit_counts_seen_groups(tmp_path: Path) -> None:
    """Slides of one patient are alike: one that saw another of them is not new to it."""
    for mate, new_to in (("a", FOLDS[0]), ("c", FOLDS[2])):
        guidance = Guidance(FOLDS, cross_fit=True, folder=tmp_path)
        guidance.check(slides("abcdn", n=mate))
        assert guidance.find_segmenter("n") is guidance.find_segmenter(mate) is new_to
    with pytest.raises(ConfigError, match=r"4 of 5 slides.*slides of their groups.*data\.groups"):
        Guidance(FOLDS, cross_fit=True, folder=tmp_path).check(slides("abcdn", a="p", b="p", c="q", d="q"))
    items: Any = {"test": [SimpleNamespace(record=record) for record in slides("en", n="e")]}
    (note,) = Guidance([make_fold("e", "")], cross_fit=False, folder=tmp_path).list_notes(items, TILES)
    assert "was trained on 2 test slides or others of their groups" in note


def test_guidance_one_segmentation_notes_seen_slides(tmp_path: Path) -> None:
    guidance = Guidance(FOLDS[:1], cross_fit=False, folder=tmp_path)
    assert all(guidance.find_segmenter(slide) is FOLDS[0] for slide in "abcd")
    items: Any = {"train": [SimpleNamespace(record=record) for record in slides("ac")]}
    (note,) = guidance.list_notes(items, TILES)
    assert "trained on 1 of the 2 training slides" in note
    assert "tiles.cross_fit=true" in note


def test_guidance_fold_checkpoints_are_glob_of_one_resolution(tmp_path: Path) -> None:
    engine = EngineSettings(device="cpu")
    for name in "01":
        (tmp_path / name).mkdir()
        segmentation_checkpoint(tmp_path / name / "best.ckpt", train_slides=[name])
    found = Guidance.load(str(tmp_path / "*" / "best.ckpt"), True, engine, tmp_path)
    guides = [found.find_segmenter(name) for name in "01"]
    assert [guide and guide.metadata.train_slides for guide in guides] == [("1",), ("0",)]
    with pytest.raises(ConfigError, match=r"checkpoints of several folds, and there are 1.*data.fold=0,1,2,3,4"):
        Guidance.load(str(tmp_path / "0" / "best.ckpt"), True, engine, tmp_path)
    segmentation_checkpoint(tmp_path / "1" / "best.ckpt", resolution={"level": None, "mpp": 1.0, "train_mpp": None})
    with pytest.raises(ConfigError, match="several resolutions"):
        Guidance.load(str(tmp_path / "*" / "best.ckpt"), True, engine, tmp_path)


def test_guidance_two_checkpoints_of_one_run_raise(tmp_path: Path) -> None:
    engine = EngineSettings(device="cpu")
    for name in ("0/best.ckpt", "0/last.ckpt", "1/best.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        segmentation_checkpoint(tmp_path / name, train_slides=[name[0]], val_slides=["v"])
    with pytest.raises(ConfigError) as caught:
        Guidance.load(str(tmp_path / "*" / "*.ckpt"), True, engine, tmp_path)
    (fault,) = caught.value.faults
    assert fault.startswith(f"segmentation_checkpoint={tmp_path}/*/*.ckpt: ")
    assert f"{tmp_path}/0/best.ckpt and {tmp_path}/0/last.ckpt were trained on the same slides" in fault
    assert "checkpoints/best.ckpt'" in fault


def test_tile_settings_cross_fit_without_guided_tiles_raises() -> None:
    with pytest.raises(ConfigError, match=r"tiles\.cross_fit=true is not used with tiles=tissue: remove it"):
        TileSettings(how="tissue", cross_fit=True)


def test_tile_settings_all_ignores_k() -> None:
    tissue = TileSelection(how="tissue", k=4096, random_fraction=1.0, min_tissue=0.25, seed=0)
    assert TileSettings(how="all", k=16).selection == tissue
    assert TileSettings(how="tissue", k=16).selection == tissue.model_copy(update={"k": 16})
    guided = {"how": "guided", "k": 16, "random_fraction": 0.25}
    assert TileSettings(k=16).selection == tissue.model_copy(update=guided)


def test_guidance_notes_maps_of_other_resolution(tmp_path: Path) -> None:
    one = Guidance(FOLDS[:1], cross_fit=False, folder=tmp_path)
    assert one.list_notes({}, TILES) == []
    (note,) = one.list_notes({}, TileSettings(level=0))
    assert "maps slides at level 1, tiles are read at level 0: its maps are resampled" in note
    note, _ = Guidance(FOLDS, cross_fit=True, folder=tmp_path).list_notes({}, TileSettings(level=None, mpp=0.5))
    assert "tiles are read at 0.5 µm/px" in note


def test_guidance_several_checkpoints_without_cross_fit_raise(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        segmentation_checkpoint(tmp_path / name / "best.ckpt")
    given = str(tmp_path / "*" / "best.ckpt")
    with pytest.raises(ConfigError, match=r"\*/best\.ckpt matches 2 files: give one of them, or tiles\.cross_fit=true"):
        Guidance.load(given, False, EngineSettings(device="cpu"), tmp_path)
