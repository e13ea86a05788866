"""Slide grading by multiple-instance learning as a LightningModule."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from panda.data.targets import TargetSpec
from panda.models.mil import MILNet
from panda.tasks.epoch_metrics import MeanLoss, separate_metrics
from panda.tasks.grade_metrics import score_grades
from panda.tasks.metadata import GradingMetadata
from panda.tasks.optim import FiniteCheck, Optim
from panda.tasks.target_metrics import (
    average_aurocs,
    compute_concordance,
    list_class_statistics,
    list_number_statistics,
)

Batch = tuple[Tensor, Tensor, Tensor, list[str]]
"""Tiles (B, K, 3, h, w), or features (B, K, D) of a frozen encoder; mask (B, K) bool; labels (B,) or (B, 2); slide ids.

`panda.data.targets.TargetSpec.read_label` makes the labels.
"""


class Predictions(Metric):
    """Outputs (N, …) and labels (N, …) of an epoch, gathered over devices; see `convert_output`."""

    full_state_update = False
    prob: list[Tensor]
    label: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("prob", default=[], dist_reduce_fx="cat")
        self.add_state("label", default=[], dist_reduce_fx="cat")

    def update(self, prob: Tensor, label: Tensor) -> None:
        """Add a batch of outputs and labels."""
        self.prob.append(prob)
        self.label.append(label)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return all outputs and labels."""
        return dim_zero_cat(self.prob), dim_zero_cat(self.label)


def convert_output(logits: Tensor, metadata: GradingMetadata) -> Tensor:
    """Convert the output of a network, (…, C).

    Returns:
        Probabilities of the classes, (…, C); for a regression the number in its own unit, (…); for a survival the log
        relative hazard, (…).
    """
    if metadata.target.has_classes:
        return logits.softmax(-1)
    value = logits.squeeze(-1)
    return value if metadata.scale is None else value * metadata.scale.sd + metadata.scale.mean


def score_predictions(output: Tensor, label: Tensor, target: TargetSpec) -> dict[str, float | None]:
    """Return the scores of the slides of an epoch by name, None if undefined; see `convert_output` for `output`."""
    found, given = output.cpu().double(), label.cpu()
    if target.is_grade:
        scores = score_grades(given.reshape(-1), found)  # torchmetrics gives a scalar for one slide
        return {"accuracy": scores.accuracy, "qwk": scores.qwk, "auroc": scores.auroc_cancer}
    if target.has_classes:
        truth, prob = given.reshape(-1).numpy(), found.numpy()
        statistics = list_class_statistics(truth, prob.argmax(axis=1), target.outputs)
        statistics["auroc_macro"] = partial(average_aurocs, truth, prob)
        if target.kind == "classes":
            del statistics["qwk"]
    elif target.kind == "regression":
        statistics = list_number_statistics(given.reshape(-1).double().numpy(), found.reshape(-1).numpy())
    else:
        time, event = given.reshape(-1, 2).double().numpy().T
        statistics = {"concordance": partial(compute_concordance, time, event, found.reshape(-1).numpy())}
    scored = {name: float(statistic(np.ones(len(found)))) for name, statistic in statistics.items()}
    return {name: None if math.isnan(score) else score for name, score in scored.items()}


class GradingTask(pl.LightningModule):
    """Train a `MILNet` on bags of tiles.

    It logs `train/loss` and `val/loss`, `train/accuracy` of classes, and for validation slides each score of
    `score_predictions` that is defined. The loss of a survival on validation is that of all slides together, because
    it depends on who else is at risk.

    Args:
        network: The MIL network.
        loss: Module that takes logits (B, C) and classes (B,); standardized numbers, (B,) both; or risks (B,) and
            labels (B, 2).
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
        bag, mask, label, slides = batch
        logits, _, feats = self(bag, mask)
        loss = self.network.add_auxiliary_loss(self._compute_loss(logits, label), feats, mask, label)
        self.finite.add(loss, logits, self.current_epoch, lambda: slides)
        self.train_loss.update(loss, len(bag))
        self.train_slides.update(convert_output(logits.detach().float(), self.metadata), label)
        self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training loss and accuracy."""
        self.finite.settle()
        self.log("train/loss", self.train_loss.compute())
        self.train_loss.reset()
        prob, label = self.train_slides.compute()
        self.train_slides.reset()
        if self.metadata.target.has_classes:
            self.log("train/accuracy", (prob.argmax(-1) == label).float().mean(), prog_bar=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of bags to the scores of the epoch."""
        bag, mask, label, slides = batch
        logits, _, _ = self(bag, mask)
        loss = self._compute_loss(logits, label)
        self.finite.add(loss, logits, self.current_epoch, lambda: slides)
        self.val_loss.update(loss, len(bag))
        self.val_slides.update(convert_output(logits.float(), self.metadata), label)

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the defined scores of the validation slides."""
        self.finite.settle()
        prob, label = self.val_slides.compute()
        self.val_slides.reset()
        target = self.metadata.target
        together = target.kind == "survival"
        loss = self.loss(prob.reshape(-1), label.reshape(-1, 2)) if together else self.val_loss.compute()
        self.val_loss.reset()
        self.log("val/loss", loss, prog_bar=True)
        for name, score in score_predictions(prob, label, target).items():
            if score is not None:
                self.log(f"val/{name}", torch.tensor(score), prog_bar=name != "accuracy")

    def _compute_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        if not self.metadata.target.has_classes:
            logits = logits.squeeze(-1)
        if (scale := self.metadata.scale) is not None:
            label = (label - scale.mean) / scale.sd
        loss: Tensor = self.loss(logits, label)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and schedule for all steps of the run."""
        return self.optim.build(self.network.parameters(), int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store under `panda` all that inference needs, as plain data."""
        checkpoint["panda"] = self.metadata.to_entry()
