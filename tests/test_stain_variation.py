"""Variation of stains: what changes, what stays, and how it looks on real slides."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from panda.data.augment import Augmentation, StainChange
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import REFERENCE
from panda.wsi.stain_variation import GLASS_MAGENTA, STAINED_MAGENTA, vary_stain
from tests.conftest import SHARED

STAINS = np.array([REFERENCE.haematoxylin, REFERENCE.eosin])
FACTOR, TURN = StainChange.strength_range, StainChange.most_turn
strengths = arrays(np.float64, 2, elements=st.floats(*FACTOR))
turns = arrays(np.float64, (2, 3), elements=st.floats(-TURN, TURN))
pictures = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))


def draw_amounts(haematoxylin: float, eosin: float, glass: int = 255) -> NDArray[np.uint8]:
    """Draw one px that has these amounts of the two stains."""
    light = glass * np.exp(-np.array([haematoxylin, eosin]) @ STAINS)
    return np.asarray(np.rint(light), np.uint8).reshape(1, 1, 3)


@pytest.fixture(scope="module")
def all_colors() -> NDArray[np.uint8]:
    """Every RGB colour once, (4096, 4096, 3)."""
    channels = np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 3, indexing="ij")
    return np.stack(channels, axis=-1).reshape(4096, 4096, 3)


def test_vary_stain_neutral_keeps_every_color(all_colors: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(vary_stain(all_colors, (1, 1)), all_colors)


@given(pictures, strengths, turns)
@settings(max_examples=200, deadline=None)
def test_vary_stain_glass_never_changes(picture: NDArray[np.uint8], strength: object, turn: object) -> None:
    magenta = picture[..., ::2].max(axis=2).astype(int) - picture[..., 1]
    new = vary_stain(picture, strength, turn)  # type: ignore[arg-type]
    glass = magenta <= GLASS_MAGENTA
    np.testing.assert_array_equal(new[glass], picture[glass])
    assert new.shape == picture.shape
    assert new.dtype == np.uint8


@given(st.floats(0.1, 1.5), st.floats(0.3, 1.5), strengths)
@settings(max_examples=200, deadline=None)
def test_vary_stain_scales_amounts_of_both(haematoxylin: float, eosin: float, strength: NDArray[np.float64]) -> None:
    px = draw_amounts(haematoxylin, eosin)
    red, green, blue = px[0, 0].astype(int)
    if max(red, blue) - green < STAINED_MAGENTA or px.min() < 8:
        return  # pale px change in part, and in dark ones a grey value is a large step of density
    wanted = draw_amounts(haematoxylin * strength[0], eosin * strength[1])
    assert np.abs(vary_stain(px, strength).astype(int) - wanted).max() <= 3


def test_vary_stain_stronger_is_darker_at_every_pale_step() -> None:
    """From glass to full stain no px becomes lighter than a paler one."""
    amounts = np.linspace(0, 1.5, 300)
    column = np.concatenate([draw_amounts(0.3 * each, each) for each in amounts])
    for strength in ((0.7, 0.7), (1.3, 1.3), (0.7, 1.3), (1.3, 0.7)):
        assert (np.diff(vary_stain(column, strength)[:, 0].astype(int), axis=0) <= 1).all()


@given(strengths, turns)
@settings(max_examples=200, deadline=None)
def test_vary_stain_blood_stays_red(strength: object, turn: object) -> None:
    blood = np.array([[(180, 50, 60), (190, 60, 70), (150, 40, 45), (210, 90, 95)]], np.uint8)
    red, green, blue = cv2.split(vary_stain(blood, strength, turn).astype(np.int16))  # type: ignore[arg-type]
    assert (red - green > 60).all()
    assert (red - blue > 60).all()


def test_vary_stain_ink_and_padding_stay() -> None:
    colors = np.array([[(0, 0, 0), (20, 120, 40), (60, 60, 60), (255, 255, 255), (250, 240, 60)]], np.uint8)
    for strength in ((0.7, 1.3), (1.3, 0.7)):
        np.testing.assert_array_equal(vary_stain(colors, strength, 0.05), colors)


def test_vary_stain_any_shape_gives_same_pixels() -> None:
    """Rows are processed in bands, and a turned picture is no C array: neither shows in the pixels."""
    picture = np.random.default_rng(0).integers(0, 256, (130, 4000, 3), np.uint8)
    whole = vary_stain(picture, (0.8, 1.2), TURN)
    np.testing.assert_array_equal(vary_stain(picture[60:61, 100:300], (0.8, 1.2), TURN), whole[60:61, 100:300])
    np.testing.assert_array_equal(vary_stain(picture.swapaxes(0, 1), (0.8, 1.2), TURN), whole.swapaxes(0, 1))
    assert vary_stain(picture[:0], (0.8, 1.2)).shape == (0, 4000, 3)


def test_stain_change_same_seed_gives_same_stain() -> None:
    augmentation = Augmentation(name="stain")
    picture = np.concatenate([draw_amounts(0.5, each) for each in np.linspace(0.1, 1, 16)])
    picture = np.ascontiguousarray(picture.repeat(16, axis=1))
    first = [augmentation.augment_image(picture, seed) for seed in range(8)]
    again = [augmentation.augment_image(picture, seed) for seed in range(8)]
    np.testing.assert_array_equal(first, again)
    assert len({each.tobytes() for each in first}) == 8


@pytest.mark.real_data
def test_vary_stain_real_slide_keeps_glass_and_nuclei() -> None:
    path = SHARED / "wsi" / "CMU-1-Small-Region.svs"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with Slide.open(path) as slide:
        picture = slide.read(slide.choose_resolution(level=0), (900, 1200), (512, 512))
    glass = (picture.min(axis=2) > 225) & (np.ptp(picture, axis=2) <= GLASS_MAGENTA)
    dark = picture.max(axis=2) < 60
    assert glass.sum() > 1_000
    assert dark.sum() > 1_000
    for strength in ((0.7, 1.3), (1.3, 0.7), (0.7, 0.7)):
        new = vary_stain(picture, strength)
        np.testing.assert_array_equal(new[glass], picture[glass])
        assert new[dark].max() < 150  # no bright speck in a black nucleus
        assert np.abs(new.astype(int) - picture)[~glass].mean() > 3
