"""Cutting patches into a store."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from panda.data import extraction
from panda.data.extraction import extract_slide, extract_store
from panda.data.manifest import read_manifest
from panda.data.patches import load_slide
from panda.data.settings import PatchSettings, StoreKind
from panda.data.slide_entry import SlideEntry
from panda.data.store import StoreResult, load_store, locate_store
from panda.errors import ConfigError, ManifestError, MaskError, PandaError, SlideError
from panda.files import partial_path
from panda.wsi.label_maps import get_label_maps
from tests.panda_folder import CANCER, TISSUE, codes, entry_files, find_kept_slides, make_folder, picture
from tests.pyramids import write_pyramid

SETTINGS = PatchSettings(level=1, patch_size=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "small"
    make_folder(root, 4)
    return root


def extract(folder: Path, store_root: Path, settings: PatchSettings = SETTINGS, workers: int = 2) -> StoreResult:
    return extract_store(read_manifest(folder), settings, store_root, folder, workers=workers, progress=False)


def test_extract_slide_patches_equal_slide_pixels(folder: Path, tmp_path: Path) -> None:
    record = read_manifest(folder)[0]
    assert not (tmp_path / record.slide_id).exists()
    found = extract_slide(record, SETTINGS.model_copy(update={"level": 0, "min_tissue": 0.0}), tmp_path)
    image, tumor = picture(0), codes("radboud", True) == 4
    assert SlideEntry.read(found.folder).resolution.downsample == 1
    seen = np.zeros(tumor.shape, bool)
    for x, y in found.xy.tolist():
        name = f"{record.slide_id}_x{x}_y{y}.png"
        got = cv2.imread(str(tmp_path / record.slide_id / "img" / name), cv2.IMREAD_COLOR_RGB)
        mask = cv2.imread(str(tmp_path / record.slide_id / "msk" / name), cv2.IMREAD_UNCHANGED)
        assert got is not None
        assert mask is not None
        np.testing.assert_array_equal(got, image[y : y + 64, x : x + 64])
        np.testing.assert_array_equal(mask, tumor[y : y + 64, x : x + 64].astype(np.uint8) * 255)
        seen[y : y + 64, x : x + 64] = True
    assert seen[TISSUE].all()
    assert found.tumor_fraction.sum() * 64 * 64 == tumor.sum()


def test_extract_slide_json_describes_patches(folder: Path, tmp_path: Path) -> None:
    record = read_manifest(folder)[1]
    found = extract_slide(record, SETTINGS, tmp_path)
    stored = json.loads((tmp_path / record.slide_id / "slide.json").read_text())
    assert (stored["provider"], stored["isup_grade"]) == ("karolinska", 4)
    assert stored["resolution"]["downsample"] == 2
    assert stored["resolution"]["mpp"] == pytest.approx([4.0, 4.0])
    assert stored["slide"]["bytes"] == record.image_path.stat().st_size
    assert stored["tissue"]["how"] == "strict"
    assert len(stored["patches"]) == len(found) == len(list((tmp_path / record.slide_id / "img").iterdir()))
    height, width = (part.stop - part.start for part in CANCER)
    assert found.tumor_fraction.sum() * 64 * 64 * 4 == pytest.approx(height * width, rel=1e-3)
    assert (found.tissue_fraction >= SETTINGS.min_tissue).all()
    again = load_slide(record, SETTINGS, tmp_path)
    assert again is not None
    np.testing.assert_array_equal(again.xy, found.xy)
    np.testing.assert_array_equal(again.tumor_fraction, found.tumor_fraction)


def test_extract_slide_by_mpp_and_past_edge(folder: Path, tmp_path: Path) -> None:
    record = read_manifest(folder)[0]
    settings = PatchSettings(level=None, mpp=6.0, patch_size=100, min_tissue=0.0)
    found = extract_slide(record, settings, tmp_path)
    assert SlideEntry.read(found.folder).resolution.downsample == pytest.approx(3.0)
    assert found.xy.tolist() == [[x, y] for y in (0, 300) for x in (0, 300, 600)]
    corner = cv2.imread(str(next((tmp_path / record.slide_id / "img").glob("*_x600_y300.png"))))
    assert corner is not None
    assert corner.shape == (100, 100, 3)
    assert (corner[:, 60:] == 255).all()
    shifted = extract_slide(record, settings.model_copy(update={"edge": "shift"}), tmp_path / "shift")
    assert shifted.xy.max(axis=0).tolist() == [468, 213]


def test_locate_store_follows_settings_and_folder(tmp_path: Path) -> None:
    first = locate_store("patches", tmp_path / "a", SETTINGS)
    assert first.parent == Path("patches")
    assert first.name[:2] == "a-"
    assert len(first.name) == 14
    assert first == locate_store("patches", tmp_path / "a", SETTINGS.model_copy())
    changed: list[dict[str, Any]] = [
        {"patch_size": 32},
        {"level": 0},
        {"stride": 32},
        {"min_tissue": 0.2},
        {"edge": "shift"},
        {"mpp_override": 0.5},
        {"reader": "openslide"},
    ]
    stores = {locate_store("patches", tmp_path / "a", SETTINGS.model_copy(update=change)) for change in changed}
    assert len(stores | {first}) == len(changed) + 1


def test_extract_store_rerun_cuts_changed_slides_only(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "small"
    shutil.copytree(folder, copy)
    first = extract(copy, tmp_path)
    assert first.failures == []
    assert [*first.slides] == [record.slide_id for record in read_manifest(copy)]
    before = entry_files(first.store)
    changed = read_manifest(copy)[2]
    os.utime(changed.image_path, ns=(1, 1))
    for name in (changed.slide_id, "half"):
        partial_path(first.store / name).mkdir()
    second = extract(copy, tmp_path)
    assert find_kept_slides(second.store, before) == {*second.slides} - {changed.slide_id}
    assert len(second.slides) == 4
    assert not list(first.store.glob(".*.partial.*"))
    shutil.rmtree(first.store / changed.slide_id)
    read = load_store(read_manifest(copy), SETTINGS, tmp_path, copy)
    assert len(read.slides) == 3
    assert [(failure.slide_id, failure.stage) for failure in read.failures] == [(changed.slide_id, "store")]


def test_extract_store_bad_slides_do_not_end_run(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "small"
    shutil.copytree(folder, copy)
    first, second, third, fourth = read_manifest(copy)
    assert first.mask_path is not None
    assert second.mask_path is not None
    first.mask_path.unlink()
    write_pyramid(second.mask_path, codes("radboud", True), (1, 2, 4))  # 4 is no Karolinska code
    third.image_path.write_bytes(b"not a slide")
    result = extract(copy, tmp_path)
    assert [*result.slides] == [fourth.slide_id]
    assert [(failure.slide_id, failure.stage, failure.error) for failure in result.failures] == [
        (first.slide_id, "mask", "MaskError"),
        (second.slide_id, "read", "MaskError"),
        (third.slide_id, "slide", "SlideError"),
    ]
    assert f"put the mask at {first.mask_path}, or leave such slides out" in result.failures[0].message
    assert not list(result.store.glob(".*.partial.*"))
    assert not (result.store / second.slide_id).exists()


def test_extract_slide_errors_name_remedy(folder: Path, tmp_path: Path) -> None:
    record = read_manifest(folder)[0]
    with pytest.raises(SlideError, match=r"lower data\.min_tissue"):
        extract_slide(record, SETTINGS.model_copy(update={"patch_size": 512, "min_tissue": 1.0}), tmp_path)
    with pytest.raises(SlideError, match=r"data\.level"):
        extract_slide(record, SETTINGS.model_copy(update={"level": 7}), tmp_path)
    with pytest.raises(MaskError, match="missing_mask"):
        extract_slide(dataclasses.replace(record, mask_path=None), SETTINGS, tmp_path)
    assert not (tmp_path / record.slide_id).exists()


@pytest.mark.parametrize("kind", ["png", "packed"])
def test_extract_store_full_disk_ends_run_and_keeps_finished(
    folder: Path, small_disk: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: StoreKind
) -> None:
    disk = small_disk("600k")
    settings = SETTINGS.model_copy(update={"store": kind})
    monkeypatch.setattr(extraction, "require_room", lambda *_: None)  # as if the estimate were wrong
    with pytest.raises(PandaError, match=r"small-.*No space left.*data\.store_root.*run again") as caught:
        extract(folder, disk, settings, workers=1)
    assert str(locate_store(disk, folder, settings)) in str(caught.value)
    assert not list(disk.glob("*/.*.partial.*"))
    finished = {path.parent.name for path in disk.glob("*/*/slide.json")}
    assert 0 < len(finished) < 4
    shutil.copytree(disk, tmp_path / "larger")
    before = entry_files(locate_store(tmp_path / "larger", folder, settings))
    result = extract(folder, tmp_path / "larger", settings)
    assert find_kept_slides(result.store, before) == finished
    assert not result.failures


def test_extract_store_unwritable_store_raises(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PandaError, match=r"cannot be written .*data\.store_root"):
        extract(folder, tmp_path / "file")


def test_extract_store_store_of_other_settings_raises(folder: Path, tmp_path: Path) -> None:
    store = locate_store(tmp_path, folder, SETTINGS)
    store.mkdir()
    (store / "store.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"store\.json does not describe .*remove the folder"):
        extract(folder, tmp_path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"level": None}, "give exactly one, not neither"),
        ({"mpp": 1.0}, "give exactly one, not both"),
        ({"level": -1}, "data.level=-1 must be at least 0 or null"),
        ({"level": None, "mpp": 0.0}, "data.mpp=0.0 must be from 0.05 to 20.0 or null"),
        ({"level": None, "mpp": 25.0}, "data.mpp=25.0 must be from 0.05 to 20.0 or null: µm per px"),
        ({"patch_size": 0}, "data.patch_size=0 must be from 1 to 8192"),
        ({"stride": 65}, "data.stride=65 must be at most data.patch_size=64"),
        ({"stride": 0}, "data.stride=0 must be at least 1 or null"),
        ({"edge": "mirror"}, "data.edge=mirror must be pad or shift"),
        ({"min_tissue": 1.5}, "data.min_tissue=1.5 must be from 0 to 1"),
        ({"reader": "magic"}, "data.reader=magic must be"),
        ({"mpp_override": 0.0}, "data.mpp_override=0.0 must be from 0.05 to 20.0 or null: µm"),
    ],
)
def test_patch_settings_invalid_values_raise(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        PatchSettings(**{**SETTINGS.model_dump(), **change})
    (found,) = refused.value.faults
    assert fault in found


def test_extract_store_changed_label_map_reuses_no_patches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record, *_) = read_manifest(folder)
    extract_store([record], SETTINGS, tmp_path, folder, progress=False)
    known = get_label_maps()
    for change, failures in (({"names": {**known["radboud"].names, 4: "another name"}}, 0), ({"cancer": (3,)}, 1)):
        changed = {**known, "radboud": known["radboud"].model_copy(update=change)}
        monkeypatch.setattr("panda.wsi.label_maps.get_label_maps", lambda changed=changed: changed)
        assert len(load_store([record], SETTINGS, tmp_path, folder).failures) == failures
