"""Targets of several classes in patch stores, patch sets and augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from panda.data.augment import Augmentation
from panda.data.extraction import extract_store
from panda.data.image_batch import RawPatch, convert_patches, stack_patches
from panda.data.manifest import SlideRecord
from panda.data.patch_manifests import write_patch_manifests
from panda.data.patches import load_slide
from panda.data.patchset import PatchSet
from panda.data.pixel_stores import list_greys
from panda.data.settings import PatchSettings, StoreKind
from panda.data.store import StoreResult, locate_store, read_store
from panda.wsi import label_maps
from panda.wsi.classes import ANY_CANCER, BINARY, IGNORED, ClassSet, find_classes
from panda.wsi.label_maps import LabelMap, get_label_maps
from tests.panda_folder import make_folder, picture, slide_name
from tests.pyramids import write_pyramid

GLEASON = find_classes("gleason")
KINDS = get_args(StoreKind)
SETTINGS = PatchSettings(level=1, patch_size=64, classes=GLEASON, ignore_background=True)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[SlideRecord]:
    """Two slides; the first has patterns 3, 4 and 5, and the second cancer of an unknown pattern."""
    root = tmp_path_factory.mktemp("data") / "small"
    records = make_folder(root, 2)
    assert records[0].mask_path is not None
    codes = np.zeros(picture(0).shape[:2], np.uint8)
    codes[64:448, 64:704] = 2
    for number, code in enumerate((3, 4, 5)):
        codes[128:320, 128 + 128 * number : 256 + 128 * number] = code
    write_pyramid(records[0].mask_path, codes, (1, 2, 4), mpp=2.0)
    return records


def _cut(records: list[SlideRecord], settings: PatchSettings, root: Path) -> StoreResult:
    return extract_store(records, settings, root, "small", progress=False)


def _open(result: StoreResult) -> PatchSet:
    return PatchSet(write_patch_manifests(result, {slide_name(0): "train", slide_name(1): "train"})["train"])


def test_stores_of_all_kinds_give_same_classes(records: list[SlideRecord], tmp_path: Path) -> None:
    sets = [_open(_cut(records, SETTINGS.model_copy(update={"store": kind}), tmp_path)) for kind in KINDS]
    values = set()
    for number in range(len(sets[0])):
        masks = [patches[number][1] for patches in sets]
        assert torch.equal(masks[0], masks[1])
        assert torch.equal(masks[0], masks[2])
        values |= set(masks[0].flatten().tolist())
    assert values == {-2.0, -1.0, 0.0, 1.0, 2.0, 3.0}


def test_store_of_classes_merges_to_binary_store(records: list[SlideRecord], tmp_path: Path) -> None:
    classes = _open(_cut(records, SETTINGS, tmp_path))
    binary = _open(_cut(records, SETTINGS.model_copy(update={"classes": BINARY}), tmp_path))
    assert np.array_equal(classes.rows.fractions, binary.rows.fractions)
    for number in range(len(binary)):
        mask = classes[number][1]
        assert torch.equal(torch.where((mask > 0) | (mask == -2), 1.0, mask), binary[number][1])


def test_store_lists_share_of_each_class(records: list[SlideRecord], tmp_path: Path) -> None:
    result = _cut(records, SETTINGS, tmp_path)
    patches = _open(result)
    for number, row in enumerate(patches.rows):
        mask = patches[number][1]
        shares = [float((mask == k).float().mean()) for k in (1, 2, 3)]
        assert patches.rows.class_fractions[number] == pytest.approx(shares, abs=1e-6)
        assert row.tumor_fraction == pytest.approx(sum(shares) + float((mask == -2).float().mean()), abs=1e-6)
    labelled, coarse = (result.slides[slide_name(number)] for number in (0, 1))
    assert (labelled.class_fractions.sum(0) * 64 * 64).tolist() == [96 * 64] * 3
    assert not coarse.class_fractions.any()
    assert coarse.tumor_fraction.any()


def test_store_of_other_classes_is_another(records: list[SlideRecord], tmp_path: Path) -> None:
    merged = ClassSet(names=("benign", "G3", "high"), patterns={"G3": (3,), "high": (4, 5)})
    settings = [SETTINGS.model_copy(update={"classes": classes}) for classes in (GLEASON, BINARY, merged)]
    assert len({locate_store(tmp_path, "small", part) for part in settings}) == 3
    result = _cut(records, settings[2], tmp_path)
    assert read_store(result.store) == settings[2]
    assert (result.slides[slide_name(0)].class_fractions.sum(0) * 64 * 64).tolist() == [96 * 64, 2 * 96 * 64]


def test_store_changed_pattern_of_code_cuts_again(
    records: list[SlideRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _cut(records[:1], SETTINGS, tmp_path).store
    binary = _cut(records[:1], SETTINGS.model_copy(update={"classes": BINARY}), tmp_path).store
    maps = dict(get_label_maps())
    radboud = maps["radboud"].model_dump() | {"patterns": {3: 4, 4: 3, 5: 5}}
    changed = maps | {"radboud": LabelMap.model_validate(radboud)}
    assert load_slide(records[0], SETTINGS, store) is not None
    monkeypatch.setattr(label_maps, "get_label_maps", lambda: changed)
    assert load_slide(records[0], SETTINGS, store) is None
    assert load_slide(records[0], SETTINGS.model_copy(update={"classes": BINARY}), binary) is not None


@pytest.mark.parametrize("count", range(2, 7))
def test_list_greys_are_distinct(count: int) -> None:
    names = tuple(f"c{number}" for number in range(count))
    greys = list_greys(ClassSet(names=names, patterns={name: (n + 1,) for n, name in enumerate(names[1:])}))
    assert len(set(greys.values())) == len(greys)
    assert (greys[0], greys[count - 1], greys[IGNORED]) == (0, 255, 128)


def test_convert_patches_targets_are_signed_numbers() -> None:
    target = np.array([[0, 1, 3, IGNORED, ANY_CANCER]], np.uint8)
    images, masks = convert_patches(stack_patches([RawPatch(np.zeros((1, 5, 3), np.uint8), target, ())]))
    assert masks.dtype == torch.float32
    assert masks.shape == (1, 1, 1, 5)
    assert masks.flatten().tolist() == [0, 1, 3, -1, -2]
    assert images.shape == (1, 3, 1, 5)


def test_augmentation_keeps_targets_of_classes() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)
    values = np.array([0, 1, 2, 3, ANY_CANCER, IGNORED], np.uint8)
    mask = values[rng.integers(0, 6, (6, 6))].repeat(8, 0).repeat(8, 1)
    for seed in range(20):
        turned = Augmentation(name="strong")(image, mask, seed).mask
        assert set(np.unique(turned)) <= set(values)
