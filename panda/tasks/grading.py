"""Slide grading by multiple-instance learning as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from panda.models.mil import MILNet
from panda.tasks.epoch_metrics import MeanLoss, separate_metrics
from panda.tasks.grade_metrics import score_grades
from panda.tasks.metadata import GradingMetadata, Target
from panda.tasks.optim import FiniteCheck, Optim

CLASSES: Mapping[Target, int] = {"isup": 6, "cancer": 2}

Batch = tuple[Tensor, Tensor, Tensor, list[str]]
"""Tiles (B, K, 3, h, w), or features (B, K, D) of a frozen encoder; mask (B, K) bool; ISUP grades (B,); slide ids."""


def find_class(isup_grade: Tensor, target: Target) -> Tensor:
    """Return the classes of slides, (N,): their ISUP grades 0 to 5, or 1 for cancer (grade 1 or more)."""
    return isup_grade if target == "isup" else (isup_grade > 0).long()


class Predictions(Metric):
    """Probabilities (N, C) and labels (N,) of an epoch, gathered over devices."""

    full_state_update = False
    prob: list[Tensor]
    label: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("prob", default=[], dist_reduce_fx="cat")
        self.add_state("label", default=[], dist_reduce_fx="cat")

    def update(self, prob: Tensor, label: Tensor) -> None:
        """Add a batch: prob (B, C), label (B,)."""
        self.prob.append(prob)
        self.label.append(label)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return all probabilities (N, C) and labels (N,)."""
        return dim_zero_cat(self.prob), dim_zero_cat(self.label)


class GradingTask(pl.LightningModule):
    """Train a `MILNet` on bags of tiles.

    It logs `train/loss`, `train/accuracy` and `val/loss`. For validation slides it logs `val/accuracy`, `val/qwk`
    (quadratic weighted kappa) and `val/auroc` (cancer or none), each if it is defined.

    Args:
        network: The MIL network.
        loss: Module that takes logits (B, C) and labels (B,).
        optim: Settings of optimizer and schedule.
        metadata: What checkpoints store for inference.
    """

    def __init__(self, network: MILNet, loss: nn.Module, optim: Optim, metadata: GradingMetadata) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.optim = optim
        self.metadata = metadata
        self.train_slides, self.val_slides = Predictions(), Predictions()
        # Lightning's own mean over the epoch is not used: its progress bar computes it on one of several devices only.
        self.train_loss, self.val_loss = MeanLoss(), MeanLoss()
        self.finite = FiniteCheck(optim.lr)

    def setup(self, stage: str) -> None:
        """Separate the metrics from those of other processes."""
        separate_metrics(self)

    def forward(self, bag: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """See `MILNet.forward`."""
        out: tuple[Tensor, Tensor, Tensor] = self.network(bag, mask)
        return out

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of bags."""
        bag, mask, grade, slides = batch
        label = find_class(grade, self.metadata.target)
        logits, _, _ = self(bag, mask)
        loss: Tensor = self.loss(logits, label)
        self.finite.add(loss, logits, self.current_epoch, lambda: slides)
        self.train_loss.update(loss, len(bag))
        self.train_slides.update(logits.detach().float().softmax(-1), label)
        self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training loss and accuracy."""
        self.finite.settle()
        self.log("train/loss", self.train_loss.compute())
        self.train_loss.reset()
        prob, label = self.train_slides.compute()
        self.train_slides.reset()
        self.log("train/accuracy", (prob.argmax(-1) == label).float().mean(), prog_bar=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of bags to the scores of the epoch."""
        bag, mask, grade, slides = batch
        label = find_class(grade, self.metadata.target)
        logits, _, _ = self(bag, mask)
        loss: Tensor = self.loss(logits, label)
        self.finite.add(loss, logits, self.current_epoch, lambda: slides)
        self.val_loss.update(loss, len(bag))
        self.val_slides.update(logits.float().softmax(-1), label)

    def on_validation_epoch_end(self) -> None:
        """Log the defined scores of the validation slides."""
        self.finite.settle()
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self.val_loss.reset()
        prob, label = self.val_slides.compute()
        self.val_slides.reset()
        scores = score_grades(label.reshape(-1).cpu(), prob.cpu())  # torchmetrics gives a scalar for one slide
        logged = {"accuracy": scores.accuracy, "qwk": scores.qwk, "auroc": scores.auroc_cancer}
        for name, score in logged.items():
            if score is not None:
                self.log(f"val/{name}", torch.tensor(score), prog_bar=name != "accuracy")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and schedule for all steps of the run."""
        return self.optim.build(self.network.parameters(), int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store under `panda` all that inference needs, as plain data."""
        checkpoint["panda"] = self.metadata.to_entry()
