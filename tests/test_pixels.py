"""The three kinds of store: the same samples, each with its own ways to break."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from panda.data import disk, pixel_stores
from panda.data.augment import Augmentation
from panda.data.disk import estimate_disk
from panda.data.extraction import extract_store
from panda.data.loaders import make_train_loader
from panda.data.manifest import SlideRecord, read_manifest
from panda.data.patch_manifests import write_patch_manifests
from panda.data.patchset import PatchSet
from panda.data.settings import PatchSettings, StoreKind
from panda.data.slide_entry import SlideEntry
from panda.data.splits import Split
from panda.data.store import StoreResult, list_stores, main
from panda.errors import ManifestError, PandaError
from panda.wsi.geometry import Resolution
from panda.wsi.slide import Slide
from tests.panda_folder import TISSUE, entry_files, find_kept_slides, make_folder, slide_name

KINDS = get_args(StoreKind)
SPLIT: dict[str, Split] = {slide_name(0): "train", slide_name(1): "val", slide_name(2): "test", slide_name(3): "train"}
SETTINGS = {
    "level": PatchSettings(level=1, patch_size=64, stride=48, edge="shift"),
    "resampled": PatchSettings(level=None, mpp=3.1, patch_size=64, min_tissue=0.3),
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[SlideRecord]:
    return make_folder(tmp_path_factory.mktemp("data") / "small", 4)


def _cut(records: list[SlideRecord], settings: PatchSettings, root: Path) -> StoreResult:
    return extract_store(records, settings, root, "small", progress=False)


def _train_set(result: StoreResult) -> PatchSet:
    return PatchSet(write_patch_manifests(result, SPLIT)["train"])


def test_pixel_stores_every_kind_has_class() -> None:
    assert tuple(pixel_stores.STORES) == KINDS


@pytest.mark.parametrize("how", SETTINGS)
def test_pixel_stores_all_kinds_give_same_samples(records: list[SlideRecord], tmp_path: Path, how: str) -> None:
    sets = {
        kind: _train_set(_cut(records, SETTINGS[how].model_copy(update={"store": kind}), tmp_path)) for kind in KINDS
    }
    count = len(sets["png"])
    assert count == len(sets["packed"]) == len(sets["slide"]) > 10
    for number in range(count):
        image, mask = sets["png"][number]
        for kind in ("packed", "slide"):
            other_image, other_mask = sets[kind][number]
            assert torch.equal(image, other_image)
            assert torch.equal(mask, other_mask)
    rows = [[(row.slide_id, row.x, row.y, row.tumor_fraction) for row in patches.rows] for patches in sets.values()]
    assert rows[0] == rows[1] == rows[2]
    assert any(fraction for *_, fraction in rows[0])


@pytest.mark.parametrize("kind", KINDS)
def test_pixel_stores_background_and_outside_can_be_ignored(
    records: list[SlideRecord], tmp_path: Path, kind: StoreKind
) -> None:
    plain = PatchSettings(level=1, patch_size=100, min_tissue=0.1, store=kind)
    ignoring = plain.model_copy(update={"ignore_background": True})
    before, after = (_train_set(_cut(records, settings, tmp_path)) for settings in (plain, ignoring))
    assert len(before) == len(after)
    for number, row in enumerate(before.rows):
        (image, mask), (same, target) = before[number], after[number]
        assert torch.equal(image, same)
        assert row.tumor_fraction == after.rows[number].tumor_fraction
        tissue = torch.zeros(1, 100, 100, dtype=torch.bool)
        y, x = (np.arange(100) + start // 2 for start in (row.y, row.x))
        inside = [(at >= part.start // 2) & (at < part.stop // 2) for at, part in zip((y, x), TISSUE, strict=True)]
        tissue[0] = torch.from_numpy(np.outer(*inside))
        assert torch.equal(target, torch.where(tissue, mask, -1.0))
    turned = PatchSet(after.rows.path, Augmentation(name="light"))[0][1]
    assert set(turned.flatten().tolist()) == set(after[0][1].flatten().tolist())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_pixel_stores_loaders_read_every_kind(
    records: list[SlideRecord], tmp_path: Path, kind: StoreKind, workers: int
) -> None:
    patches = _train_set(_cut(records, SETTINGS["level"].model_copy(update={"store": kind}), tmp_path))
    patches[0]  # handles that the parent has open must not harm the workers
    turned = PatchSet(patches.rows.path, Augmentation(name="light"))
    torch.manual_seed(1)
    batches = torch.cat([image for image, _ in make_train_loader(turned, len(turned), 8, workers)])
    assert len(batches) == len(turned)
    torch.manual_seed(1)
    again = torch.cat([image for image, _ in make_train_loader(turned, len(turned), 8, 0)])
    assert torch.equal(batches, again)
    copy = pickle.loads(pickle.dumps(patches))
    assert torch.equal(copy[3][0], patches[3][0])


def test_pixel_stores_files_of_each_kind(records: list[SlideRecord], tmp_path: Path) -> None:
    left = {}
    for kind in KINDS:
        result = _cut(records, SETTINGS["level"].model_copy(update={"store": kind}), tmp_path)
        left[kind] = {path.name for path in (result.store / slide_name(0)).rglob("*") if path.is_file()}
        count = len(result.slides[slide_name(0)])
        if kind == "png":
            assert len(left[kind]) == count + 1, "image and mask have one name"
        if kind == "packed":
            packed = np.load(result.store / slide_name(0) / "img.npy", mmap_mode="r")
            assert packed.shape == (count, 64, 64, 3)
    assert left["packed"] == {"img.npy", "msk.npy", "slide.json"}
    assert left["slide"] == {"slide.json"}


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 64), (1, 300, 3), (33, 17, 3)])
def test_encode_png_is_readable_by_pillow_and_imagecodecs(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    data = pixel_stores.encode_png(image)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == ("RGB" if len(shape) == 3 else "L")
        assert np.array_equal(np.asarray(opened), image)
        Image.open(io.BytesIO(data)).verify()  # the checksums
    assert np.array_equal(imagecodecs.png_decode(data), image)


def test_slide_store_keeps_few_slides_open(
    records: list[SlideRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_stores, "OPEN_SLIDES", 1)
    patches = _train_set(_cut(records, SETTINGS["level"].model_copy(update={"store": "slide"}), tmp_path))
    reader = patches.pixels
    assert isinstance(reader, pixel_stores.SlideStore)
    first, last = patches[0][0], patches[len(patches) - 1][0]
    assert torch.equal(patches[0][0], first)
    assert torch.equal(patches[len(patches) - 1][0], last)
    assert reader._open.cache_info().currsize == 1
    assert reader._open.cache_info().misses == 4


def test_packed_store_broken_file_is_named(records: list[SlideRecord], tmp_path: Path) -> None:
    result = _cut(records, SETTINGS["level"].model_copy(update={"store": "packed"}), tmp_path)
    manifest = write_patch_manifests(result, SPLIT)["train"]
    path = result.store / slide_name(0) / "img.npy"
    whole = path.read_bytes()
    for content, fault in [
        (whole[: len(whole) // 2], "cannot be read"),
        (b"", "cannot be read"),
        (b"no array", "cannot be read"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ManifestError, match=rf"img\.npy {fault}.*remove the folder {path.parent},"):
            PatchSet(manifest)[0]
    np.save(path, np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ManifestError, match="holds 1 patches, number 1 is asked for"):
        PatchSet(manifest)[1]
    np.save(path, np.zeros((9, 32, 32, 3), np.uint8))
    with pytest.raises(ManifestError, match=r"holds uint8 \(9, 32, 32, 3\), not patches of 64 px"):
        PatchSet(manifest)[0]
    path.unlink()
    with pytest.raises(ManifestError, match="cannot be read"):
        PatchSet(manifest)[0]


def test_slide_store_missing_slide_is_named_when_read(tmp_path: Path) -> None:
    records = make_folder(tmp_path / "small", 4)
    patches = _train_set(_cut(records, SETTINGS["level"].model_copy(update={"store": "slide"}), tmp_path))
    records[0].image_path.unlink()
    with pytest.raises(PandaError, match=rf"{slide_name(0)}\.tiff: there is no such slide"):
        patches[0]


@pytest.mark.parametrize("which", ["slide", "mask"])
def test_slide_store_changed_slide_or_mask_raises(tmp_path: Path, which: str) -> None:
    records = make_folder(tmp_path / "small", 4)
    settings = SETTINGS["level"].model_copy(update={"store": "slide"})
    result = _cut(records, settings, tmp_path)
    manifest = write_patch_manifests(result, SPLIT)["train"]
    right = PatchSet(manifest)[0]
    path = records[0].image_path if which == "slide" else records[0].mask_path
    assert path is not None
    content, was = path.read_bytes(), path.stat()
    path.write_bytes(content + b"\0")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    said = rf"{path}: the {which} has changed since its patches were cut: {was.st_size} bytes of .*run again to cut"
    with pytest.raises(ManifestError, match=said):
        PatchSet(manifest)[0]
    path.write_bytes(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 5_000_000))
    with pytest.raises(ManifestError, match=said):
        PatchSet(manifest)[0]
    last = len(PatchSet(manifest)) - 1
    PatchSet(manifest)[last]  # another slide
    before = entry_files(result.store)
    again = _cut(records, settings, tmp_path)  # the remedies
    assert find_kept_slides(again.store, before) == {slide_name(number) for number in (1, 2, 3)}
    rewritten = write_patch_manifests(again, SPLIT)["train"]
    assert rewritten != manifest
    assert torch.equal(PatchSet(rewritten)[0][0], right[0])
    (again.store / slide_name(0) / "slide.json").write_text("{")
    with pytest.raises(ManifestError, match=rf"slide\.json cannot be read.*remove the folder .*{slide_name(0)},"):
        PatchSet(rewritten)[0]


def test_extract_store_column_order_changes_no_patch(
    records: list[SlideRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    inner = Slide.read

    def noting(self: Slide, resolution: Resolution, location: tuple[int, int], *size: Any, keep: bool = True) -> Any:
        if keep:  # no overview
            read.append(location)
        return inner(self, resolution, location, *size, keep=keep)

    for kind in ("png", "packed"):
        settings = SETTINGS["level"].model_copy(update={"store": kind})
        whole = _cut(records[:1], settings, tmp_path / "rows")
        read.clear()
        with monkeypatch.context() as patch:
            patch.setattr("panda.wsi.grid.COLUMN_PX", 100)
            patch.setattr(Slide, "read", noting)
            columns = _cut(records[:1], settings, tmp_path / "columns")
        assert read != sorted(read, key=lambda place: place[::-1])
        width = 100 * round(SlideEntry.read(whole.slides[records[0].slide_id].folder).resolution.downsample)
        assert read == sorted(read, key=lambda place: (place[0] // width, place[1], place[0]))
        files = [path for path in whole.store.rglob("*.*") if path.is_file()]
        assert len(files) > 3
        for path in files:
            assert path.read_bytes() == (columns.store / path.relative_to(whole.store)).read_bytes()


def test_extract_store_few_slides_on_large_disk_skip_estimate(
    records: list[SlideRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr(disk, "estimate_disk", lambda pending, settings: looked.append(len(pending)))
    plenty = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(disk, "disk_usage", lambda path: plenty)
    _cut(records, SETTINGS["level"], tmp_path / "plenty")
    assert looked == []
    monkeypatch.setattr(disk, "SAMPLED", 3)
    _cut(records, SETTINGS["level"], tmp_path / "many")
    monkeypatch.undo()
    monkeypatch.setattr(disk, "estimate_disk", lambda pending, settings: looked.append(len(pending)))
    monkeypatch.setattr(disk, "disk_usage", lambda path: plenty._replace(free=10**6))
    _cut(records, SETTINGS["level"], tmp_path / "little")
    assert looked == [4, 4]


def test_patch_set_moved_data_folder_is_found(tmp_path: Path) -> None:
    settings = SETTINGS["level"].model_copy(update={"store": "slide"})
    make_folder(tmp_path / "before" / "small", 4)
    first = _train_set(_cut(read_manifest(tmp_path / "before" / "small"), settings, tmp_path / "patches"))
    (tmp_path / "before").rename(tmp_path / "after")
    before = entry_files(first.rows.store)
    moved = _cut(read_manifest(tmp_path / "after" / "small"), settings, tmp_path / "patches")
    assert find_kept_slides(moved.store, before) == {*moved.slides}
    second = _train_set(moved)
    second[0]  # is read
    assert first.rows.path != second.rows.path
    assert str(tmp_path / "after") in str(second.rows[0].img)


def test_estimate_disk_is_near_written_size(records: list[SlideRecord], tmp_path: Path) -> None:
    for kind in KINDS:
        settings = SETTINGS["level"].model_copy(update={"store": kind})
        need = estimate_disk(records, settings)
        assert need is not None
        result = _cut(records, settings, tmp_path)
        files = [
            path for path in result.store.rglob("*") if path.is_file() and path.suffix in {".png", ".npy", ".json"}
        ]
        written = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
        assert need.slides == 4
        assert need.patches == pytest.approx(sum(len(slide) for slide in result.slides.values()), rel=0.2)
        if kind != "slide":
            assert 0.8 < need.bytes / written < 1.5, kind


def test_extract_store_too_little_disk_raises_before_start(
    records: list[SlideRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(disk, "disk_usage", lambda path: free)
    with pytest.raises(PandaError, match=r"the patches need about .* of 4 slides.*0\.0 GB free.*data\.store=slide"):
        _cut(records, SETTINGS["level"], tmp_path)
    assert not list(tmp_path.glob("*/*/slide.json"))
    assert _cut(records, SETTINGS["level"].model_copy(update={"store": "slide"}), tmp_path).failures == []
    monkeypatch.undo()
    whole = _cut(records, SETTINGS["level"], tmp_path)
    monkeypatch.setattr(disk, "disk_usage", lambda path: free._replace(free=0))
    before = entry_files(whole.store)
    again = _cut(records, SETTINGS["level"], tmp_path)
    assert find_kept_slides(again.store, before) == {*again.slides}, "nothing is to be written"
    assert [*again.slides] == [*whole.slides]


def test_list_stores_lists_stores_of_folder(
    records: list[SlideRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {kind: _cut(records, SETTINGS["level"].model_copy(update={"store": kind}), tmp_path) for kind in KINDS}
    found = {stored.settings.store: stored for stored in list_stores(tmp_path)[0]}
    for kind, result in results.items():
        assert found[kind].store == result.store
        assert found[kind].slides == 4
        assert found[kind].patches == sum(len(slide) for slide in result.slides.values())
    assert found["packed"].bytes > found["png"].bytes > found["slide"].bytes
    assert main(["list", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(str(result.store) in printed for result in results.values())
    assert "64 px every 48 px, shift at the edge" in printed
    old = results["packed"].store / "store.json"
    old.write_text(old.read_text().replace('"format": 4', '"format": 3'))
    (results["png"].store / "store.json").write_text("[" * 10**5)
    assert main(["list", str(tmp_path)]) == 1
    printed, faults = capsys.readouterr()
    assert str(results["slide"].store) in printed
    assert "old or damaged" in faults
    assert all(str(results[kind].store) in faults for kind in ("packed", "png"))
    assert main(["list", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_store_list_command_prints_table(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "panda.data.store", "list", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["slides", "patches", "GB", "store"]


def test_patches_list_command_names_new_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "panda.data.patches", "list"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "python -m panda.data.patches has moved: type python -m panda.data.store list [STORE_ROOT]"
    )
