"""The levels of a file, and the part of each that is the slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from panda.wsi.geometry import ceil_px, level_scale, round_px

Size = tuple[int, int]
Bounds = tuple[int, int, int, int]
"""x, y, width and height of the part of a file that is the slide, in level-0 px of the file."""


@dataclass(frozen=True)
class Levels:
    """The levels of a slide, level 0 first.

    Attributes:
        file_sizes: (width, height) of each level of the file in px of that level.
        downsamples: Level-0 px per px of each level, from the sizes in the file.
        usable: The levels that shrink level 0 uniformly.
        origins: (x, y) of the slide's corner in px of each level of the file, rounded.
        sizes: (width, height) of the slide in px of each level.
    """

    file_sizes: tuple[Size, ...]
    downsamples: tuple[float, ...]
    usable: tuple[int, ...]
    origins: tuple[Size, ...]
    sizes: tuple[Size, ...]

    @classmethod
    def cut(cls, file_sizes: Sequence[Size], bounds: Bounds | None) -> Levels:
        """Cut the levels of a file to its bounds; without bounds the slide is the whole file.

        Downsamples come from the whole file, because the rounded size of a part would change them.
        """
        scales = [level_scale(file_sizes[0], size) for size in file_sizes]
        downsamples = tuple(downsample for downsample, _ in scales)
        usable = tuple(level for level, (_, deviation) in enumerate(scales) if deviation <= 1)
        if bounds is None:
            return cls(tuple(file_sizes), downsamples, usable, ((0, 0),) * len(file_sizes), tuple(file_sizes))
        origins, sizes = [], []
        for size, by in zip(file_sizes, downsamples, strict=True):
            left, top, width, height = (side / by for side in bounds)
            origins.append((min(round_px(left), size[0] - 1), min(round_px(top), size[1] - 1)))
            cut = min(ceil_px(width), size[0] - origins[-1][0]), min(ceil_px(height), size[1] - origins[-1][1])
            sizes.append((max(cut[0], 1), max(cut[1], 1)))
        return cls(tuple(file_sizes), downsamples, usable, tuple(origins), tuple(sizes))


def describe_frame(bounds: Bounds | None) -> str:
    """Return what the level-0 px of a slide are, in words."""
    if bounds is None:
        return "level-0 px of the whole file"
    x, y, width, height = bounds
    return (
        f"level-0 px from the corner of the bounds that the file states, as in QuPath: {width} x {height} px at "
        f"({x}, {y}); add {x} and {y} for level-0 px of the whole file, as in OpenSlide and ASAP"
    )
