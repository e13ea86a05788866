"""Variation of stains: what changes, what stays, and how it looks on real slides."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import ArrayLike, NDArray

from panda.data.augment import MOST_TURN, STRENGTH
from panda.wsi import stain_variation
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import REFERENCE
from panda.wsi.stain_variation import GLASS_MAGENTA, STAINED_MAGENTA
from tests.conftest import SHARED

STAINS = np.array([REFERENCE.haematoxylin, REFERENCE.eosin])
strengths = arrays(np.float64, 2, elements=st.floats(*STRENGTH))
turns = arrays(np.float64, (2, 3), elements=st.floats(-MOST_TURN, MOST_TURN))
pictures = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))


def vary_stain(rgb: NDArray[np.uint8], strength: ArrayLike, turn: ArrayLike = 0.0) -> NDArray[np.uint8]:
    """Vary the stain of one picture, (h, w, 3) uint8, and round it."""
    given = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float()
    factors = torch.tensor(np.broadcast_to(strength, (1, 2)), dtype=torch.float32)
    turned = torch.tensor(np.broadcast_to(turn, (1, 2, 3)), dtype=torch.float32)
    return stain_variation.vary_stain(given, factors, turned)[0].permute(1, 2, 0).round().byte().numpy()


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
    assert (red - green > 40).all()  # 105 to 130 before; the least at the ends of all ranges is 52
    assert (red - blue > 40).all()


def test_vary_stain_ink_and_padding_stay() -> None:
    colors = np.array([[(0, 0, 0), (20, 120, 40), (60, 60, 60), (255, 255, 255), (250, 240, 60)]], np.uint8)
    for strength in ((0.7, 1.3), (1.3, 0.7)):
        np.testing.assert_array_equal(vary_stain(colors, strength, 0.05), colors)


def test_vary_stain_batch_has_a_stain_for_each() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), np.uint8)
    given = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    factors, turned = torch.tensor([[0.7, 1.3], [1.2, 0.9]]), torch.tensor([[[0.05] * 3, [-0.05] * 3], [[0.0] * 3] * 2])
    both = stain_variation.vary_stain(given, factors, turned)
    for number in range(2):
        one = slice(number, number + 1)
        assert torch.equal(both[one], stain_variation.vary_stain(given[one], factors[one], turned[one]))
    assert torch.equal(stain_variation.vary_stain(given[..., :0], factors, turned), given[..., :0])


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
