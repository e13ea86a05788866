"""Loaders whose samples are the same with any number of workers.

The sampler draws, in the main process, the order of an epoch and a seed for the random choices of each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from panda.errors import ConfigError

_SEEDS = 2**62
Choice = Callable[[np.random.Generator], NDArray[np.int64]]
"""See `panda.data.samplers`."""


class Draw(NamedTuple):
    """A sample to be made: which item, and the seed of its random choices."""

    item: int
    seed: int


def drawn(index: int | Draw) -> tuple[int, int]:
    """Item and seed of an index; a plain index gets a seed from torch's random generator.

    Args:
        index: An item's number, or a draw.

    Returns:
        The item's number and the seed.
    """
    if isinstance(index, Draw):
        return index.item, index.seed
    return int(index), int(torch.randint(_SEEDS, ()).item())


class DrawSampler(Sampler[Draw]):
    """Draws the items of an epoch, each with a seed for its augmentation.

    Order and seeds depend on nothing but `seed` and the epoch: an epoch is the same after a resume, and on all
    devices before they share it out. Of several devices each takes every n-th draw, so that their batches together are
    a batch of one device that is as many times larger. The last draws of an epoch that do not go round are left out:
    all devices have equally many, and none is drawn twice.

    Args:
        items: Number of items.
        seed: Of the run.
        epoch: The first epoch; each pass begins the next one unless `set_epoch` says otherwise.
        choose: Gives the items of an epoch in their order, as many as there are; None for each once, in random order.
        share: This device's number, from 0, and how many there are.
    """

    def __init__(
        self, items: int, seed: int, epoch: int = 0, choose: Choice | None = None, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.share = share
        self.choose = choose
        self.items = items
        self.seed = seed
        self.epoch = epoch
        self.order: list[int] = []
        """Items of the present pass on all devices, in the order they are drawn in."""

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


def items_of(loader: DataLoader[Any], number: int) -> list[int]:
    """Which items a batch of the present pass is made of.

    Args:
        loader: Of `train_loader` or `ordered_loader`.
        number: Of the batch in the pass, from 0.

    Returns:
        Numbers of items; none where the loader is another one.
    """
    sampler, size = loader.sampler, loader.batch_size or 1
    if isinstance(sampler, DrawSampler):
        device, devices = sampler.share
        return sampler.order[device::devices][number * size : (number + 1) * size]
    known = isinstance(sampler, SequentialSampler | range)
    return list(sampler)[number * size : (number + 1) * size] if known else []


def items_of_all(loader: DataLoader[Any], number: int) -> list[int]:
    """Which items the batches of all devices are made of, in the order that they were drawn in.

    Args:
        loader: Of `train_loader`.
        number: Of the batch in the pass, from 0.

    Returns:
        Numbers of items: each device's first, each device's second, and so on.
    """
    assert isinstance(loader.sampler, DrawSampler)
    size = (loader.batch_size or 1) * loader.sampler.share[1]
    return loader.sampler.order[number * size : (number + 1) * size]


def loader_faults(batch_size: int, num_workers: int, prefix: str = "data") -> list[str]:
    """Say what is wrong with the arguments of a loader, in words of the config.

    Args:
        batch_size: Samples a batch.
        num_workers: Processes that load.
        prefix: The config node that holds `batch_size`.

    Returns:
        One sentence a fault.
    """
    faults = []
    if batch_size < 1:
        faults.append(f"{prefix}.batch_size is {batch_size}: give at least 1")
    if num_workers < 0:
        faults.append(f"data.num_workers is {num_workers}: give 0 (no processes of its own) or more")
    return faults


def train_loader(
    dataset: Dataset[Any],
    items: int,
    batch_size: int,
    num_workers: int,
    trainer: pl.Trainer | None = None,
    *,
    choose: Choice | None = None,
) -> DataLoader[Any]:
    """Loader of a training split, in random order.

    The last batch of an epoch is left out where it would be a single sample, of which batch normalisation can
    make no statistics; order being random, no sample is left out for good. The seed is that of torch's random
    generator, so it follows Lightning's `seed_everything`.

    Args:
        dataset: Its items are indexed by `Draw`.
        items: Its length.
        batch_size: Samples a batch.
        num_workers: Processes that load; 0 for none.
        trainer: Says which of how many devices this one is, and which epoch comes first after a resume.
        choose: Which items an epoch draws, see `DrawSampler`.

    Returns:
        The loader.

    Raises:
        ConfigError: There are more devices than items.
    """
    share, epoch = _share(trainer, items), 0 if trainer is None else trainer.current_epoch
    a_device = items // share[1]
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=DrawSampler(items, torch.initial_seed(), epoch, choose, share),
        drop_last=batch_size > 1 and a_device > 1 and a_device % batch_size == 1,
        **_options(num_workers),
    )


def _share(trainer: pl.Trainer | None, items: int) -> tuple[int, int]:
    """Thi device's number, and how many there are."""
    device, devices = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
    if items < devices > 1:
        raise ConfigError(f"trainer.devices={devices}: a split has {items} patches or slides only; take fewer devices")
    return device, devices


def ordered_loader(
    dataset: Dataset[Any], batch_size: int, num_workers: int, trainer: pl.Trainer | None = None
) -> DataLoader[Any]:
    """Loader of a validation or test split, in the order of the dataset.

    Of several devices each takes every n-th item; no item is taken twice, so some devices may have one less.

    Args:
        dataset: Its items are indexed by number.
        batch_size: Samples a batch.
        num_workers: Processes that load; 0 for none.
        trainer: Says which of how many devices this one is.

    Returns:
        The loader.

    Raises:
        ConfigError: There are more devices than items.
    """
    items = len(dataset)  # type: ignore[arg-type]
    device, devices = _share(trainer, items)
    mine = None if devices == 1 else range(device, items, devices)
    return DataLoader(dataset, batch_size=batch_size, shuffle=False, sampler=mine, **_options(num_workers))


def _options(num_workers: int) -> dict[str, Any]:
    """What all loaders have in common."""
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _start_worker,
        # Of its own, so that the number of workers does not change what torch's generator gives to others.
        "generator": torch.Generator().manual_seed(torch.initial_seed()),
    }


def _start_worker(number: int) -> None:
    """Keep OpenCV to the worker's own thread: its pool of threads does not survive a fork."""
    cv2.setNumThreads(0)
