"""Augmentation and the draws it follows."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panda.data.augment import Augmentation, turn_square
from panda.data.image_batch import RawPatch, convert_patches, stack_patches
from panda.data.loaders import Draw, DrawSampler, find_item, find_seed
from panda.errors import ConfigError


def augment(
    name: Any, image: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Turn a pair and change its colours, rounded."""
    turned = Augmentation(name=name)(image, mask, seed)
    images, _ = convert_patches(stack_patches([RawPatch(*turned)]))
    return (images[0] * 255).round().byte().permute(1, 2, 0).numpy(), turned.mask


def pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw an image that is dark at the pixels whose mask is 1."""
    mask = np.zeros((32, 32), np.uint8)
    mask[3:20, 5:11] = 1
    image = np.where(mask[..., None] == 1, 40, 200).astype(np.uint8).repeat(3, axis=2)
    return image, mask


def test_augmentation_light_keeps_mask_aligned() -> None:
    image, mask = pair()
    shapes = set()
    for seed in range(40):
        new_image, new_mask = augment("light", image, mask, seed)
        assert new_image.shape == image.shape
        assert new_image.dtype == np.uint8
        assert set(np.unique(new_mask)) == {0, 1}
        np.testing.assert_array_equal(new_image.mean(axis=2) < 120, new_mask == 1)
        shapes.add(new_mask.tobytes())
    assert len(shapes) == 8
    assert len({augment("light", image, mask, seed)[0].mean() for seed in range(20)}) > 10


def test_turn_square_makes_eight_pictures_alike() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 7, 3), np.uint8)
    ways = {np.rot90(side, turns).tobytes() for side in (image, image[::-1]) for turns in range(4)}
    found = [tuple(turn_square((image, image[..., 0].copy()), number)) for number in range(8)]
    assert {picture.tobytes() for picture, _ in found} == ways
    for picture, mask in found:
        np.testing.assert_array_equal(picture[..., 0], mask)


def test_augmentation_same_seed_pickled_gives_same_pair() -> None:
    augmentation = Augmentation(name="light")
    copy = pickle.loads(pickle.dumps(augmentation))
    image, mask = pair()
    augmentation(image, mask, 1)
    for seed in range(10):
        left, right = augmentation(image, mask, seed), copy(image, mask, seed)
        np.testing.assert_array_equal(left.image, right.image)
        np.testing.assert_array_equal(left.mask, right.mask)
        assert left.changes == right.changes


def test_augmentation_none_is_identity() -> None:
    image, mask = pair()
    new_image, new_mask = augment("none", image, mask, 5)
    np.testing.assert_array_equal(new_image, image)
    np.testing.assert_array_equal(new_mask, mask)


def test_augmentation_unknown_name_raises() -> None:
    with pytest.raises(ConfigError, match=r"augment\.name=heavy must be none, light, strong or stain"):
        Augmentation(name="heavy")  # type: ignore[arg-type]


def test_albumentations_import_makes_no_version_request() -> None:
    # The package has to be imported before the library: what would ask is made while that is imported.
    from albumentations import check_version

    assert check_version.opener is None


def test_find_seed_plain_index_uses_torch_generator() -> None:
    torch.manual_seed(4)
    first = find_seed(3)
    torch.manual_seed(4)
    assert find_seed(3) == first
    assert find_seed(3) != first
    assert find_item(3) == 3
    assert (find_item(Draw(2, 9)), find_seed(Draw(2, 9))) == (2, 9)


def test_draw_sampler_depends_on_seed_and_epoch_only() -> None:
    sampler = DrawSampler(10, seed=1)
    first, second = list(sampler), list(sampler)
    assert sorted(item for item, _ in first) == list(range(10))
    assert first != second
    later = DrawSampler(10, seed=1)
    later.set_epoch(1)
    assert list(later) == second
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(DrawSampler(10, seed=2)) != first
    assert len(sampler) == 10


def draw_stained_tissue() -> NDArray[np.uint8]:
    """Drawn tissue: eosin, nuclei of haematoxylin, and glass."""
    rng = np.random.default_rng(0)
    image = np.full((96, 96, 3), 255, np.uint8)
    image[:, :64] = np.clip(np.array([225, 150, 190]) + rng.integers(-12, 12, (96, 64, 1)), 0, 255)
    for x, y in rng.integers(4, 60, (40, 2)):
        image[y : y + 5, x : x + 5] = (110, 70, 140)
    return image


@pytest.mark.parametrize("name", ["stain", "strong"])
def test_augmentation_stain_keeps_structure(name: Any) -> None:
    """What is dark stays darker than what is light, and colours do change."""
    image = draw_stained_tissue()
    mask = (image[..., 1] < 100).astype(np.uint8)
    hues = []
    for seed in range(30):
        new, where = augment(name, image, mask, seed)
        tissue = new[..., 1] < 250
        assert set(np.unique(where)) <= {0, 1}
        dark, light = new[where == 1].mean(), new[(where == 0) & tissue].mean()
        assert dark < light - 20
        hues.append(new[where == 1].mean(axis=0))
    assert np.ptp(np.array(hues), axis=0).max() > 30


def test_augmentation_stain_keeps_glass_white() -> None:
    image = draw_stained_tissue()
    glass = (image == 255).all(axis=2).astype(np.uint8)
    for seed in range(30):
        new, where = augment("stain", image, glass, seed)
        assert new[where == 1].min() >= 250


@pytest.mark.parametrize("name", ["stain", "strong"])
def test_augmentation_ignored_pixels_stay_ignored(name: Any) -> None:
    image = draw_stained_tissue()
    mask = np.zeros((96, 96), np.uint8)
    mask[:30], mask[60:] = 1, 2
    for seed in range(10):
        assert set(np.unique(Augmentation(name=name)(image, mask, seed).mask)) <= {0, 1, 2}
