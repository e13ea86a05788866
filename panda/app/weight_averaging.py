"""Average the weights over the steps of a training, because an average often generalizes better than the last step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """Lightning's weight averaging, for an exponential moving average in spawned processes and on any device.

    Validation and `state_dict` of checkpoints have the averaged weights. Training continues with its own ones, which a
    checkpoint holds too, so that a resumed run equals an uninterrupted one.

    Args:
        decay: See `update_average`.
    """

    def __init__(self, decay: float) -> None:
        # Lightning's own class for it holds a local function, which no other process can take over.
        super().__init__(multi_avg_fn=partial(update_average, decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the weights to the device of the training; they are still on the CPU here."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the averaged weights, because `PatchViews` and the task still use them."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Return to the weights of the training."""
        super().on_validation_epoch_end(trainer, pl_module)


def update_average(decay: float, averages: Sequence[Tensor], weights: Sequence[Tensor], steps: Tensor | int) -> None:
    """Add a step to an exponential moving average, in place. Counters of steps are copied, because they are no weights.

    The average is decay · average + (1 - decay) · weights. The decay is at most (1 + steps) / (10 + steps), so that
    the first steps do not weigh on a short training (as in TensorFlow's `ExponentialMovingAverage`).

    Args:
        decay: Share of the average that stays.
        averages: Averaged weights and buffers, all of one dtype.
        weights: Those after the step, in the same order.
        steps: Number of steps in the average.
    """
    if averages[0].is_floating_point():
        grown = (1 + float(steps)) / (10 + float(steps))
        torch._foreach_lerp_(list(averages), list(weights), 1 - min(decay, grown))
    else:
        for average, current in zip(averages, weights, strict=True):
            average.copy_(current)
