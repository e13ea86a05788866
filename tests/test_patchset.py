"""Patches as a dataset."""

from __future__ import annotations

import csv
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from panda.data.augment import Augmentation
from panda.data.extraction import extract_store
from panda.data.image_batch import RawItems, convert_patches, stack_patches
from panda.data.loaders import Draw, count_workers, make_ordered_loader, make_train_loader
from panda.data.patch_manifests import PatchTable, list_columns, write_one_slide_manifests, write_patch_manifests
from panda.data.patchset import PatchSet
from panda.data.settings import PatchSettings
from panda.data.splits import Split
from panda.data.store import StoreResult
from panda.errors import ManifestError
from tests.panda_folder import make_folder, slide_name

SPLIT: dict[str, Split] = {
    slide_name(0): "train",
    slide_name(1): "val",
    slide_name(2): "test",
    slide_name(3): "train",
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StoreResult:
    folder = tmp_path_factory.mktemp("data")
    records = make_folder(folder / "small", 4)
    return extract_store(records, PatchSettings(patch_size=64), folder / "patches", folder / "small", progress=False)


@pytest.fixture
def manifest(result: StoreResult, tmp_path: Path) -> Path:
    """Return the training manifest of a copy of the store."""
    store = tmp_path / "store"
    shutil.copytree(result.store, store)
    copy = StoreResult(store, result.slides, result.failures)
    return write_patch_manifests(copy, SPLIT)["train"]


def test_write_patch_manifests_of_split(result: StoreResult) -> None:
    paths = write_patch_manifests(result, SPLIT)
    assert [*paths] == ["train", "val", "test"]
    assert paths["train"].parent.parent == result.store / "splits"
    assert len(paths["train"].parent.name) == 12
    rows = list(csv.DictReader(paths["train"].read_text().splitlines()))
    assert tuple(rows[0]) == list_columns(PatchSettings())
    first = result.slides[slide_name(0)]
    x, y = first.xy[0].tolist()
    assert rows[0] == {
        "slide_id": slide_name(0),
        "provider": "radboud",
        "isup_grade": "4",
        "number": "0",
        "x": str(x),
        "y": str(y),
        "img": f"{slide_name(0)}/img/{slide_name(0)}_x{x}_y{y}.png",
        "msk": f"{slide_name(0)}/msk/{slide_name(0)}_x{x}_y{y}.png",
        "tissue_fraction": str(first.tissue_fraction[0]),
        "tumor_fraction": str(first.tumor_fraction[0]),
    }
    assert len(rows) == len(first) + len(result.slides[slide_name(3)])
    assert write_patch_manifests(result, dict(reversed(SPLIT.items()))) == paths
    other = write_patch_manifests(result, {**SPLIT, slide_name(3): "val"})
    assert other["train"].parent != paths["train"].parent


def test_write_patch_manifests_split_of_failed_slides_raises(result: StoreResult) -> None:
    split: dict[str, Split] = {**SPLIT, slide_name(2): "train", "gone": "test"}
    with pytest.raises(ManifestError, match="all slides of test failed"):
        write_patch_manifests(result, split)


def test_write_one_slide_manifests_splits_patches(result: StoreResult) -> None:
    patches = result.slides[slide_name(0)]
    paths = write_one_slide_manifests(result.store, patches, seed=1, val_fraction=0.25)
    rows = {name: {(row.x, row.y) for row in PatchTable(path)} for name, path in paths.items()}
    assert [*rows] == ["train", "val"]
    assert not rows["train"] & rows["val"]
    assert rows["train"] | rows["val"] == set(map(tuple, patches.xy.tolist()))
    assert len(rows["val"]) == round(0.25 * len(patches))
    assert write_one_slide_manifests(result.store, patches, seed=1, val_fraction=0.25) == paths
    assert write_one_slide_manifests(result.store, patches, seed=2, val_fraction=0.25) != paths


def test_patch_set_items(manifest: Path) -> None:
    patches = PatchSet(manifest)
    assert patches.slide_ids == [slide_name(0), slide_name(3)]
    assert len(patches) == len(patches.rows)
    for number, row in enumerate(patches.rows):
        image, mask = patches[number]
        assert image.shape == (3, 64, 64)
        assert mask.shape == (1, 64, 64)
        assert image.dtype == mask.dtype == torch.float32
        assert set(mask.flatten().tolist()) <= {0.0, 1.0}
        assert float(mask.mean()) == pytest.approx(row.tumor_fraction, abs=1e-5)
        stored = cv2.imread(str(row.img), cv2.IMREAD_COLOR_RGB)
        assert stored is not None
        np.testing.assert_array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), stored)
    row = patches.rows[0]
    assert (row.provider, row.isup_grade) == ("radboud", 4)
    assert patches.rows[:2] == [patches.rows[0], patches.rows[1]]
    assert patches.rows[-1].slide_id == slide_name(3)
    with pytest.raises(IndexError):
        patches.rows[len(patches)]
    assert len(pickle.loads(pickle.dumps(patches))) == len(patches)


def test_patch_set_transform_is_applied_to_image_and_mask(manifest: Path) -> None:
    plain, turned = PatchSet(manifest), PatchSet(manifest, Augmentation(name="light"))
    number = int(plain.rows.fractions[:, 1].argmax())
    pairs = [turned[Draw(number, seed)] for seed in range(6)]
    assert all(mask.sum() == plain[number][1].sum() for _, mask in pairs)
    assert len({image.numpy().tobytes() for image, _ in pairs}) == 6
    again, _ = turned[Draw(number, 3)]
    assert torch.equal(again, pairs[3][0])


def _run_epochs(loader: DataLoader[Any]) -> list[torch.Tensor]:
    return [torch.cat([convert_patches(batch)[0] for batch in loader]) for _ in range(2)]


def test_patch_set_samples_do_not_depend_on_workers(manifest: Path) -> None:
    patches = PatchSet(manifest, Augmentation(name="strong"))
    options: dict[str, Any] = {"dataset": RawItems(patches), "items": len(patches), "collate": stack_patches}
    torch.manual_seed(5)
    alone = _run_epochs(make_train_loader(batch_size=8, num_workers=0, **options))
    torch.manual_seed(5)
    helped = _run_epochs(make_train_loader(batch_size=8, num_workers=2, **options))
    torch.manual_seed(5)
    whole = _run_epochs(make_train_loader(batch_size=len(patches), num_workers=0, **options))
    assert torch.equal(whole[0][: len(alone[0])], alone[0])
    for left, right in zip(alone, helped, strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(*alone)
    torch.manual_seed(6)
    assert not torch.equal(_run_epochs(make_train_loader(batch_size=8, num_workers=0, **options))[0], alone[0])
    plain = PatchSet(manifest)
    ordered = [
        torch.cat([mask for _, mask in make_ordered_loader(plain, 8, workers)]).sum((1, 2, 3)) for workers in (0, 2)
    ]
    assert torch.equal(*ordered)
    assert ordered[0].numpy() / 64**2 == pytest.approx(plain.rows.fractions[:, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("items", "batch", "batches"), [(9, 4, 2), (8, 4, 2), (10, 4, 3), (1, 4, 1), (3, 1, 3), (5, 4, 1)]
)
def test_make_train_loader_drops_batch_of_one(items: int, batch: int, batches: int) -> None:
    assert len(make_train_loader(torch.utils.data.TensorDataset(torch.zeros(items)), items, batch, 0)) == batches


@pytest.mark.parametrize(
    ("cores", "devices", "workers"), [(1, 1, 0), (2, 1, 1), (16, 1, 15), (64, 1, 16), (16, 4, 3), (4, 4, 0)]
)
def test_count_workers_auto_leaves_one_core(
    monkeypatch: pytest.MonkeyPatch, cores: int, devices: int, workers: int
) -> None:
    monkeypatch.setattr("panda.data.loaders.count_cores", lambda: cores)
    trainer: Any = SimpleNamespace(num_devices=devices)
    assert count_workers("auto", trainer) == workers
    assert count_workers(5, trainer) == 5
    assert count_workers("auto") == min(cores - 1, 16)


@pytest.mark.parametrize("place", ["train.csv", "a/b/train.csv", "store/splits/x/train.csv"])
def test_patch_set_wrong_path_advises_no_removal(tmp_path: Path, place: str) -> None:
    with pytest.raises(ManifestError, match=r"train\.csv: the patch manifest does not exist; give STORE/splits/"):
        PatchSet(tmp_path / place)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("slide_id\ns1\n")
    with pytest.raises(ManifestError, match=r"train\.csv is no patch manifest, because .*store\.json") as said:
        PatchSet(tmp_path / place)
    assert "remove" not in str(said.value)


@pytest.mark.parametrize("part", ["img", "msk"])
def test_patch_set_broken_file_is_named(manifest: Path, part: str) -> None:
    patches = PatchSet(manifest)
    path: Path = getattr(patches.rows[1], part)
    folder = path.parents[1]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ManifestError, match=rf"{path.name} is not an image; remove the folder {folder}"):
        patches[1]
    path.write_bytes(b"")
    with pytest.raises(ManifestError, match="is not an image"):
        patches[1]
    cv2.imwrite(str(path), np.zeros((64, 32), np.uint8))
    with pytest.raises(ManifestError, match="is 32 x 64 px, not 64 x 64"):
        patches[1]
    path.unlink()
    with pytest.raises(ManifestError, match=r"cannot be read \(No such file"):
        patches[1]


def test_patch_set_mask_of_other_values_raises(manifest: Path) -> None:
    patches = PatchSet(manifest)
    cv2.imwrite(str(patches.rows[0].msk), np.full((64, 64), 4, np.uint8))
    with pytest.raises(ManifestError, match="values other than 0, 128 and 255"):
        patches[0]


def test_patch_set_faulty_manifest_raises(manifest: Path) -> None:
    header = ",".join(list_columns(PatchSettings()))
    with pytest.raises(ManifestError, match="does not exist"):
        PatchSet(manifest.with_name("none.csv"))
    for text, fault in [
        ("", "the columns are none"),
        ("slide_id,x\n", "the columns are slide_id, x"),
        (f"{header}\n", "lists no patches"),
        (f"{header}\na,radboud,1,0,0\n", "row 2"),
        (f"{header}\na,radboud,1,0,0,0,/etc/passwd,m,0,0\n", "row 2: img and msk are /etc/passwd and m"),
    ]:
        manifest.write_text(text)
        with pytest.raises(ManifestError, match=fault):
            PatchSet(manifest)
