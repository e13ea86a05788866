"""Tumour segmentation as a LightningModule: steps, logged loss and Dice, threshold search, checkpoint content."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.utilities.distributed import gather_all_tensors

from panda.data.loaders import find_batch_items, find_step_items
from panda.data.patchset import PatchSet
from panda.data.samplers import HardDraws
from panda.models.segmentation import Segmenter
from panda.tasks.metadata import SegmentationMetadata
from panda.tasks.metrics import PixelHistogram, compute_dice
from panda.tasks.optim import Optim, check_finite
from panda.tasks.threshold import search_threshold

Batch = tuple[Tensor, Tensor]


class SegmentationTask(pl.LightningModule):
    """Trains a `Segmenter` on patches.

    Logs `train/loss`, `train/dice`, `val/loss`, `val/dice` (both Dice pooled over the pixels of the epoch, at a
    probability of 0.5), and from the streamed histograms of the epoch `val/dice_best` with `val/threshold`,
    where it is reached.

    Args:
        network: The segmenter.
        loss: Module over logits and target, both (N, 1, h, w).
        optim: Optimizer and schedule.
        metadata: What checkpoints store for inference; each validation epoch replaces its threshold.
        channels_last: Keep the channels of a pixel side by side in memory.
        compiled: Run the network through `torch.compile`; its weights keep their names.
    """

    def __init__(
        self,
        network: Segmenter,
        loss: nn.Module,
        optim: Optim,
        metadata: SegmentationMetadata,
        *,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.layout)
        self.compiled = compiled
        self.loss = loss
        self.optim = optim
        self.metadata = metadata
        self.train_pixels = PixelHistogram()
        self.val_pixels = PixelHistogram()
        # Not Lightning's own mean over the epoch: its progress bar asks for that on one of several devices alone.
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()

    def setup(self, stage: str) -> None:
        """Compiles the network, in the process that trains it: what is compiled does not pass to another one."""
        if self.compiled:
            self.network.compile()

    def forward(self, image: Tensor) -> Tensor:
        """Map images (N, 3, h, w) in [0, 1] to logits (N, 1, h, w)."""
        logits: Tensor = self.network(image.contiguous(memory_format=self.layout))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; adds its pixels to the epoch's Dice."""
        image, mask = batch
        logits = self(image)
        loss: Tensor = self.loss(logits, mask)
        self._check(loss, logits, self.trainer.train_dataloader, batch_idx)
        self._note(logits, mask, batch_idx)
        self.train_loss.update(loss.detach(), weight=len(image))
        self.train_pixels.update(logits.detach().float().sigmoid(), mask > 0.5, mask >= 0)
        self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def _note(self, logits: Tensor, mask: Tensor, number: int) -> None:
        """Tells a sampler that asks for it how wrong the network was on each patch: its mean cross-entropy."""
        loader = self.trainer.train_dataloader
        draws = getattr(getattr(loader, "sampler", None), "choose", None)
        if loader is None or not isinstance(draws, HardDraws):
            return
        counts = (mask >= 0).float()
        wrong = functional.binary_cross_entropy_with_logits(
            logits.detach().float(), mask.clamp_min(0), reduction="none"
        )
        of_patch = (wrong * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)
        # of all devices: each draws the next epoch by itself, and has to come to the same
        gathered = gather_all_tensors(of_patch) if self.trainer.world_size > 1 else [of_patch]
        draws.record_losses(find_step_items(loader, number), torch.stack(gathered, dim=1).flatten())

    def _check(self, loss: Tensor, logits: Tensor, loader: DataLoader[Any] | None, number: int) -> None:
        """Stop at a loss that is no number, naming the patches."""

        def names() -> list[str]:
            if loader is None or not isinstance(loader.dataset, PatchSet):
                return []
            return [loader.dataset.describe_patch(item) for item in find_batch_items(loader, number)]

        check_finite(loss, logits, self.optim.lr, self.current_epoch, names)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training loss and Dice."""
        self.log("train/loss", self.train_loss.compute())
        self.train_loss.reset()
        self.log("train/dice", compute_dice(self.train_pixels.compute(), 0.5), prog_bar=True)
        self.train_pixels.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add one batch to the epoch's validation loss and histogram; gives its probabilities (N, 1, h, w)."""
        image, mask = batch
        logits = self(image)
        loss: Tensor = self.loss(logits, mask)
        self._check(loss, logits, self.trainer.val_dataloaders, batch_idx)
        self.val_loss.update(loss, weight=(mask >= 0).sum())
        prob: Tensor = logits.float().sigmoid()
        self.val_pixels.update(prob, mask > 0.5, mask >= 0)
        return prob

    def on_validation_epoch_end(self) -> None:
        """Log validation loss and Dice, and searches the threshold over the epoch's pixels."""
        histogram = self.val_pixels.compute()
        self.val_pixels.reset()
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self.val_loss.reset()
        self.log("val/dice", compute_dice(histogram, 0.5), prog_bar=True)
        choice = search_threshold({"all": histogram}, chosen_on=f"validation patches, epoch {self.current_epoch}")
        self.log("val/dice_best", math.nan if choice.score is None else choice.score)
        self.log("val/threshold", choice.value)
        if not self.trainer.sanity_checking:
            self.metadata = self.metadata.model_copy(update={"threshold": choice})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule over all steps of the run."""
        return self.optim.build(self.network.parameters(), int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store under `panda` all that inference needs, as plain data."""
        checkpoint["panda"] = self.metadata.to_entry()
