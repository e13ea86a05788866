"""Stain normalization: colours it changes and keeps, and equal pixels in training and inference."""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from panda.data.augment import Augmentation
from panda.data.bags import read_bag
from panda.data.bagset import BagItem, BagSet, BagSettings
from panda.data.datamodule import DataSettings, PatchDataModule
from panda.data.settings import StoreKind
from panda.data.stain_estimates import STAIN_FILE
from panda.errors import ConfigError
from panda.inference.compute import EngineSettings, InferenceModel
from panda.inference.predictor import SegmentationPredictor
from panda.synthetic.dataset import SyntheticSpec, draw_dataset
from panda.synthetic.painter import STYLES
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import REFERENCE, StainProfile, estimate_stain, find_stain, normalize_stain
from panda.wsi.tissue import find_tissue
from tests.checkpoints import segmentation_checkpoint

WHITE = (255.0, 255.0, 255.0)


def amounts() -> NDArray[np.float64]:
    """Haematoxylin and eosin of a picture, (128, 128, 2): nuclei on stroma, and glass in the right quarter."""
    rng = np.random.default_rng(0)
    out = np.stack([rng.random((128, 128)) ** 3, 0.15 + 0.85 * rng.random((128, 128))], axis=-1)
    out[rng.random((128, 128)) < 0.2, 1] *= 0.1
    out[:, 96:] = 0
    return out


def draw_stained(haematoxylin: ArrayLike, eosin: ArrayLike, glass: ArrayLike) -> NDArray[np.uint8]:
    """Draw the picture of `amounts` in the colours of a laboratory."""
    density = amounts() @ np.array([haematoxylin, eosin])
    return np.asarray(np.rint(np.array(glass) * np.exp(-density)), np.uint8)


def laboratory(provider: str) -> tuple[NDArray[np.uint8], StainProfile]:
    style = STYLES[provider]
    picture = draw_stained(style.haema, style.eosin, style.glass)
    profile = estimate_stain(picture, tuple(map(float, style.glass)))  # type: ignore[arg-type]
    assert profile is not None
    return picture, profile


def test_normalize_stain_laboratories_become_alike() -> None:
    pictures = [laboratory(provider) for provider in STYLES]
    made = [normalize_stain(*pair).astype(int) for pair in pictures]
    before = np.abs(pictures[0][0].astype(int) - pictures[1][0].astype(int))[:, :96].mean()
    assert before > 10
    assert np.abs(made[0] - made[1])[:, :96].mean() < before / 3
    for (picture, _), after in zip(pictures, made, strict=True):
        assert (after[:, 96:] == 255).all()  # glass is white
        for channel in range(3):
            was, now = picture[:, :96, channel].ravel(), after[:, :96, channel].ravel()
            assert np.corrcoef(was, now)[0, 1] > 0.97


def test_normalize_stain_reference_colors_stay() -> None:
    picture = draw_stained(2.0 * np.array(REFERENCE.haematoxylin), 1.1 * np.array(REFERENCE.eosin), WHITE)
    ink = np.full((8, 8, 3), (20, 60, 160), np.uint8)
    for image in (picture, ink, np.zeros_like(ink)):
        assert np.abs(normalize_stain(image, REFERENCE).astype(int) - image).max() <= 1
    own = estimate_stain(picture, WHITE)
    assert own is not None
    assert np.abs(normalize_stain(picture, own, own).astype(int) - picture).max() <= 1
    assert np.abs(normalize_stain(picture, own).astype(int) - picture).mean() < 6


def test_stain_profile_survives_json() -> None:
    _, profile = laboratory("radboud")
    assert StainProfile(**json.loads(json.dumps(asdict(profile)))) == profile
    haematoxylin, eosin = np.array(STYLES["radboud"].haema), np.array(STYLES["radboud"].eosin)
    for found, true in ((profile.haematoxylin, haematoxylin), (profile.eosin, eosin)):
        assert np.array(found) @ true / np.linalg.norm(true) > math.cos(math.radians(3))


@pytest.mark.parametrize("colour", [(244, 244, 244), (215, 120, 180), (128, 128, 128), (0, 0, 0), (255, 255, 255)])
def test_estimate_stain_one_color_returns_none(colour: tuple[int, int, int]) -> None:
    flat = np.full((128, 128, 3), colour, np.uint8)
    noise = np.random.default_rng(0).integers(-2, 3, flat.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimate_stain(flat, WHITE) is None
        if max(colour) < 240:
            assert estimate_stain(np.clip(flat + noise, 0, 255).astype(np.uint8), WHITE) is None


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "slides"
    draw_dataset(root, SyntheticSpec(slides=6, width=1024, height=768))
    return root


def make_module(root: Path, store: StoreKind = "png", augment: Augmentation | None = None) -> PatchDataModule:
    settings = DataSettings(
        root=root,
        patch_size=64,
        num_workers=0,
        store=store,
        store_root=root.parent / "patches",
        normalize="macenko",
        augment=augment,
    )
    module = PatchDataModule(settings)
    module.prepare_data()
    module.setup()
    return module


def test_find_stain_real_neighbors_have_same_stain(drawn: Path) -> None:
    path = sorted((drawn / "train_images").iterdir())[0]
    with Slide.open(path) as slide:
        tissue = find_tissue(slide)
        assert tissue.glass is not None
        assert min(np.abs(np.array(tissue.glass) - style.glass).max() for style in STYLES.values()) < 6
        profile = find_stain(slide, tissue)
        assert profile is not None
        assert profile == find_stain(slide, find_tissue(slide))
        view = slide.choose_resolution(level=1)
        whole = normalize_stain(slide.read(view, (0, 0), view.size), profile)
        halves = [
            normalize_stain(slide.read(view, (x, 0), (64, view.height)), profile)
            for x in (0, round(64 * view.downsample))
        ]
        assert np.array_equal(np.concatenate(halves, axis=1), whole[:, :128])


@pytest.mark.parametrize("store", ["png", "packed", "slide"])
def test_normalize_training_and_inference_see_same_pixels(
    drawn: Path, store: StoreKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(drawn, store)
    shown: list[NDArray[np.uint8]] = []

    def show(self: InferenceModel, images: Tensor) -> Tensor:
        shown.extend((images.numpy() * 255).round().astype(np.uint8))
        return images[:, None, None, ..., 0]

    # only what it is shown matters
    monkeypatch.setattr(InferenceModel, "compute_logits", show)
    plain = segmentation_checkpoint(tmp_path / "plain.ckpt", patch_size=64, overlap=0.0)
    path = segmentation_checkpoint(tmp_path / "a.ckpt", normalize="macenko", patch_size=64, overlap=0.0)
    settings = EngineSettings(device="cpu")
    network = SegmentationPredictor.from_checkpoint(path, settings)
    for split in ("train", "val"):
        patches = module.get_patches(split)
        slide_id = patches.slide_ids[0]
        record = next(r for r in module.select().used if r.slide_id == slide_id)
        shown.clear()
        with Slide.open(record.image_path) as slide:
            tissue = find_tissue(slide)
            network.predict(slide, tissue, tmp_path / f"{split}.zarr")
            grid = network.make_grid(slide, tissue)
            tiles = dict(zip(map(tuple, grid.working[grid.reading_order()].tolist()), shown, strict=True))
            view = slide.choose_resolution(level=1)
            other = SegmentationPredictor.from_checkpoint(plain, settings)
            assert network.fingerprint_canvas(slide, view) != other.fingerprint_canvas(slide, view)
        compared = 0
        for number, row in enumerate(patches.rows):
            at = round(row.x / view.downsample), round(row.y / view.downsample)
            if row.slide_id == slide_id and at in tiles:
                seen = (patches[number][0].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
                assert np.array_equal(seen, tiles[at])
                compared += 1
        assert compared > 5
        assert not np.array_equal(seen, patches.pixels.read(row, patches.rows.store)[0])


def test_normalize_bag_and_grader_see_same_pixels(drawn: Path) -> None:
    record = make_module(drawn).select().used[0]
    with Slide.open(record.image_path) as slide:
        profile = find_stain(slide, find_tissue(slide))
        coords = np.array([[800, 600], [1000, 700]])
        bag = read_bag(slide, coords, slide.choose_resolution(level=1), 32, profile)
        raw = read_bag(slide, coords, slide.choose_resolution(level=1), 32)
    item = BagSet([BagItem(record, coords, profile)], BagSettings(k=2, tile_size=32))[0]
    assert np.array_equal(item[0].numpy(), bag)
    assert not np.array_equal(bag, raw)


def test_stains_are_cached_and_renewed_for_changed_slide(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_module(drawn)
    files = sorted(first.store_folder.glob(f"*/{STAIN_FILE}"))
    assert len(files) == 6
    looked: list[str] = []

    def record_call(slide: Slide, tissue: object) -> None:
        looked.append(slide.slide_id)

    monkeypatch.setattr("panda.data.stain_estimates.find_stain", record_call)
    make_module(drawn)
    assert not looked
    files[0].write_text("{")
    record = next(r for r in first.select().used if r.slide_id == files[1].parent.name)
    os.utime(record.image_path)
    again = make_module(drawn)
    assert sorted(looked) == sorted(path.parent.name for path in files[:2])
    patches = again.get_patches("train" if record.slide_id in again.get_patches("train").slide_ids else "val")
    assert patches.stains is not None
    assert patches.stains[record.slide_id] is None


def test_stains_unreadable_slide_fails(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(drawn)
    gone = module.get_patches("train").slide_ids[0]
    (module.store_folder / gone / STAIN_FILE).unlink()

    def unreadable(slide: Slide, tissue: object) -> None:
        raise OSError("a bad block")

    monkeypatch.setattr("panda.data.stain_estimates.find_stain", unreadable)
    again = make_module(drawn)
    assert [(failure.slide_id, failure.stage, failure.message) for failure in again.failures] == [
        (gone, "stain", "a bad block")
    ]
    assert gone not in again.get_patches("train").slide_ids


def test_find_stain_slide_of_one_stain_is_noted(tmp_path: Path, panda_log: pytest.LogCaptureFixture) -> None:
    from tests.pyramids import write_pyramid

    image = np.full((512, 768, 3), 244, np.uint8)
    image[100:400, 100:600] = (215, 120, 180)
    with Slide.open(write_pyramid(tmp_path / "one.tiff", image, mpp=2.0)) as slide:
        assert find_stain(slide, find_tissue(slide)) is None
    assert "colours are not normalized" in panda_log.text


def test_data_settings_unknown_normalize_raises() -> None:
    with pytest.raises(ConfigError, match=r"data\.normalize=vahadane must be macenko or null"):
        DataSettings(root=Path(), normalize="vahadane")  # type: ignore[arg-type]
