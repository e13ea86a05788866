"""A Lightning data module of bags of tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from panda.data.augment import Augmentation
from panda.data.bagset import BagItem, BagSet, BagSettings
from panda.data.loaders import loader_faults, make_ordered_loader, make_train_loader
from panda.data.splits import Split
from panda.errors import ConfigError


class BagDataModule(pl.LightningDataModule):
    """Bags of slides whose tiles are already selected.

    Args:
        splits: Split → slides with their tiles; a split without slides is left out.
        settings: How the tiles are read.
        batch_size: Bags a batch.
        num_workers: Loading processes for each loader; 0 for none.
        augment: Augmentation of each tile of training bags; None for none.

    Raises:
        ConfigError: If arguments are faulty; the message lists all faults.
        ManifestError: If a slide has no tiles or no grade.
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
        """Return the bags of a split.

        Args:
            split: `"train"`, `"val"` or `"test"`.

        Raises:
            ConfigError: If there is no such split.
        """
        if split not in self._sets:
            raise ConfigError(f"there is no {split} split; there are {', '.join(self._sets) or 'none'}")
        return self._sets[split]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of training bags in random order, see `make_train_loader`."""
        bags = self.bag_set("train")
        return make_train_loader(bags, len(bags), self.batch_size, self.num_workers, self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of validation bags in order."""
        return make_ordered_loader(self.bag_set("val"), self.batch_size, self.num_workers, self.trainer)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a loader of test bags in order.

        Raises:
            ConfigError: If there is no test split.
        """
        return make_ordered_loader(self.bag_set("test"), self.batch_size, self.num_workers)
