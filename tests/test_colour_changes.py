"""Changes of colour in batches, against albumentations and OpenCV."""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from albumentations.augmentations.blur import functional as blurs
from albumentations.augmentations.pixel import functional as pixels
from numpy.typing import NDArray

from panda.data.augment import Augmentation
from panda.data.colour_changes import OPERATIONS, Change, apply_changes
from panda.data.image_batch import ImageBatch
from panda.wsi.stain_normalization import REFERENCE
from panda.wsi.stain_variation import GLASS_MAGENTA, STAINED_MAGENTA

Picture = NDArray[np.uint8]


def draw_tissue(side: int = 96) -> Picture:
    """Draw smooth patches of tissue colours, nuclei and glass."""
    rng = np.random.default_rng(0)
    coarse = np.array([225, 150, 190]) + rng.normal(0, 25, (side // 8, side // 8, 3))
    coarse[: side // 24] = 245
    image = cv2.resize(coarse.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    for x, y in rng.integers(side // 3, side - 6, (40, 2)):
        image[y : y + 5, x : x + 5] = (110, 70, 140)
    return np.asarray(np.clip(image + rng.normal(0, 3, image.shape), 0, 255), np.uint8)


def change(image: Picture, name: str, *parameters: float) -> NDArray[np.float32]:
    """Apply one change to one image."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return apply_changes(batch, [[Change(name, parameters)]])[0].permute(1, 2, 0).numpy()


def compress(image: Picture, quality: int) -> Picture:
    """Compress by libjpeg; OpenCV takes and gives BGR."""
    _, data = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    return np.asarray(decoded, np.uint8)


def blur(image: Picture, sigma: float, reach: float) -> Picture:
    kernel = blurs.create_gaussian_kernel_1d(sigma, 1 + 2 * int(reach))
    return np.asarray(pixels.separable_convolve(image, kernel=kernel), np.uint8)


ORACLES: dict[str, Any] = {
    "brightness": pixels.adjust_brightness_torchvision,
    "contrast": pixels.adjust_contrast_torchvision,
    "saturation": pixels.adjust_saturation_torchvision,
    "hue": pixels.adjust_hue_torchvision,
    "blur": blur,
    "compression": compress,
    "brightness and contrast": lambda image, factor, shift: A.RandomBrightnessContrast(p=1).apply(
        image, factor, shift * 255
    ),
}


@pytest.mark.parametrize(
    ("name", "parameters", "mean", "most"),
    [
        ("brightness", (1.2,), 0.6, 1.01),
        ("brightness", (0.8,), 0.6, 1.01),
        ("contrast", (0.8,), 0.6, 1.51),
        ("contrast", (1.2,), 0.6, 1.51),
        ("saturation", (0.7,), 0.6, 1.51),
        ("saturation", (1.3,), 0.6, 1.51),
        ("hue", (0.05,), 1.2, 5),  # OpenCV's hue has steps of two degrees
        ("hue", (-0.05,), 1.2, 5),
        ("brightness and contrast", (1.15, -0.15), 0.6, 1.01),
        ("brightness and contrast", (0.85, 0.15), 0.6, 1.01),
        ("blur", (0.5, 1), 0.6, 1.01),
        ("blur", (3.0, 2), 0.6, 1.01),
        ("compression", (50,), 0.6, 20),
        ("compression", (95,), 1.0, 8),
    ],
)
def test_change_fixed_parameters_equals_oracle(name: str, parameters: Any, mean: float, most: float) -> None:
    image = draw_tissue()
    found, expected = change(image, name, *parameters), ORACLES[name](image.copy(), *parameters).astype(np.float32)
    difference = np.abs(found - expected)
    assert difference.mean() < mean
    assert difference.max() < most
    assert np.abs(found - image).mean() > 0.5


def test_change_stain_equals_formula_of_optical_density() -> None:
    image = draw_tissue().astype(np.float64)
    old, strength = np.array([REFERENCE.haematoxylin, REFERENCE.eosin]), np.array([0.7, 1.3])
    turn = np.array([[0.05, -0.03, 0.08], [-0.08, 0.02, 0.04]])
    new = (old + turn) / np.linalg.norm(old + turn, axis=1, keepdims=True) * np.linalg.norm(old, axis=1, keepdims=True)
    density = -np.log(np.maximum(image, 1) / 255)
    amounts = np.clip(density @ np.linalg.pinv(old), 0, 3)
    magenta = np.maximum(image[..., 0], image[..., 2]) - image[..., 1]
    share = np.clip((magenta - GLASS_MAGENTA) / (STAINED_MAGENTA - GLASS_MAGENTA), 0, 1)
    share = share**2 * (3 - 2 * share)
    expected = image * np.exp(share[..., None] * (amounts @ (old - new * strength[:, None])))
    found = change(draw_tissue(), "stain", *strength, *turn.ravel())
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=0.01)


def test_change_noise_has_asked_deviation_and_follows_seed() -> None:
    gray = np.full((96, 96, 3), 128, np.uint8)
    first = change(gray, "noise", 0.03, 5)
    assert first.std() == pytest.approx(0.03 * 255, rel=0.02)
    assert first.mean() == pytest.approx(128, abs=0.2)
    np.testing.assert_array_equal(first, change(gray, "noise", 0.03, 5))
    assert not np.array_equal(first, change(gray, "noise", 0.03, 6))


def test_change_hue_by_whole_turns_keeps_every_colour() -> None:
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(52, -1, 3)
    np.testing.assert_allclose(change(colours, "hue", 1.0), colours, atol=0.01)
    np.testing.assert_allclose(change(colours, "hue", 1 / 3), np.roll(colours, 1, axis=2), atol=0.01)


@pytest.mark.parametrize("size", [(31, 64), (40, 50), (200, 1000)])
def test_changes_any_size_keep_shape(size: tuple[int, int]) -> None:
    parameters = {
        "stain": (0.8, 1.2, *(0.02,) * 6), "blur": (1.0, 2), "noise": (0.02, 1), "compression": (70,),
        "brightness and contrast": (1.1, 0.0), "brightness": (1.1,), "contrast": (1.1,), "saturation": (1.1,),
        "hue": (0.02,),
    }  # fmt: skip
    assert parameters.keys() == OPERATIONS.keys()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for name, given in parameters.items():
        found = change(image, name, *given)
        assert found.shape == image.shape
        assert 0 <= found.min() <= found.max() <= 255


def draw_batch(name: Any, seeds: range) -> ImageBatch:
    augmentation, image = Augmentation(name=name), draw_tissue(64)
    mask = np.zeros(image.shape[:2], np.uint8)
    drawn = [augmentation(image, mask, seed) for seed in seeds]
    return ImageBatch(torch.from_numpy(np.stack([each.image for each in drawn])), [each.changes for each in drawn])


@pytest.mark.parametrize("name", ["light", "stain", "strong"])
def test_convert_batch_equals_single_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In groups, as on a GPU, and one by one, as on a CPU."""
    batch = draw_batch(name, range(24))
    single = torch.cat([ImageBatch(batch.pixels[n : n + 1], [batch.changes[n]]).convert() for n in range(24)])
    assert torch.equal(batch.convert(), single)
    monkeypatch.setattr("panda.data.colour_changes._CHANGED_ONE_BY_ONE", ())
    torch.testing.assert_close(batch.convert(), single, rtol=0, atol=1e-4 if name != "strong" else 0.02)
    assert (batch.convert() - single).abs().mean() < 1e-5


class Compression(A.ImageCompression):  # type: ignore[misc]
    """Compresses red as red, as `compress`."""

    def apply(self, img: Picture, quality: int, **_: Any) -> Picture:
        return compress(img, quality)


OLD_COLOURS = {
    "light": [
        A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.7, 1.3), hue=(-0.05, 0.05), p=0.8)
    ],
    "strong": [
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.5),
        A.OneOf([A.GaussianBlur(blur_limit=(3, 5)), A.GaussNoise(std_range=(0.01, 0.04))], p=0.3),
        Compression(quality_range=(50, 95), p=0.3),
    ],
}


def describe(images: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return mean and deviation of each channel of images (N, h, w, 3), and the steps between neighbours, (N, 7)."""
    steps = np.abs(np.diff(images.astype(np.float64), axis=2)).mean((1, 2, 3))
    return np.column_stack([images.mean((1, 2)), images.std((1, 2)), steps])


@pytest.mark.parametrize("name", ["light", "strong"])
def test_changes_distribution_equals_albumentations(name: str) -> None:
    """Mean and deviation over draws, each within four standard errors of a sample of that size."""
    count, image = 1500, draw_tissue(64)
    pipeline = A.Compose(OLD_COLOURS[name], seed=1)
    old = describe(np.stack([pipeline(image=image)["image"] for _ in range(count)]))
    batch = draw_batch(name, range(count))
    changes = [[each for each in mine if each.name != "stain"] for mine in batch.changes]
    images = torch.from_numpy(image).expand(count, -1, -1, -1)
    new = describe(ImageBatch(images, changes).convert().permute(0, 2, 3, 1).numpy() * 255)
    error = old.std(axis=0) * np.sqrt(2 / count)
    assert (np.abs(new.mean(axis=0) - old.mean(axis=0)) < 4 * error + 0.3).all()
    np.testing.assert_allclose(new.std(axis=0), old.std(axis=0), rtol=0.12)
