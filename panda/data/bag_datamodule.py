"""Bags of tiles, loaded, as a Lightning data module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from panda.data.augment import Augmentation
from panda.data.bagset import BagItem, BagSet, BagSettings
from panda.data.loaders import loader_faults, ordered_loader, train_loader
from panda.data.splits import Split
from panda.errors import ConfigError


class BagDataModule(pl.LightningDataModule):
    """Bags of slides whose tiles are chosen already.

    Args:
        splits: Split → slides with their tiles; an empty list is no split.
        settings: How the tiles are read.
        batch_size: Bags a batch.
        num_workers: Processes that load, for each loader; 0 for none.
        augment: Applied to each tile of training bags; None for none.

    Raises:
        ConfigError: All faults of the arguments at once.
        ManifestError: A slide has no tiles or no grade.
    """

    def __init__(
        self,
        splits: Mapping[Split, Sequence[BagItem]],
        settings: BagSettings,
        *,
        batch_size: int = 1,
        num_workers: int = 2,
        augment: Augmentation | None = None,
    ) -> None:
        super().__init__()
        if faults := [*settings.faults(), *loader_faults(batch_size, num_workers, "tiles")]:
            raise ConfigError(faults)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._sets = {
            name: BagSet(items, settings, augment if name == "train" else None)
            for name, items in splits.items()
            if items
        }

    def bag_set(self, split: Split) -> BagSet:
        """Bags of a split.

        Args:
            split: `"train"`, `"val"` or `"test"`.

        Raises:
            ConfigError: There is no such split.
        """
        if split not in self._sets:
            raise ConfigError(f"there is no {split} split; there are {', '.join(self._sets) or 'none'}")
        return self._sets[split]

    def train_dataloader(self) -> DataLoader[Any]:
        """Training bags in random order; a last batch of one bag is left out where others have more."""
        bags = self.bag_set("train")
        return train_loader(bags, len(bags), self.batch_size, self.num_workers, self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation bags in the order given."""
        return ordered_loader(self.bag_set("val"), self.batch_size, self.num_workers, self.trainer)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test bags in the order given.

        Raises:
            ConfigError: There is no test split.
        """
        return ordered_loader(self.bag_set("test"), self.batch_size, self.num_workers)
