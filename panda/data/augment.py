"""Augmentation of image and mask together; its random choices follow the seed that each call gives."""

from __future__ import annotations

import random
from typing import Literal

import albumentations as A
import numpy as np
from numpy.typing import NDArray

from panda.errors import ConfigError

Name = Literal["none", "light"]


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


class Augmentation:
    """An augmentation by name, applied to the image and its mask together.

    Args:
        name: ``"none"`` or ``"light"`` (see the functions of these names).

    Raises:
        ConfigError: no augmentation has this name.
    """

    def __init__(self, name: Name = "light") -> None:
        pipelines = {"none": none, "light": light}
        if name not in pipelines:
            raise ConfigError(f"augment.name is {name!r}: give {' or '.join(pipelines)}")
        self.name = name
        self.pipeline = pipelines[name]()

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Augment a pair.

        Args:
            image: (s, s, 3) uint8 RGB, square.
            mask: (s, s) uint8; it is turned with the image, its values stay.
            seed: of the random choices; the same seed gives the same result.

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
            seed: of the random choices.

        Returns:
            The image, of the same shape.
        """
        return self(image, np.zeros(image.shape[:2], dtype=np.uint8), seed)[0]
