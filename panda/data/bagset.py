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
    """

    node: ClassVar[str] = "tiles"

    k: Count = 32
    tile_size: Count = 256
    batch_size: Count = 1
    num_workers: Workers = "auto"
    seed: int = 0


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
    """Bags with the label of their slide.

    An item is `(bag, mask, label, slide_id)`. The bag is (k, 3, h, w) float32 in [0, 1], or (k, D) float32 if the items
    have features. The mask is (k,) bool, False for padding (zeros) if the slide has fewer tiles. The label is that of
    `TargetSpec.read_label`.

    Args:
        items: Slides with their tiles; if there are more than k, the first k are used.
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
        self.items = list(items)
        self.labels = [target.read_label(item.record) for item in items]
        self.settings = settings
        # No bag has more tiles than the slide with the most.
        self.k = min(settings.k, max(item.count for item in items))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int | Draw) -> RawBag:
        """Read and turn the tiles of a bag, whose colours still need the changes of `transform`."""
        number = find_item(index)
        settings = self.settings
        item = self.items[number]
        record, coords = item.record, item.coords[: self.k]
        label = self.labels[number]
        if item.features is not None:
            found = read_features(item.features)
            drawn = item.drawn_from is not None
            found = found[sample_tiles(len(found), self.k, settings.seed) if drawn else slice(self.k)]
            padded = torch.from_numpy(np.pad(found, ((0, self.k - len(found)), (0, 0))))
            return RawBag(padded, (), torch.arange(self.k) < len(found), label, record.slide_id)
        with settings.slide_options.open(record.image_path, record.slide_id) as slide:
            resolution = settings.resolution.resolve(slide)
            tiles = read_tiles(slide, coords, resolution, settings.tile_size, item.stain)
        changes: list[list[Change]] = [[] for _ in range(self.k)]
        if self.transform is not None:
            seed, mask = find_seed(index), np.zeros((settings.tile_size,) * 2, np.uint8)
            for offset, tile in enumerate(tiles):
                tiles[offset], _, changes[offset] = self.transform(tile, mask, seed + offset)
        bag = np.zeros((self.k, settings.tile_size, settings.tile_size, 3), dtype=np.uint8)
        bag[: len(tiles)] = tiles
        return RawBag(torch.from_numpy(bag), changes, torch.arange(self.k) < len(tiles), label, record.slide_id)

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, Tensor, Tensor, str]:
        bag = self.read(index)
        tiles, mask, *_ = convert_bags(stack_bags([bag]))
        return tiles[0], mask[0], bag.label, bag.slide_id
