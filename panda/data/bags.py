"""Bags: the tiles of one slide, read from the slide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panda.wsi.geometry import Resolution
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import StainProfile, normalize_stain


def read_bag(
    slide: Slide, coords: NDArray[np.int64], resolution: Resolution, tile_size: int, stain: StainProfile | None = None
) -> NDArray[np.float32]:
    """Read the tiles of a bag.

    Args:
        slide: The slide.
        coords: Top-left corners, (K, 2), level-0 px.
        resolution: Resolution of the tiles.
        tile_size: Side of a tile in px at that resolution.
        stain: Stain of the slide, to change its colours to those of the reference; None to leave them unchanged.

    Returns:
        Tiles, (K, 3, h, w) float32 in [0, 1], RGB; white past the slide's edge.

    Raises:
        SlideError: If the slide cannot be read.
    """
    bag = np.empty((len(coords), 3, tile_size, tile_size), dtype=np.float32)
    for number, tile in enumerate(read_tiles(slide, coords, resolution, tile_size, stain)):
        bag[number] = convert_to_planes(tile)
    return bag


def read_tiles(
    slide: Slide, coords: NDArray[np.int64], resolution: Resolution, tile_size: int, stain: StainProfile | None
) -> list[NDArray[np.uint8]]:
    """Read the tiles of a bag as a list of (h, w, 3) uint8, see `read_bag`."""
    tiles = [slide.read(resolution, (x, y), (tile_size, tile_size)) for x, y in coords.tolist()]
    return tiles if stain is None else [normalize_stain(tile, stain) for tile in tiles]


def convert_to_planes(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert (h, w, 3) uint8 to (3, h, w) float32 in [0, 1]."""
    return tile.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)
