"""Tumour segmentation as a LightningModule."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.utilities.distributed import gather_all_tensors

from panda.data.image_batch import RawItems
from panda.data.loaders import find_batch_items, find_step_items
from panda.data.patchset import PatchSet
from panda.data.samplers import HardDraws
from panda.models.losses import measure_cross_entropy
from panda.models.partial_labels import merge_target
from panda.models.probabilities import compute_cancer_classes, compute_cancer_probability, merge_cancer_classes
from panda.models.segmentation import Segmenter
from panda.tasks.class_counts import measure_class_dice
from panda.tasks.class_metrics import ClassCounts, predict_classes
from panda.tasks.epoch_metrics import MeanLoss, separate_metrics
from panda.tasks.metadata import SegmentationMetadata
from panda.tasks.metrics import compute_dice
from panda.tasks.optim import FiniteCheck, Optim
from panda.tasks.pixel_histogram import PixelHistogram
from panda.tasks.threshold import search_threshold

Batch = tuple[Tensor, Tensor]

THRESHOLD = 0.5
"""Threshold of `train/dice` and `val/dice`, which is the same in every epoch."""


class SegmentationTask(pl.LightningModule):
    """Train a `Segmenter` on patches.

    It logs `train/loss`, `train/dice`, `val/loss` and `val/dice`. Dice is pooled over the pixels of the epoch, at a
    probability of 0.5. `val/dice_best` is the best Dice over all thresholds, and `val/threshold` its threshold. With
    several classes of cancer these are of their sum, and `val/dice_<class>` is the Dice of each at 0.5.

    Args:
        network: The segmenter.
        loss: Module that takes logits (N, channels, h, w) and target (N, 1, h, w), see `panda.models.losses`.
        optim: Settings of optimizer and schedule.
        metadata: What checkpoints store for inference; each validation epoch replaces its threshold.
        channels_last: Use the memory format `torch.channels_last`.
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
        self.val_classes = None if metadata.classes.is_binary else ClassCounts(len(metadata.classes.names))
        # Lightning's own mean over the epoch is not used: its progress bar computes it on one of several devices only.
        self.train_loss, self.val_loss = MeanLoss(), MeanLoss()
        self.finite = FiniteCheck(optim.lr)

    def setup(self, stage: str) -> None:
        """Compile the network in the process that trains it, because another process cannot take it over."""
        separate_metrics(self)
        if self.compiled:
            self.network.compile()

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (N, channels, h, w) of images (N, 3, h, w) in [0, 1]."""
        logits: Tensor = self.network(image.contiguous(memory_format=self.layout))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch and add its pixels to the epoch's Dice."""
        image, mask = batch
        logits = self(image)
        loss: Tensor = self.loss(logits, mask)
        self._check_loss(loss, logits, self.trainer.train_dataloader, batch_idx)
        self._report_errors(logits, mask, batch_idx)
        self.train_loss.update(loss, len(image))
        merged = merge_target(mask)
        self.train_pixels.update(compute_cancer_probability(logits.detach()), merged > 0.5, merged >= 0)
        self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def _report_errors(self, logits: Tensor, mask: Tensor, number: int) -> None:
        """Pass the mean cross-entropy of each patch to a sampler that draws hard patches."""
        loader = self.trainer.train_dataloader
        draws = getattr(getattr(loader, "sampler", None), "choose", None)
        if loader is None or not isinstance(draws, HardDraws):
            return
        counts = (merge_target(mask) >= 0).float()
        entropy = measure_cross_entropy(logits.detach(), mask)
        errors = (entropy * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)
        # From all devices, because each draws the next epoch itself and all must draw the same.
        gathered = gather_all_tensors(errors) if self.trainer.world_size > 1 else [errors]
        draws.record_losses(find_step_items(loader, number), torch.stack(gathered, dim=1).flatten())

    def _check_loss(self, loss: Tensor, logits: Tensor, loader: DataLoader[Any] | None, number: int) -> None:
        """Stop the training if the loss is not finite, with the names of the patches."""

        def list_patches() -> list[str]:
            if loader is None:
                return []
            patches = loader.dataset.whole if isinstance(loader.dataset, RawItems) else loader.dataset
            if not isinstance(patches, PatchSet):
                return []
            return [patches.describe_patch(item) for item in find_batch_items(loader, number)]

        self.finite.add(loss, logits, self.current_epoch, list_patches)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training loss and Dice."""
        self.finite.settle()
        self.log("train/loss", self.train_loss.compute())
        self.train_loss.reset()
        self.log("train/dice", compute_dice(self.train_pixels.compute().cpu(), THRESHOLD), prog_bar=True)
        self.train_pixels.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add a batch to the validation loss and histogram, and return its probabilities (N, 1, h, w)."""
        image, mask = batch
        logits = self(image)
        loss: Tensor = self.loss(logits, mask)
        self._check_loss(loss, logits, self.trainer.val_dataloaders, batch_idx)
        merged = merge_target(mask)
        self.val_loss.update(loss, (merged >= 0).sum())
        classes = compute_cancer_classes(logits)
        prob = merge_cancer_classes(classes)
        self.val_pixels.update(prob, merged > 0.5, merged >= 0)
        if self.val_classes is not None:
            self.val_classes.update(predict_classes(classes, THRESHOLD, self.metadata.classes), mask)
        return prob

    def on_validation_epoch_end(self) -> None:
        """Log validation loss and Dice, and search the threshold over the epoch's pixels."""
        self.finite.settle()
        histogram = self.val_pixels.compute().cpu()
        self.val_pixels.reset()
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self.val_loss.reset()
        self.log("val/dice", compute_dice(histogram, THRESHOLD), prog_bar=True)
        if self.val_classes is not None:
            dice = measure_class_dice(self.val_classes.compute().cpu().numpy()).tolist()
            self.val_classes.reset()
            for name, score in zip(self.metadata.classes.cancer_names, dice, strict=True):
                self.log(f"val/dice_{name}", score)
        choice = search_threshold({"all": histogram}, chosen_on=f"validation patches, epoch {self.current_epoch}")
        self.log("val/dice_best", math.nan if choice.score is None else choice.score)
        self.log("val/threshold", choice.value)
        if not self.trainer.sanity_checking:
            self.metadata = self.metadata.model_copy(update={"threshold": choice})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and schedule for all steps of the run."""
        return self.optim.build(self.network.parameters(), int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store under `panda` all that inference needs, as plain data."""
        checkpoint["panda"] = self.metadata.to_entry()
