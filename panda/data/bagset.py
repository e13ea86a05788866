"""Bags as a dataset: at most K tiles of a slide with its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from panda.data.augment import Augmentation
from panda.data.bags import read_tiles
from panda.data.colour_changes import Change
from panda.data.feature_files import read_features
from panda.data.image_batch import RawBag, convert_bags, stack_bags
from panda.data.loaders import Draw, Workers, find_item, find_seed
from panda.data.manifest import SlideRecord
from panda.data.patients import BagUnit, choose_labelled, divide_tiles, group_bags, name_bag
from panda.data.settings import ResolutionSettings, SlideSettings
from panda.data.targets import ISUP, TargetSpec
from panda.data.tile_selection import sample_tiles
from panda.errors import ManifestError
from panda.settings import Count
from panda.wsi.stain_normalization import StainProfile


class BagSettings(ResolutionSettings, SlideSettings):
    """How bags are read and loaded. See the base classes for their fields.

    Attributes:
        k: Most tiles of a bag.
        tile_size: Side of a tile in px at the tiles' resolution.
        batch_size: Bags per batch.
        num_workers: Processes that load, for each loader; 0 for none; `"auto"`: see `count_workers`.
        seed: Draws the tiles of a slide whose feature file has more than k.
        bag: Whose tiles form one bag: those of a `slide`, or of all slides of a `patient`.
    """

    node: ClassVar[str] = "tiles"

    k: Count = 32
    tile_size: Count = 256
    batch_size: Count = 1
    num_workers: Workers = "auto"
    seed: int = 0
    bag: BagUnit = "slide"


@dataclass(frozen=True, eq=False)
class BagItem:
    """A slide and the tiles that represent it.

    Attributes:
        record: The slide.
        coords: Top-left corners, (n, 2) int64, level-0 px, the most important first.
        stain: Stain of the slide, to change its colours to those of the reference; None to leave them unchanged.
        features: A file with the features of the tiles, which are used instead of pixels; None for pixels.
        drawn_from: Number of tiles in a file of any slide's features, of which k are drawn; there are no `coords` then.
    """

    record: SlideRecord
    coords: NDArray[np.int64]
    stain: StainProfile | None = None
    features: Path | None = None
    drawn_from: int | None = None

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.coords) if self.drawn_from is None else self.drawn_from


class BagSet(Dataset[tuple[Tensor, Tensor, Tensor, str]]):
    """Bags of slides or patients with their label.

    An item is `(bag, mask, label, name)`. The bag is (k, 3, h, w) float32 in [0, 1], or (k, D) float32 if the items
    have features. The mask is (k,) bool, False for padding (zeros) if there are fewer tiles. The label is that of
    `TargetSpec.read_label`, the highest one of several slides. The name is the slide id, or the patient.

    Args:
        items: Slides with their tiles. If a slide has more than its part of k, see `divide_tiles`, the first are used.
        settings: How the tiles are read.
        transform: Applied to each tile by itself, None for none; see `panda.data.patchset.PatchSet`.
        target: What the labels are.

    Raises:
        ManifestError: If there are no items, or one has no tiles or no label.
        SlideError: On access, if a slide cannot be read.
    """

    def __init__(
        self,
        items: Sequence[BagItem],
        settings: BagSettings,
        transform: Augmentation | None = None,
        target: TargetSpec = ISUP,
    ) -> None:
        if not items:
            raise ManifestError("no slides to make bags of")
        for item in items:
            if item.count == 0:
                raise ManifestError(f"{item.record.slide_id}: no tiles; lower tiles.min_tissue or leave it out")
        self.bags = [[item] for item in items]
        if settings.bag == "patient":
            self.bags = list(group_bags(items, lambda item: item.record, "patient").values())
        self.names = [name_bag(bag[0].record, settings.bag) for bag in self.bags]
        self.parts = [divide_tiles(settings.k, len(bag)) for bag in self.bags]
        self.labels = [target.read_label(choose_labelled([item.record for item in bag], target)) for bag in self.bags]
        self.settings = settings
        # No bag has more tiles than the one with the most.
        self.k = max(
            sum(min(item.count, part) for item, part in zip(bag, parts, strict=True))
            for bag, parts in zip(self.bags, self.parts, strict=True)
        )
        self.transform = transform

    def __len__(self) -> int:
        return len(self.bags)

    def read(self, index: int | Draw) -> RawBag:
        """Read and turn the tiles of a bag, whose colours still need the changes of `transform`."""
        number = find_item(index)
        size = self.settings.tile_size
        label, name = self.labels[number], self.names[number]
        bag = list(zip(self.bags[number], self.parts[number], strict=True))
        if bag[0][0].features is not None:
            found = np.concatenate([self._read_features(item, part) for item, part in bag])
            padded = torch.from_numpy(np.pad(found, ((0, self.k - len(found)), (0, 0))))
            return RawBag(padded, (), torch.arange(self.k) < len(found), label, name)
        tiles = [tile for item, part in bag for tile in self._read_tiles(item, part)]
        changes: list[list[Change]] = [[] for _ in range(self.k)]
        if self.transform is not None:
            seed, mask = find_seed(index), np.zeros((size, size), np.uint8)
            for offset, tile in enumerate(tiles):
                tiles[offset], _, changes[offset] = self.transform(tile, mask, seed + offset)
        pixels = np.zeros((self.k, size, size, 3), dtype=np.uint8)
        pixels[: len(tiles)] = tiles
        return RawBag(torch.from_numpy(pixels), changes, torch.arange(self.k) < len(tiles), label, name)

    def _read_features(self, item: BagItem, part: int) -> NDArray[np.float32]:
        assert item.features is not None  # all items of a run have features, or none has
        found = read_features(item.features)
        return found[:part] if item.drawn_from is None else found[sample_tiles(len(found), part, self.settings.seed)]

    def _read_tiles(self, item: BagItem, part: int) -> list[NDArray[np.uint8]]:
        record, settings = item.record, self.settings
        with settings.slide_options.open(record.image_path, record.slide_id) as slide:
            resolution = settings.resolution.resolve(slide)
            return read_tiles(slide, item.coords[:part], resolution, settings.tile_size, item.stain)

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, Tensor, Tensor, str]:
        bag = self.read(index)
        tiles, mask, *_ = convert_bags(stack_bags([bag]))
        return tiles[0], mask[0], bag.label, bag.slide_id
