"""The window that weights a tile where it is blended with its neighbours."""

from __future__ import annotations

import functools
import threading

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray
from torch import Tensor

from panda.inference.buffers import Buffers

WINDOW_FLOOR = 0.01
"""Smallest weight along one axis: a pixel that only the rim of one tile covers still gets a value."""

_PATTERNS = 24
"""Arrangements of tiles over a block whose weights are cached. With 25 % overlap there are nine inside a full grid."""


def blend_window(patch_size: int, overlap: int) -> NDArray[np.float32]:
    """Return the weights of a tile along one axis: a raised cosine over the overlap, flat between.

    The weight of a pixel is the product of both axes. It is positive, so every pixel that a tile covers gets a value.

    Args:
        patch_size: Side of a tile in working px.
        overlap: Working px that neighbouring tiles share, `patch_size - stride`; 0 gives a flat window.

    Returns:
        (patch_size,) float32, symmetric, in [0.01, 1].
    """
    if not 0 <= overlap < patch_size:
        raise ValueError(f"overlap is {overlap} px; it must be at least 0 and less than the patch, {patch_size}")
    if overlap == 0:
        return np.ones(patch_size, np.float32)
    centre = np.arange(patch_size) + 0.5
    to_edge = np.minimum(centre, patch_size - centre)
    ramp = np.clip(to_edge / min(overlap, patch_size / 2), 0, 1)
    return np.asarray(WINDOW_FLOOR + (1 - WINDOW_FLOOR) * (0.5 - 0.5 * np.cos(np.pi * ramp)), np.float32)


class Window:
    """Weights of a tile, and of blocks that tiles touch; several threads may use it.

    Args:
        patch_size: Side of a tile in working px.
        overlap: See `blend_window`.
        device: Where tiles are blended.
        buffers: Memory of sums, on the device.

    Attributes:
        weights: Weights of a tile, (patch_size, patch_size) float32.
    """

    def __init__(self, patch_size: int, overlap: int, device: torch.device, buffers: Buffers) -> None:
        along = torch.from_numpy(blend_window(patch_size, overlap)).to(device)
        self.weights = torch.outer(along, along)
        self._buffers = buffers
        self._known: LRUCache[object, Tensor] = LRUCache(_PATTERNS)
        self._lock = threading.Lock()

    def find_overlap(self, shape: tuple[int, int], at: tuple[int, int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the px that a block and a tile share: in the block, and in the tile.

        Args:
            shape: Height and width of the block.
            at: Top and left of the tile in px of the block.
        """
        patch = len(self.weights)
        inside = tuple(slice(max(0, start), min(side, start + patch)) for side, start in zip(shape, at, strict=True))
        own = tuple(slice(part.start - start, part.stop - start) for part, start in zip(inside, at, strict=True))
        return inside, own

    def sum_weights(self, shape: tuple[int, int], touching: list[tuple[int, int]]) -> Tensor:
        """Return the sum of weights of each px of a block, 0 for px that no tile covers.

        Args:
            shape: Height and width of the block.
            touching: Top and left of its tiles in px of the block.
        """
        pattern = shape, tuple(touching)
        with self._lock:
            if pattern not in self._known:
                sums = self._buffers.zeros(shape)
                for at in touching:
                    inside, own = self.find_overlap(shape, at)
                    sums[inside] += self.weights[own]
                self._known[pattern] = sums
            return self._known[pattern]


@functools.lru_cache(maxsize=1)
def get_window(patch_size: int, overlap: int, device: torch.device) -> Window:
    """Return the window of tiles of a size, which the canvases of one slide after another share."""
    return Window(patch_size, overlap, device, Buffers(device))
