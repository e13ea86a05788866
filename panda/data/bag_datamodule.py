"""A Lightning data module of bags of tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from panda.data.augment import Augmentation
from panda.data.bagset import BagItem, BagSet, BagSettings
from panda.data.image_batch import BagBatch, RawItems, convert_bags, stack_bags
from panda.data.loaders import convert_to_precision, make_ordered_loader, make_train_loader
from panda.data.splits import Split
from panda.data.targets import ISUP, TargetSpec
from panda.errors import ConfigError


class BagDataModule(pl.LightningDataModule):
    """Bags of slides whose tiles were selected before.

    Args:
        splits: Split → slides with their tiles; an empty list is no split.
        settings: How the bags are read and loaded.
        augment: Applied to each tile of training bags; None for none.
        target: What the labels are.

    Raises:
        ManifestError: If a slide has no tiles or no label.
    """

    def __init__(
        self,
        splits: Mapping[Split, Sequence[BagItem]],
        settings: BagSettings,
        augment: Augmentation | None = None,
        target: TargetSpec = ISUP,
    ) -> None:
        super().__init__()
        self.settings = settings
        self._sets = {
            name: BagSet(items, settings, augment if name == "train" else None, target)
            for name, items in splits.items()
            if items
        }

    def get_bags(self, split: Split) -> BagSet:
        """Return the bags of a split, or raise `ConfigError` if there is no such split."""
        if split not in self._sets:
            raise ConfigError(f"there is no {split} split; there are {', '.join(self._sets) or 'none'}")
        return self._sets[split]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of training bags in random order, see `make_train_loader`."""
        bags, settings = RawItems(self.get_bags("train")), self.settings
        return make_train_loader(
            bags, len(bags), settings.batch_size, settings.num_workers, self.trainer, collate=stack_bags
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of validation bags in order."""
        return self._make_ordered_loader("val", self.trainer)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a loader of test bags in order."""
        return self._make_ordered_loader("test")

    def _make_ordered_loader(self, split: Split, trainer: pl.Trainer | None = None) -> DataLoader[Any]:
        bags, settings = RawItems(self.get_bags(split)), self.settings
        return make_ordered_loader(bags, settings.batch_size, settings.num_workers, trainer, collate=stack_bags)

    def on_after_batch_transfer(self, batch: BagBatch, dataloader_idx: int) -> Any:
        """Convert a batch on its device, see `convert_bags`, to the precision of the trainer."""
        return convert_to_precision(convert_bags(batch), self.trainer)
