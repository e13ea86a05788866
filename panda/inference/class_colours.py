"""Colours of the classes of cancer, in pictures and exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

TUMOR_COLOUR = (200, 0, 0)
"""The colour of QuPath's own class "Tumor"."""

PATTERN_COLOURS: Mapping[int, Colour] = MappingProxyType(
    {1: (190, 225, 110), 2: (60, 170, 80), 3: (30, 175, 245), 4: (255, 145, 0), 5: (196, 0, 26)}
)
"""Colour of each Gleason pattern. 3, 4 and 5 differ in hue and lightness, so they are distinct with any colour vision
and on stained tissue."""


def find_class_colour(patterns: Sequence[int]) -> Colour:
    """Return the colour of a class with these patterns: that of the highest, so no two classes have the same."""
    return PATTERN_COLOURS[max(patterns)]
