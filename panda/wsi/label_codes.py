"""Say which codes the channels of a label mask have, and which channel or provider they fit, if cancer is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from panda.wsi.geometry import cut_blocks
from panda.wsi.label_maps import find_label_map, get_label_maps
from panda.wsi.tiff.pyramid import TiffPyramid

_LARGEST = 4_000_000  # px of the mask level whose codes are listed
_CHANNELS = ("red", "green", "blue")


def describe_label(mask_path: Path | None, provider: str) -> str:
    """Say which codes a mask without cancer has, and which channel or provider fits them better, if any.

    Args:
        mask_path: The mask; None for none.
        provider: The provider that its slide is said to have.
    """
    if mask_path is None:
        return "it has no mask"
    try:
        channels = _list_codes(mask_path)
    except (OSError, ValueError) as error:
        return f"{mask_path} cannot be read: {error}"
    own, others = find_label_map(provider), get_label_maps()
    red = channels[0]
    if set(red) & set(own.cancer):
        return f"{mask_path} labels cancer, but none in a patch: lower data.min_tissue, or try another data.seed"
    text = f"{mask_path} has the codes {_join(red)} in its red channel, cancer of {provider} is {_join(own.cancer)}"
    for name, codes in zip(_CHANNELS[1:], channels[1:], strict=False):
        if set(codes) <= own.names.keys() and set(codes) & set(own.cancer):
            return f"{text}; its {name} channel has {_join(codes)} and looks like the label: write that to the red one"
    fitting = [
        f"{name} (cancer is {_join(label_map.cancer)})"
        for name, label_map in others.items()
        if name != provider and set(red) <= label_map.names.keys() and set(red) & set(label_map.cancer)
    ]
    if fitting:
        return f"{text}; these codes fit data_provider {' or '.join(fitting)}: correct data_provider if it is that"
    return text


def _list_codes(mask_path: Path) -> list[list[int]]:
    """Return the codes in each channel of a mask, at its finest level of moderate size."""
    tiff = TiffPyramid(mask_path)
    try:
        sizes = tiff.level_dimensions
        level = next((at for at, (width, height) in enumerate(sizes) if width * height <= _LARGEST), len(sizes) - 1)
        found: list[set[int]] = [set() for _ in range(tiff.samples)]
        for window in cut_blocks(*sizes[level]):
            pixels = tiff.read(level, *window, keep=False)
            for channel, codes in enumerate(found):
                codes.update(np.unique(pixels[..., channel]).tolist())
        return [sorted(codes) for codes in found]
    finally:
        tiff.close()


def _join(codes: Sequence[int]) -> str:
    return ", ".join(map(str, codes))
