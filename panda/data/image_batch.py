"""Batches as they travel from a loader to the device: uint8 images, and the changes of their colours.

They take a quarter of the bytes of float images. Conversion and changes happen on the device, in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from panda.data.colour_changes import WHITE, Change, apply_changes
from panda.data.loaders import Draw


class ImageBatch:
    """Images and the changes that their colours still need.

    Lightning and torch move it by `to` and `pin_memory`. It is no tensor, so that no precision changes it on its way.

    Args:
        pixels: (N, h, w, 3) uint8 RGB.
        changes: Those of each image.
    """

    def __init__(self, pixels: Tensor, changes: Sequence[Sequence[Change]]) -> None:
        self.pixels = pixels
        self.changes = changes

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> ImageBatch:
        """Return the batch on a device; a copy to a GPU does not wait."""
        return ImageBatch(self.pixels.to(device, non_blocking=True), self.changes)

    def pin_memory(self) -> ImageBatch:
        """Return the batch in page-locked memory."""
        return ImageBatch(self.pixels.pin_memory(), self.changes)

    def convert(self) -> Tensor:
        """Apply the changes, and return the images as (N, 3, h, w) float32 in [0, 1]."""
        images = self.pixels.permute(0, 3, 1, 2)
        if any(self.changes):
            images = images.to(torch.float32, memory_format=torch.contiguous_format)
            return apply_changes(images, self.changes).div_(WHITE)
        return images.float().div_(WHITE)


T_co = TypeVar("T_co", covariant=True)


class Readable(Protocol[T_co]):
    """A set whose items can be read without converting them."""

    def __len__(self) -> int: ...

    def read(self, index: int | Draw) -> T_co:
        """Return an item as it is read."""


class RawItems(Dataset[T_co]):
    """The items of a set as they are read, for a loader."""

    def __init__(self, whole: Readable[T_co]) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int | Draw) -> T_co:
        return self.whole.read(index)


class RawPatch(NamedTuple):
    """A patch as it is read and turned: (h, w, 3) uint8 RGB, target (h, w) uint8 and the changes of its colours.

    The target is that of `panda.wsi.classes`.
    """

    image: NDArray[np.uint8]
    target: NDArray[np.uint8]
    changes: Sequence[Change]


PatchBatch = tuple[ImageBatch, Tensor]
"""Patches and their targets, (N, h, w) uint8."""


def stack_patches(patches: Sequence[RawPatch]) -> PatchBatch:
    """Return a batch of patches."""
    targets = torch.from_numpy(np.stack([patch.target for patch in patches]))
    return stack_images([patch.image for patch in patches], [patch.changes for patch in patches]), targets


def stack_images(images: Sequence[NDArray[np.uint8]], changes: Sequence[Sequence[Change]]) -> ImageBatch:
    """Return a batch of images (h, w, 3)."""
    return ImageBatch(torch.from_numpy(np.stack(images)), changes)


def convert_patches(batch: PatchBatch) -> tuple[Tensor, Tensor]:
    """Return images, (N, 3, h, w) float32 in [0, 1], and masks, (N, 1, h, w) float32.

    A mask has the number of a class, -1 for ignored px, and -2 for cancer of an unknown class: the targets of
    `panda.wsi.classes` as signed numbers.
    """
    images, targets = batch
    return images.convert(), targets.view(torch.int8).float()[:, None]


class RawBag(NamedTuple):
    """Tiles of a bag (k, h, w, 3) uint8 and their changes, or features (k, D) float32; mask, label and slide id."""

    tiles: Tensor
    changes: Sequence[Sequence[Change]]
    mask: Tensor
    label: Tensor
    slide_id: str


BagBatch = tuple[ImageBatch | Tensor, Tensor, Tensor, list[str]]
"""Tiles of all bags in a row, or features (B, k, D); mask (B, k); labels (B,) or (B, 2); slide ids."""


def stack_bags(bags: Sequence[RawBag]) -> BagBatch:
    """Return a batch of bags."""
    tiles, mask, label, slides = default_collate([(bag.tiles, bag.mask, bag.label, bag.slide_id) for bag in bags])
    if tiles.dtype == torch.uint8:
        tiles = ImageBatch(tiles.flatten(0, 1), [changes for bag in bags for changes in bag.changes])
    return tiles, mask, label, slides


def convert_bags(batch: BagBatch) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Return the batch with tiles as (B, k, 3, h, w) float32 in [0, 1]."""
    tiles, mask, label, slides = batch
    if isinstance(tiles, ImageBatch):
        images = tiles.convert()
        tiles = images.view(*mask.shape, *images.shape[1:])
    return tiles, mask, label, slides
