"""Colours of the classes of cancer, in pictures and exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from panda.inference.codes import choose_classes
from panda.inference.legends import COLOUR_MAPS, PAPER, ColourMap, colorize
from panda.wsi.classes import ClassSet

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

TUMOR_COLOUR = (200, 0, 0)
"""The colour of QuPath's own class "Tumor"."""

PATTERN_COLOURS: Mapping[int, Colour] = MappingProxyType(
    {1: (190, 225, 110), 2: (60, 170, 80), 3: (30, 175, 245), 4: (255, 170, 0), 5: (222, 20, 30)}
)
"""Colour of each Gleason pattern. 3, 4 and 5 differ in hue and lightness, so they are distinct with any colour vision
and on stained tissue."""


def find_class_colour(patterns: Sequence[int]) -> Colour:
    """Return the colour of a class with these patterns: that of the highest, so no two classes have the same."""
    return PATTERN_COLOURS[max(patterns)]


def make_class_tables(classes: ClassSet, colour_map: ColourMap, *, fades: bool = False) -> NDArray[np.uint8]:
    """Return the colours of probabilities 0..1 in steps of 1/255, for each class of cancer, (k, 256, 3) uint8 RGB.

    One class of cancer has the colours of `colour_map`. Several have one colour each, which fades to white towards
    probability 0 if `fades`.
    """
    if classes.is_binary:
        return COLOUR_MAPS[colour_map][None]
    colours = [find_class_colour(classes.patterns[name]) for name in classes.cancer_names]
    return np.stack([make_class_table(colour, fades=fades) for colour in colours])


def make_class_table(colour: Colour, *, fades: bool) -> NDArray[np.uint8]:
    """Return the colours of one class, (256, 3) uint8 RGB, see `make_class_tables`."""
    share = np.linspace(0, 1, 256)[:, None] if fades else np.ones((256, 1))
    return np.rint((1 - share) * PAPER + share * colour).astype(np.uint8)


def paint_classes(by_class: NDArray[np.float32], classes: ClassSet, tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paint each px in the colours of its class of cancer at the probability of cancer.

    Args:
        by_class: Probability of each class of cancer, (k, h, w).
        classes: The classes.
        tables: See `make_class_tables`.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    prob, chosen = by_class.sum(axis=0), choose_classes(by_class, classes)
    image = colorize(prob, tables[0])
    for number, table in enumerate(tables[1:], start=2):
        np.copyto(image, colorize(prob, table), where=(chosen == number)[..., None])
    return image


def encode_map(by_class: NDArray[np.float32], share: NDArray[np.float32], classes: ClassSet) -> NDArray[np.uint8]:
    """Encode a map for the scripts of pages, which colour it at any threshold.

    Args:
        by_class: Probability of each class of cancer, (k, h, w).
        share: Share of each px that is scored tissue, (h, w).
        classes: The classes.

    Returns:
        (h, w, 3) uint8. Red is 255 × probability of cancer. Green is 0 unless at least half of the px is scored
        tissue; it is 255 for the first class of cancer, 254 for the second, and so on. Blue is 0.
    """
    planes = np.zeros((*share.shape, 3), np.uint8)
    planes[..., 0] = np.rint(np.minimum(by_class.sum(axis=0), 1) * 255)
    planes[..., 1] = (255 - (choose_classes(by_class, classes) - 1)) * (share >= 0.5)
    return planes
