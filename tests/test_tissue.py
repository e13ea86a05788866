"""Tissue by colour: what counts, what does not, and the map over a slide."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.errors import SlideError
from panda.wsi.geometry import Resolution
from panda.wsi.labels import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue, tissue_mask_rgb
from tests.pyramids import write_pyramid

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real slides are not at {DATA}")

TISSUE = {
    "eosin": (225, 150, 190),
    "haematoxylin": (110, 80, 150),
    "lymphocytes": (85, 70, 140),
    "pale core": (242, 226, 236),
}
NOT_TISSUE = {
    "blue pen": (60, 75, 160),
    "violet-blue pen": (70, 70, 165),
    "light blue": (150, 190, 230),
    "green pen": (40, 140, 80),
    "black pen": (30, 30, 35),
    "red pen": (200, 40, 50),
    "pencil": (140, 140, 145),
    "dust": (190, 188, 180),
}


def disc(
    colour: tuple[int, int, int], glass: tuple[int, int, int] = (250, 250, 250), noise: float = 2.0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A disc of one colour on glass, and where it is."""
    image = np.full((240, 320, 3), glass, np.uint8)
    image[:, :100] = (226, 226, 226)  # a scanner's grey patch
    image[220:] = 0  # black padding
    where = cv2.circle(np.zeros((240, 320), np.uint8), (110, 110), 60, 1, -1) > 0
    image[where] = colour
    rng = np.random.default_rng(0)
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8), where


@pytest.mark.parametrize("name", TISSUE)
def test_tissue_is_found_on_white_glass_and_grey_patches(name: str) -> None:
    image, where = disc(TISSUE[name])
    found = tissue_mask_rgb(image)
    assert found.dtype == np.bool_
    assert (found & where).sum() > 0.98 * where.sum()
    assert (found & ~where).sum() < 0.02 * where.sum()


@pytest.mark.parametrize("name", NOT_TISSUE)
def test_ink_and_dirt_are_no_tissue(name: str) -> None:
    image, where = disc(NOT_TISSUE[name])
    assert tissue_mask_rgb(image).sum() < 0.02 * where.sum()


@pytest.mark.parametrize("name", ["eosin", "haematoxylin"])
def test_ink_beside_tissue_takes_nothing_from_it(name: str) -> None:
    image, where = disc(TISSUE[name])
    image[20:60, 200:300] = NOT_TISSUE["blue pen"]
    found = tissue_mask_rgb(image)
    assert (found & where).sum() > 0.98 * where.sum()
    assert not found[20:60, 205:295].any()


def test_a_tint_of_the_glass_is_taken_off() -> None:
    image, where = disc(TISSUE["eosin"], glass=(243, 235, 242), noise=1.0)
    assert tissue_mask_rgb(image)[:, 180:].mean() < 0.01
    assert tissue_mask_rgb(image)[where].mean() > 0.98


@pytest.mark.parametrize("level", [0, 128, 226, 240, 255])
def test_plain_grey_has_no_tissue(level: int) -> None:
    rng = np.random.default_rng(3)
    grey = np.clip(rng.normal(level, 3, (300, 200, 3)), 0, 255).astype(np.uint8)
    assert not tissue_mask_rgb(grey).any()


def test_a_picture_full_of_tissue_is_tissue() -> None:
    image = np.full((128, 128, 3), TISSUE["eosin"], np.uint8)
    image[::9, ::7] = TISSUE["haematoxylin"]
    assert tissue_mask_rgb(image).mean() > 0.99


def test_specks_go_and_small_holes_close() -> None:
    image, where = disc(TISSUE["eosin"], noise=0)
    image[105:109, 100:104] = 250
    image[10:13, 300:302] = TISSUE["eosin"]
    found = tissue_mask_rgb(image)
    assert found[105:109, 100:104].all()
    assert not found[:40, 280:].any()
    image[80:140, 80:140] = 250
    assert not tissue_mask_rgb(image)[95:125, 95:125].any()
    assert where.any()


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)])
def test_other_arrays_are_refused(bad: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        tissue_mask_rgb(bad)


@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 1, 3), (3, 2, 3)])
def test_tiny_pictures_pass(shape: tuple[int, int, int]) -> None:
    assert tissue_mask_rgb(np.full(shape, 255, np.uint8)).shape == shape[:2]


def as_slide(folder: Path, image: NDArray[np.uint8], mpp: float | None = None) -> Slide:
    return Slide.open(write_pyramid(folder / "slide.tiff", image, downsamples=(1, 4), tile=64, mpp=mpp))


def test_find_tissue_works_near_8_um(tmp_path: Path) -> None:
    image, _ = disc(TISSUE["eosin"])
    coarse = find_tissue(as_slide(tmp_path, image, mpp=2.0))
    assert (coarse.resolution.level, coarse.resolution.resampled, coarse.how) == (1, False, "strict")
    resampled = find_tissue(as_slide(tmp_path, image, mpp=0.9))
    assert resampled.resolution.mpp == pytest.approx((8.0, 8.0))
    unknown = find_tissue(as_slide(tmp_path, image))
    assert unknown.resolution.downsample == 1.0
    assert coarse.fraction == pytest.approx(np.pi * 60**2 / (240 * 320), rel=0.1)
    assert unknown.fraction == pytest.approx(coarse.fraction, rel=0.1)


def test_very_pale_tissue_takes_the_loose_pass(tmp_path: Path) -> None:
    image, where = disc((247, 241, 246), noise=0.0)
    assert not tissue_mask_rgb(image).any()
    found = find_tissue(as_slide(tmp_path, image))
    assert found.how == "loose"
    assert found.mask[where].mean() > 0.95


def test_a_slide_without_tissue_says_so(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"slide\.tiff: no tissue"):
        find_tissue(as_slide(tmp_path, np.full((300, 400, 3), 240, np.uint8)))


def a_map(mask: NDArray[np.bool_], downsample: float = 4.0) -> TissueMap:
    height, width = mask.shape
    return TissueMap(mask, Resolution(downsample, width, height, 0, downsample, None), "strict")


def test_crop_is_nearest_and_false_past_the_edge() -> None:
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    tissue = a_map(mask)
    level0 = Resolution(1.0, 120, 80, 0, 1.0, None)
    assert (tissue.crop(level0, (0, 0), (120, 80)) == np.repeat(np.repeat(mask, 4, 0), 4, 1)).all()
    assert (tissue.crop(tissue.resolution, (8, 4), (10, 9)) == mask[1:10, 2:12]).all()
    around = tissue.crop(level0, (-4, -4), (130, 90))
    assert (around[4:84, 4:124] == tissue.crop(level0, (0, 0), (120, 80))).all()
    assert not around[:4].any()
    assert not around[84:].any()
    assert not tissue.crop(level0, (5000, 0), (3, 3)).any()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    x0=st.integers(-20, 130),
    y0=st.integers(-20, 90),
    width=st.integers(1, 150),
    height=st.integers(1, 150),
)
def test_fraction_of_a_box_is_exact(seed: int, x0: int, y0: int, width: int, height: int) -> None:
    mask = np.random.default_rng(seed).random((20, 30)) < 0.2
    tissue = a_map(mask)
    at_level0 = tissue.crop(Resolution(1.0, 120, 80, 0, 1.0, None), (x0, y0), (width, height))
    fraction = tissue.fraction_of(np.array([[x0, y0, x0 + width, y0 + height]], np.float64))
    assert fraction == pytest.approx([at_level0.mean()], abs=1e-9)
    assert (fraction[0] > 0) == at_level0.any()


def test_fraction_of_no_boxes_is_empty() -> None:
    assert a_map(np.ones((3, 3), np.bool_)).fraction_of(np.empty((0, 4))).shape == (0,)


@pytest.mark.real_data
@needs_data
def test_real_tissue_is_found_and_glass_is_not() -> None:
    slide = Slide.open(DATA / "wsi" / "CMU-1-Small-Region.svs")
    tissue = find_tissue(slide)
    assert tissue.how == "strict"
    assert 0.3 < tissue.fraction < 0.45  # judged by eye once, with an outline drawn over the slide
    path = max((DATA / "glas_wsi" / "train_images").glob("*.tiff"))
    mosaic = Slide.open(path)
    mask = LabelMask.open(DATA / "glas_wsi" / "train_label_masks" / f"{mosaic.slide_id}_mask.tiff", mosaic, "radboud")
    found = find_tissue(mosaic)
    assert found.mask[mask.overview(found.resolution) > 0].mean() > 0.95
