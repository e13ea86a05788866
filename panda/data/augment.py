"""Augmentation of image and mask together; its random choices follow the seed that each call gives."""

from __future__ import annotations

import random
from functools import cached_property
from typing import ClassVar, Literal

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from panda.settings import Settings

Name = Literal["none", "light", "strong", "stain"]


def none() -> A.Compose:
    """No change at all."""
    return A.Compose([])


def light() -> A.Compose:
    """One of the eight turns and mirrorings of a square, and mild changes of stain and brightness."""
    return A.Compose(
        [
            A.D4(p=1.0),
            A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.7, 1.3), hue=(-0.05, 0.05), p=0.8),
        ]
    )


def _stain(p: float) -> A.BasicTransform:
    """Another stain: haematoxylin and eosin are told apart in optical density, and made weaker or stronger.

    The vectors are those of a laboratory drawn at random (albumentations' `HEStain`, after Ruifrok and Johnston 2001
    and Tellez et al. 2018); glass stays as it is.
    """
    return A.HEStain(
        method="random_preset",
        intensity_scale_range=(0.7, 1.3),
        intensity_shift_range=(-0.1, 0.1),
        augment_background=False,
        p=p,
    )


def stain() -> A.Compose:
    """The turns of `light`, and another stain: for slides of other laboratories than those trained on."""
    return A.Compose([A.D4(p=1.0), _stain(0.9)])


def strong() -> A.Compose:
    """`stain`, and changes of size and angle, brightness, sharpness, noise and compression."""
    return A.Compose(
        [
            A.D4(p=1.0),
            A.Affine(scale=(0.8, 1.25), rotate=(-20, 20), border_mode=cv2.BORDER_REFLECT_101, p=0.5),
            _stain(0.7),
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.5),
            A.OneOf([A.GaussianBlur(blur_limit=(3, 5)), A.GaussNoise(std_range=(0.01, 0.04))], p=0.3),
            A.ImageCompression(quality_range=(50, 95), p=0.3),
        ]
    )


class Augmentation(Settings):
    """An augmentation by name, applied to the image and its mask together.

    Attributes:
        name: `"none"`, `"light"`, `"strong"` or `"stain"` (see the functions of these names).
    """

    node: ClassVar[str] = "augment"

    name: Name = "light"

    @cached_property
    def pipeline(self) -> A.Compose:
        """The transforms."""
        return {"none": none, "light": light, "strong": strong, "stain": stain}[self.name]()

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Augment a pair.

        Args:
            image: (s, s, 3) uint8 RGB, square.
            mask: (s, s) uint8; it is turned with the image, its values stay.
            seed: Of the random choices; the same seed gives the same result.

        Returns:
            Image and mask of the same shapes.
        """
        # One shared pair of generators: seeding each transform alike would tie their choices together.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = self.pipeline(image=image, mask=mask)
        return result["image"], result["mask"]

    def image(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Augment an image that has no mask.

        Args:
            image: (s, s, 3) uint8 RGB, square.
            seed: Of the random choices.

        Returns:
            The image, of the same shape.
        """
        return self(image, np.zeros(image.shape[:2], dtype=np.uint8), seed)[0]
