"""Augmentation of image and mask together, with a seed for the random choices of each call."""

from __future__ import annotations

import random
from functools import cached_property
from typing import Any, ClassVar, Literal

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from panda.settings import Settings
from panda.wsi.stain_variation import vary_stain

Name = Literal["none", "light", "strong", "stain"]


def make_none() -> A.Compose:
    """Change nothing."""
    return A.Compose([])


def make_light() -> A.Compose:
    """Rotate or mirror the square patch, and change colour and brightness slightly."""
    return A.Compose(
        [
            A.D4(p=1.0),
            A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.7, 1.3), hue=(-0.05, 0.05), p=0.8),
        ]
    )


class StainChange(A.ImageOnlyTransform):  # type: ignore[misc]
    """Make haematoxylin and eosin weaker or stronger and turn their colours, see `panda.wsi.stain_variation`.

    Factors and turns are drawn evenly, each by itself.
    """

    strength_range = (0.7, 1.3)
    most_turn = 0.08

    def get_params(self) -> dict[str, Any]:
        """Draw the factors, (2,), and the turns, (2, 3), of the two stains."""
        strength = self.random_generator.uniform(*self.strength_range, 2)
        return {"strength": strength, "turn": self.random_generator.uniform(-self.most_turn, self.most_turn, (2, 3))}

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        """Change the stains of an image, (h, w, 3) uint8 RGB."""
        return vary_stain(img, params["strength"], params["turn"])


def make_stain() -> A.Compose:
    """Rotate or mirror, and change the stain: for slides of laboratories that are not in training."""
    return A.Compose([StainChange(p=0.9), A.D4(p=1.0)])


def make_strong() -> A.Compose:
    """Change as in `stain`, and also scale, angle, brightness, sharpness, noise and compression."""
    return A.Compose(
        [
            StainChange(p=0.7),
            A.D4(p=1.0),
            A.Affine(scale=(0.8, 1.25), rotate=(-20, 20), border_mode=cv2.BORDER_REFLECT_101, p=0.5),
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.5),
            A.OneOf([A.GaussianBlur(blur_limit=(3, 5)), A.GaussNoise(std_range=(0.01, 0.04))], p=0.3),
            A.ImageCompression(quality_range=(50, 95), p=0.3),
        ]
    )


class Augmentation(Settings):
    """An augmentation by name, applied to the image and its mask together; see `make_none` and so on."""

    node: ClassVar[str] = "augment"

    name: Name = "light"

    @cached_property
    def pipeline(self) -> A.Compose:
        """The transforms."""
        return {"none": make_none, "light": make_light, "strong": make_strong, "stain": make_stain}[self.name]()

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Augment a pair; the same seed gives the same result.

        Args:
            image: Square image, (s, s, 3) uint8 RGB.
            mask: Its mask, (s, s) uint8; it is rotated with the image and keeps its values.
            seed: Seed of the random choices.

        Returns:
            Image and mask of the same shapes.
        """
        # One pair of generators for all transforms: the same seed for each would correlate their choices.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = self.pipeline(image=image, mask=mask)
        return result["image"], result["mask"]

    def augment_image(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Augment a square image, (s, s, 3) uint8 RGB, without a mask."""
        return self(image, np.zeros(image.shape[:2], dtype=np.uint8), seed)[0]
