"""Loaders whose samples are the same with any number of workers.

The sampler draws the order of an epoch, and a seed for the random choices of each sample, in the main process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from panda.data.worker_process import end_at_lost_result, end_with_parent
from panda.errors import ConfigError
from panda.settings import count_cores

Batch = TypeVar("Batch")
T_co = TypeVar("T_co", covariant=True)
_SEEDS = 2**62
_MOST_WORKERS = 16
Workers = Annotated[int, Field(ge=0)] | Literal["auto"]
"""Processes of a loader, 0 for none; see `count_workers` for `auto`."""
Choice = Callable[[np.random.Generator], NDArray[np.int64]]
"""See `panda.data.samplers`."""


class Draw(NamedTuple):
    """The number of an item, and the seed of its random choices."""

    item: int
    seed: int


def find_item(index: int | Draw) -> int:
    """Return the number of the item that an index or draw asks for."""
    return index.item if isinstance(index, Draw) else int(index)


def find_seed(index: int | Draw) -> int:
    """Return the seed of a draw; a plain index takes one from torch's random generator."""
    return index.seed if isinstance(index, Draw) else int(torch.randint(_SEEDS, ()).item())


class DrawSampler(Sampler[Draw]):
    """Draw the items of an epoch, each with a seed for its augmentation.

    Order and seeds depend only on `seed` and the epoch, so an epoch is the same after a resume, and on every device.
    The first pass is epoch 0, and each pass starts the next epoch if `set_epoch` does not set another.
    With several devices, each takes every n-th draw: their batches together are one larger batch of one device. The
    last draws of an epoch are left out if they are too few for all devices. So all devices have the same number of
    draws, and no item is drawn twice.

    Args:
        items: Number of items.
        seed: Seed of the run.
        choose: Gives the items of an epoch in order, as many as `items`; None for each once, in random order.
        share: Number of this device, from 0, and number of devices.
    """

    def __init__(self, items: int, seed: int, choose: Choice | None = None, share: tuple[int, int] = (0, 1)) -> None:
        self.share = share
        self.choose = choose
        self.items = items
        self.seed = seed
        self.epoch = 0
        self.order: list[int] = []
        """Items of the present pass on all devices, in the order of the draws."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.items // self.share[1]

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        device, devices = self.share
        order = (self.choose(rng) if self.choose else rng.permutation(self.items)).tolist()
        seeds = rng.integers(_SEEDS, size=self.items).tolist()
        whole = len(self) * devices
        self.order = order[:whole]
        draws = [Draw(index, seed) for index, seed in zip(order, seeds, strict=True)]
        return iter(draws[device:whole:devices])


# An iterator whose processes could not all be started lacks this, and torch prints a traceback when it is collected.
_MultiProcessingDataLoaderIter._workers_status = defaultdict(lambda: True)  # type: ignore[assignment]


class LazyLoader(DataLoader[T_co]):
    """Begins a pass at its first batch, not at `iter()`.

    For a resumed training, Lightning calls `iter()` before it sets the epoch of the sampler. Workers would prefetch at
    once, and repeat the draws of the epoch before.
    """

    def __iter__(self) -> Iterator[T_co]:  # type: ignore[override]
        yield from super().__iter__()


def find_batch_items(loader: DataLoader[Any], number: int) -> list[int]:
    """Return the items in batch `number` of the present pass; none for a loader that is not of this module."""
    sampler, size = loader.sampler, loader.batch_size or 1
    if isinstance(sampler, DrawSampler):
        device, devices = sampler.share
        return sampler.order[device::devices][number * size : (number + 1) * size]
    known = isinstance(sampler, SequentialSampler | range)
    return list(sampler)[number * size : (number + 1) * size] if known else []


def find_step_items(loader: DataLoader[Any], number: int) -> list[int]:
    """Return the items in batch `number` of all devices: the first of each device, then the second, and so on."""
    assert isinstance(loader.sampler, DrawSampler)
    size = (loader.batch_size or 1) * loader.sampler.share[1]
    return loader.sampler.order[number * size : (number + 1) * size]


def make_train_loader(
    dataset: Dataset[Any],
    items: int,
    batch_size: int,
    num_workers: Workers,
    trainer: pl.Trainer | None = None,
    *,
    choose: Choice | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Return a loader of a training split, in random order; the dataset is indexed by `Draw`.

    The last batch of an epoch is left out if it has a single sample, because batch normalization needs two. The order
    is random, so each sample occurs in other epochs. The seed is that of torch's random generator, so it follows
    Lightning's `seed_everything`. The trainer gives the number of this device and the number of devices, and sets the
    epoch before the first batch; see `DrawSampler` for `choose`. `collate` makes a
    batch of items; the default is torch's own.

    Raises:
        ConfigError: If there are more devices than items.
    """
    share = _find_share(trainer, items)
    a_device = items // share[1]
    return LazyLoader(
        dataset,
        batch_size=batch_size,
        sampler=DrawSampler(items, torch.initial_seed(), choose, share),
        drop_last=batch_size > 1 and a_device > 1 and a_device % batch_size == 1,
        collate_fn=collate,
        **_make_options(count_workers(num_workers, trainer)),
    )


def count_workers(asked: Workers, trainer: pl.Trainer | None = None) -> int:
    """Return the number of processes of a loader.

    `auto` divides the cores among the devices of this machine, leaves one to the process that trains, and takes at most
    16 others.
    """
    if asked != "auto":
        return asked
    devices = 1 if trainer is None else trainer.num_devices  # of this machine
    return min(max(count_cores() // devices - 1, 0), _MOST_WORKERS)


def _find_share(trainer: pl.Trainer | None, items: int) -> tuple[int, int]:
    """Return the number of this device, and the number of devices."""
    device, devices = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
    if items < devices > 1:
        raise ConfigError(f"trainer.devices={devices}: a split has only {items} patches or slides; use fewer devices")
    return device, devices


def make_ordered_loader(
    dataset: Dataset[Any],
    batch_size: int,
    num_workers: Workers,
    trainer: pl.Trainer | None = None,
    *,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Return a loader of a validation or test split, in the order of the dataset.

    With several devices, each takes every n-th item. No item is read twice, so some devices may have one less.

    Raises:
        ConfigError: If there are more devices than items.
    """
    items = len(dataset)  # type: ignore[arg-type]
    device, devices = _find_share(trainer, items)
    mine = None if devices == 1 else range(device, items, devices)
    options = _make_options(count_workers(num_workers, trainer))
    return DataLoader(dataset, batch_size=batch_size, shuffle=False, sampler=mine, collate_fn=collate, **options)


def _make_options(num_workers: int) -> dict[str, Any]:
    """Return the options that all loaders share."""
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _start_worker,
        # A separate generator, so that the number of workers does not change torch's own generator.
        "generator": torch.Generator().manual_seed(torch.initial_seed()),
    }


def convert_to_precision(batch: Batch, trainer: pl.Trainer | None) -> Batch:
    """Return a batch in the data type of the trainer's precision; Lightning converts only what a loader returns."""
    converted: Batch = batch if trainer is None else trainer.precision_plugin.convert_input(batch)
    return converted


def _start_worker(number: int) -> None:
    """Let the worker end in time, and limit OpenCV to one thread, because its pool does not survive a fork."""
    end_with_parent()
    end_at_lost_result()
    cv2.setNumThreads(0)
