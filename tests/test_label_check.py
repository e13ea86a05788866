"""Slides whose masks lack the cancer of their grade: refused in training, named with the likely label, never benign."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from panda.data.datamodule import DataSettings, PatchDataModule
from panda.data.label_check import describe_contradiction, require_cancer
from panda.data.manifest import SlideRecord
from panda.data.splits import Split
from panda.errors import ConfigError, ManifestError
from panda.inference.dataset_metrics import summarize
from panda.inference.slide_score import SlideScore, collect_histograms
from panda.tasks.bins import BINS
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.classes import ClassSet, find_classes
from panda.wsi.label_codes import describe_label
from tests.panda_folder import codes, make_folder
from tests.pyramids import write_pyramid


def test_require_cancer_names_classes_no_training_slide_has(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 8)  # pattern 4, and cancer without a pattern
    module = PatchDataModule(
        DataSettings(root=tmp_path / "data", store_root=tmp_path, patch_size=64, level=1, num_workers=0),
        find_classes("gleason"),
    )
    module.prepare_data()
    patches, records = module.get_patches("train"), module.list_splits()["train"]
    with pytest.raises(ManifestError, match=r"no training patch has a pixel of G3, G5 \(Gleason pattern 3, 5\), so it"):
        require_cancer("train", patches, records)
    assert require_cancer("val", patches, records)[0].startswith("No validation patch has a pixel of G3, G5")
    merged = ClassSet(names=("benign", "cancer"), patterns={"cancer": (3, 4, 5)})
    module = PatchDataModule(module.settings, merged)
    module.prepare_data()
    assert not require_cancer("train", module.get_patches("train"), records)


def test_prepare_data_pattern_without_class_is_refused_at_once(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 8)
    classes = ClassSet(names=("benign", "G3", "G4"), patterns={"G3": (3,), "G4": (4,)})
    settings = DataSettings(root=tmp_path / "data", store_root=tmp_path / "stores", patch_size=64, level=1)
    with pytest.raises(ConfigError, match="label map radboud: code 5 is Gleason pattern 5, which none of the classes"):
        PatchDataModule(settings, classes).prepare_data()
    assert not (tmp_path / "stores").exists()


def in_channel(labels: NDArray[np.uint8], channel: int) -> NDArray[np.uint8]:
    """Return a mask whose label is in one channel only, (h, w, 3)."""
    mask = np.zeros((*labels.shape, 3), np.uint8)
    mask[..., channel] = labels
    return mask


@pytest.mark.parametrize(
    ("mask", "provider", "said"),
    [
        (in_channel(codes("radboud", True), 1), "radboud", "its green channel has 0, 1, 4 and looks like the label"),
        (in_channel(codes("karolinska", True), 2), "karolinska", "its blue channel has 0, 1, 2 and looks like"),
        (codes("karolinska", True), "radboud", "karolinska (cancer is 2): correct data_provider"),
        ((codes("radboud", True) == 4).astype(np.uint8), "radboud", "codes fit data_provider binary (cancer is 1)"),
        (codes("radboud", True), "radboud", "labels cancer, but none in a patch: lower data.min_tissue"),
        (np.zeros((512, 768), np.uint8), "radboud", "codes 0 in its red channel, cancer of radboud is 3, 4, 5"),
    ],
)
def test_describe_label_names_channel_or_provider(
    tmp_path: Path, mask: NDArray[np.uint8], provider: str, said: str
) -> None:
    path = write_pyramid(tmp_path / "a_mask.tiff", mask, (1, 2, 4))
    assert said in describe_label(path, provider)


def test_describe_label_unreadable_mask_says_so(tmp_path: Path) -> None:
    (tmp_path / "a_mask.tiff").write_bytes(b"no mask")
    assert "cannot be read" in describe_label(tmp_path / "a_mask.tiff", "radboud")
    assert describe_label(None, "radboud") == "it has no mask"


def prepare(root: Path) -> PatchDataModule:
    settings = DataSettings(
        root=root, store_root=root / "store", patch_size=64, level=0, num_workers=0, val_fraction=0.5, test_fraction=0.0
    )
    data = PatchDataModule(settings)
    data.prepare_data()
    data.setup()
    return data


def test_require_cancer_label_in_other_channel_is_refused(tmp_path: Path) -> None:
    for record in make_folder(tmp_path, 8):
        assert record.mask_path is not None
        labels = codes(record.provider, bool(record.isup_grade))
        write_pyramid(record.mask_path, in_channel(labels, 1), (1, 2, 4), mpp=2.0)
    data = prepare(tmp_path)
    train = data.list_splits()["train"]
    with pytest.raises(ManifestError, match=r"(?s)although 2 of 4 training slides .*green channel.*looks like"):
        require_cancer("train", data.get_patches("train"), train)
    graded = [record.slide_id for record in train if record.isup_grade]
    assert data.list_contradictions("train") == graded
    assert repr(graded[0]) in describe_contradiction("training", graded, len(train))
    benign = [replace(record, isup_grade=0) for record in train]
    with pytest.raises(ManifestError, match="no training slide has a grade of 1 or more, so there is nothing to learn"):
        require_cancer("train", data.get_patches("train"), benign)
    (note,) = require_cancer("val", data.get_patches("val"), benign)
    assert note.startswith("No validation patch has a cancer pixel")
    with pytest.raises(ManifestError, match=r"although \d of 4 validation slides have a grade"):
        require_cancer("val", data.get_patches("val"), data.list_splits()["val"])


def test_require_cancer_sound_masks_pass(tmp_path: Path) -> None:
    make_folder(tmp_path, 8)
    data = prepare(tmp_path)
    require_cancer("train", data.get_patches("train"), data.list_splits()["train"])
    assert data.list_contradictions("train") == data.list_contradictions("val") == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_datamodule_graded_slide_without_cancer_gives_no_patch(tmp_path: Path, split: Split) -> None:
    records = make_folder(tmp_path, 16)
    before = prepare(tmp_path)
    empty = next(record for record in before.list_splits()[split] if record.isup_grade)
    assert empty.mask_path is not None
    write_pyramid(empty.mask_path, codes(empty.provider, False), (1, 2, 4), mpp=2.0)
    data = prepare(tmp_path)
    assert data.list_contradictions(split) == [empty.slide_id]
    other: Split = "val" if split == "train" else "train"
    expected = [name for name in before.get_patches(split).slide_ids if name != empty.slide_id]
    assert data.get_patches(split).slide_ids == expected
    assert data.get_patches(other).slide_ids == before.get_patches(other).slide_ids
    assert data.summarize().slides == {split: len(expected), other: len(records) // 2}


def score(slide_id: str, grade: int | None, cancer: bool, outside: int = 0) -> SlideScore:
    histogram = np.zeros((2, BINS), np.int64)
    histogram[1, [100, 900]] = 1000, 50
    if cancer:
        histogram[0, [200, 800]] = 20, 80
    path = Path(f"{slide_id}.tiff")
    return SlideScore(SlideRecord(slide_id, "radboud", grade, "", path, path, slide_id), histogram, 1.0, outside)


def test_summarize_graded_slide_without_cancer_is_never_benign() -> None:
    sound = [score("a", 3, True), score("b", 0, False), score("c", None, False)]
    false = score("d", 5, False)
    choice = ThresholdChoice.from_user(0.5)
    found, without = summarize([*sound, false], choice, 0), summarize(sound, choice, 0)
    assert (found.contradicting_slides, without.contradicting_slides) == (1, 0)
    assert found.benign_slides == 2
    assert "5" not in found.by_grade
    assert found.model_copy(update={"contradicting_slides": 0}) == without
    assert set(collect_histograms([*sound, false])) == {"a", "b", "c"}
    metrics = false.compute_metrics(0.5)
    assert (metrics.fp_mm2, metrics.fp_px, metrics.true_tumor_mm2, metrics.dice) == (None, None, None, None)
    assert score("e", 5, False, outside=1).contradicts_grade is False


def test_summarize_only_contradicting_slides_has_no_figures() -> None:
    found = summarize([score("d", 5, False)], ThresholdChoice.from_user(0.5), 0)
    assert (found.slides, found.contradicting_slides, found.dice, found.fp_mm2_benign_slides) == (0, 1, None, None)
