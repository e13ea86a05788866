"""Part g: bags a second from cached features, against end to end from pixels; and the memory of large bags.

Run as a program it takes one training step on a bag of `LARGE` tiles and prints the peak of its process in MiB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.memory import peak_mib
from bench.project import GRADING, GRADING_K, GRADING_MEMORY, GRADING_SIZE
from bench.results import Results
from bench.slides import CACHE
from bench.training import Steps, endless
from panda.data.bagset import BagItem, BagSet, BagSettings
from panda.data.loaders import make_train_loader
from panda.data.manifest import SlideRecord
from panda.data.tile_selection import select_tile_coords_for_slide
from panda.inference.compute import EngineSettings
from panda.inference.feature_store import FeatureStore
from panda.inference.features import TileBag
from panda.models.mil import MILNet
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue

PART, MEMORY = "grading", "grading memory"
BAGS = 8
STEPS = {"pixels": 2, "features": 200}
LARGE = 128


class _Steps(Steps):
    """Steps as `GradingTask` trains."""

    def __init__(self, frozen: bool) -> None:
        torch.manual_seed(0)
        self.network = MILNet("resnet18", freeze_encoder=frozen).train()
        learns = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learns)
        self.loss = torch.nn.CrossEntropyLoss()

    def compute_loss(self, batch: tuple[Tensor, Tensor, Tensor, list[str]]) -> Tensor:
        """Return the loss of one bag, see `Steps`."""
        bag, mask, label, _ = batch
        loss: Tensor = self.loss(self.network(bag, mask)[0], label)
        return loss


def measure(record: SlideRecord, rounds: int, results: Results) -> None:
    """Train on bags of one slide, from pixels and from cached features in turn; then take a step on a large bag.

    Args:
        record: The slide.
        rounds: How many times each.
        results: Gets the rows, in bags/s and MiB.
    """
    settings = BagSettings(k=GRADING_K, tile_size=GRADING_SIZE)
    record = replace(record, isup_grade=record.isup_grade or 0)
    steps = {"pixels": _Steps(frozen=False), "features": _Steps(frozen=True)}
    with tempfile.TemporaryDirectory(dir=CACHE) as out:
        store = FeatureStore(steps["features"].network, EngineSettings(device="cpu", precision="fp32"), Path(out))
        with Slide.open(record.image_path) as slide:
            view, tissue = slide.choose_resolution(level=1), find_tissue(slide)
            items = {name: list[BagItem]() for name in steps}
            for seed in range(BAGS):
                coords = select_tile_coords_for_slide(
                    None, None, tissue, view, k=GRADING_K, tile_size=GRADING_SIZE, seed=seed
                )
                items["pixels"].append(BagItem(record, coords))
                kept = store.encode(slide, TileBag(record.image_path, coords, view, GRADING_SIZE))
                items["features"].append(BagItem(record, coords, None, kept))
        steps["features"].network.train()
        sources: dict[str, Iterator[Any]] = {}
        for name, bags in items.items():
            sources[name] = endless(make_train_loader(BagSet(bags, settings), BAGS, 1, 0))
        for turn in range(-1, rounds):
            for name, batches in sources.items():
                seconds = steps[name].seconds(batches, STEPS[name])
                if turn >= 0:
                    results.add(PART, name, GRADING, STEPS[name] / seconds)
    for _ in range(rounds):
        ran = subprocess.run([sys.executable, "-m", "bench.grading"], capture_output=True, text=True, check=True)
        results.add(MEMORY, "end to end", GRADING_MEMORY, float(ran.stdout))


def main() -> None:
    """Take one step of training end to end on a bag of `LARGE` tiles."""
    bag = torch.rand(1, LARGE, 3, GRADING_SIZE, GRADING_SIZE)
    batch = bag, torch.ones(1, LARGE, dtype=torch.bool), torch.tensor([1]), ["s"]
    _Steps(frozen=False).seconds(repeat(batch), 1)
    print(peak_mib())


if __name__ == "__main__":
    main()
