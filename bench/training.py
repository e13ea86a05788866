"""Part f: the share of a training step that waits for the loader, and the gain of precision and memory layout.

`python -m bench.training` prints the CPU time of a patch instead: in a loader process, and in the process that trains.
"""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import repeat
from typing import Any, Literal, get_args

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench.project import CACHED, MAPPED_TISSUE, NETWORKS, TRAINING, TRAINING_BATCH, TRAINING_SIZE, UNET, settings
from bench.results import Results
from bench.slides import CACHE, shared_tiles_slide
from panda.data.augment import Augmentation, Name
from panda.data.extraction import extract_store
from panda.data.image_batch import PatchBatch, RawItems, convert_patches, stack_patches
from panda.data.loaders import Draw, make_train_loader
from panda.data.manifest import SlideRecord
from panda.data.patch_manifests import write_patch_manifests
from panda.data.patchset import PatchSet
from panda.data.settings import StoreKind
from panda.models.losses import BCEDiceLoss
from panda.models.segmentation import Segmenter

PART = "training"
STEPS = 10
WORKERS = 2
LOADED_SIDE, TURNS = 8192, 5
"""Side of the slide whose patches are loaded, level-0 px, and passes over them."""
STORES: tuple[StoreKind, ...] = ("slide", "png")
KINDS = {
    "fp32": (torch.float32, torch.contiguous_format, False),
    "fp32 channels-last": (torch.float32, torch.channels_last, False),
    "fp32 channels-last compiled": (torch.float32, torch.channels_last, True),
    "bf16": (torch.bfloat16, torch.contiguous_format, False),
    "bf16 channels-last": (torch.bfloat16, torch.channels_last, False),
    "bf16 channels-last compiled": (torch.bfloat16, torch.channels_last, True),
}
"""Precision, memory layout and whether the network goes through `torch.compile`."""

Device = Literal["cpu", "cuda"]


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a loader, epoch after epoch."""
    while True:
        yield from loader


def make_patch_loader(patches: PatchSet, batch_size: int, workers: int) -> DataLoader[Any]:
    """Return a loader as the data module makes it for training."""
    return make_train_loader(RawItems(patches), len(patches), batch_size, workers, collate=stack_patches)


class Steps(ABC):
    """A network in training.

    Attributes:
        optimizer: Of its weights.
        device: `cpu` or `cuda`.
    """

    optimizer: torch.optim.Optimizer
    device: Device = "cpu"

    @abstractmethod
    def compute_loss(self, batch: Any) -> Tensor:
        """Return the loss of one batch of the loader."""

    def seconds(self, batches: Iterator[Any], steps: int) -> float:
        """Time some steps after one that is not counted."""
        start = 0.0
        for number, batch in zip(range(steps + 1), batches, strict=False):
            if number == 1:
                start = self._read_clock()
            loss = self.compute_loss(batch)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
        return self._read_clock() - start

    def _read_clock(self) -> float:
        """Return the time in s after all work so far, because a GPU works while Python continues."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class SegmentationSteps(Steps):
    """Steps as `SegmentationTask` trains."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.channels_last,
        compiled: bool = False,
        *,
        network: str = UNET,
        device: Device = "cpu",
    ) -> None:
        torch.manual_seed(0)
        self.dtype, self.layout, self.device = dtype, layout, device
        self.network = Segmenter(*NETWORKS[network]).to(device).to(memory_format=layout)
        if compiled:
            self.network.compile()
        self.loss = BCEDiceLoss()
        self.optimizer = torch.optim.AdamW(self.network.parameters())

    def compute_loss(self, batch: PatchBatch) -> Tensor:
        """Return the loss of one batch, see `Steps`."""
        images, targets = batch
        image, mask = convert_patches((images.to(self.device), targets.to(self.device, non_blocking=True)))
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss: Tensor = self.loss(self.network(image.contiguous(memory_format=self.layout)), mask)
        return loss


def print_loading() -> None:
    """Print the CPU time of a patch of 512 px in ms, on one thread, by store and augmentation."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    record = shared_tiles_slide(LOADED_SIDE, MAPPED_TISSUE)
    print(f"{'store':8s}{'augment':8s}{'loader process':>16s}{'device':>8s}")
    with tempfile.TemporaryDirectory(dir=CACHE) as out:
        for store in get_args(StoreKind):
            done = extract_store([record], settings(store), out, CACHE, workers=1, progress=False)
            manifest = write_patch_manifests(done, {record.slide_id: "train"})["train"]
            for name in get_args(Name):
                reading, converting = _time_loading(PatchSet(manifest, Augmentation(name=name)))
                print(f"{store:8s}{name:8s}{reading:16.1f}{converting:8.1f}")


def _time_loading(patches: PatchSet) -> tuple[float, float]:
    """Return the CPU time of a patch in ms: to read and turn it, and to convert it and change its colours."""
    reading = converting = 0.0
    for turn in range(-1, TURNS):
        start = time.process_time()
        read = [patches.read(Draw(number, 1000 * (turn + 1) + number)) for number in range(len(patches))]
        batches = [stack_patches(read[n : n + TRAINING_BATCH]) for n in range(0, len(read), TRAINING_BATCH)]
        middle = time.process_time()
        for batch in batches:
            convert_patches(batch)
        if turn >= 0:
            reading += middle - start
            converting += time.process_time() - middle
    ms = 1000 / (TURNS * len(patches))
    return ms * reading, ms * converting


def measure(record: SlideRecord, rounds: int, results: Results) -> None:
    """Train on patches of a slide from the loader and from memory in turn, and in each precision and layout.

    Args:
        record: The slide.
        rounds: How many times each.
        results: Gets the rows, in steps/s.
    """
    with tempfile.TemporaryDirectory(dir=CACHE) as out:
        sources: dict[str, Iterator[PatchBatch]] = {}
        batch: PatchBatch | None = None
        for store in STORES:
            cut = settings(store, TRAINING_SIZE)
            done = extract_store([record], cut, out, CACHE, workers=2, progress=False)
            manifest = write_patch_manifests(done, {record.slide_id: "train"})["train"]
            patches = PatchSet(manifest, Augmentation(name="light"))
            loader = make_patch_loader(patches, TRAINING_BATCH, WORKERS)
            sources[f"panda {store}"] = endless(loader)
            batch = batch or next(iter(make_patch_loader(patches, TRAINING_BATCH, 0)))
        assert batch is not None
        steps = SegmentationSteps()
        for turn in range(-1, rounds):
            for name, batches in {CACHED: repeat(batch), **sources}.items():
                seconds = steps.seconds(iter(batches), STEPS)
                if turn >= 0:
                    results.add(PART, name, TRAINING, STEPS / seconds)
        del sources
    kinds = {name: SegmentationSteps(*kind) for name, kind in KINDS.items()}
    for turn in range(-1, rounds):
        for name, steps in kinds.items():
            seconds = steps.seconds(repeat(batch), 3)
            if turn >= 0:
                results.add(PART, name, f"{TRAINING}, by precision and memory layout", 3 / seconds)


if __name__ == "__main__":
    print_loading()
