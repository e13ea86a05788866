"""Augmentation of image and mask together, with a seed for the random choices of each call.

Patches are turned and scaled where they are read. Their colours are changed later, in batches on the device of the
network: what is drawn here is a list of changes, see `panda.data.colour_changes`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from panda.data.colour_changes import Change
from panda.settings import Settings

Name = Literal["none", "light", "strong", "stain"]
STRENGTH = (0.7, 1.3)
"""Range of the factors of haematoxylin and eosin."""
MOST_TURN = 0.08
"""Largest change of the optical density of a stain in each channel, see `panda.wsi.stain_variation`."""


def draw_light(rng: np.random.Generator) -> list[Change]:
    """Draw slight changes of colour and brightness, in random order."""
    if rng.random() >= 0.8:
        return []
    ranges = {"brightness": (0.8, 1.2), "contrast": (0.8, 1.2), "saturation": (0.7, 1.3), "hue": (-0.05, 0.05)}
    changes = [Change(name, (rng.uniform(*limits),)) for name, limits in ranges.items()]
    return [changes[number] for number in rng.permutation(len(changes))]


def draw_stain(rng: np.random.Generator, p: float = 0.9) -> list[Change]:
    """Draw another stain with probability p: for slides of laboratories that are not in training.

    Haematoxylin and eosin become weaker or stronger and turn their colours. Factors and turns are drawn evenly, each
    by itself.
    """
    if rng.random() >= p:
        return []
    return [Change("stain", (*rng.uniform(*STRENGTH, 2).tolist(), *rng.uniform(-MOST_TURN, MOST_TURN, 6).tolist()))]


def draw_strong(rng: np.random.Generator) -> list[Change]:
    """Draw a stain as in `stain`, and also brightness, sharpness, noise and compression."""
    changes = draw_stain(rng, 0.7)
    if rng.random() < 0.5:
        changes.append(Change("brightness and contrast", (1 + rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15))))
    if rng.random() < 0.3:
        if rng.random() < 0.5:
            changes.append(Change("blur", (rng.uniform(0.5, 3.0), int(rng.choice([1, 2, 2])))))
        else:
            changes.append(Change("noise", (rng.uniform(0.01, 0.04), int(rng.integers(2**62)))))
    if rng.random() < 0.3:
        changes.append(Change("compression", (int(rng.integers(50, 96)),)))
    return changes


_COLOURS = {"none": lambda rng: [], "light": draw_light, "stain": draw_stain, "strong": draw_strong}


class Augmented(NamedTuple):
    """An image (s, s, 3) uint8 RGB and its mask (s, s) uint8, turned, and the changes that its colours still need."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    changes: list[Change]


class Augmentation(Settings):
    """An augmentation by name, applied to the image and its mask together.

    `light` turns or mirrors the square patch, and changes colour and brightness slightly. `stain` turns or mirrors, and
    changes the stain. `strong` does that too, and also changes scale, angle, brightness, sharpness, noise and
    compression. `none` changes nothing.
    """

    node: ClassVar[str] = "augment"

    name: Name = "light"

    @cached_property
    def _affine(self) -> A.Compose:
        """The change of scale and angle."""
        return A.Compose([A.Affine(scale=(0.8, 1.25), rotate=(-20, 20), border_mode=cv2.BORDER_REFLECT_101, p=0.5)])

    def __call__(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int) -> Augmented:
        """Turn a pair and draw the changes of its colours; the same seed gives the same result.

        Args:
            image: Square image, (s, s, 3) uint8 RGB.
            mask: Its mask, (s, s) uint8; it is turned with the image and keeps its values.
            seed: Seed of the random choices.
        """
        # One generator for all transforms: the same seed for each would correlate their choices.
        rng = np.random.default_rng(seed)
        changes = _COLOURS[self.name](rng)
        if self.name != "none":
            image, mask = turn_square((image, mask), int(rng.integers(8)))
        if self.name == "strong":
            self._affine.set_random_state(rng, random.Random(seed))
            result = self._affine(image=image, mask=mask)
            image, mask = result["image"], result["mask"]
        return Augmented(image, mask, changes)


def turn_square(pictures: Sequence[NDArray[np.uint8]], number: int) -> Iterator[NDArray[np.uint8]]:
    """Turn and mirror square pictures in one of the 8 ways. OpenCV is ten times as fast as a copy by NumPy."""
    flips: dict[int, int] = {2: 0, 4: 1, 6: -1}
    for picture in pictures:
        turned = cv2.transpose(picture) if number & 1 else picture
        yield np.asarray(cv2.flip(turned, flips[number & 6]) if number & 6 else turned, np.uint8)
