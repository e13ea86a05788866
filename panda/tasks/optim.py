"""Optimizer and learning-rate schedule of both tasks, and the check for divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from panda.errors import PandaError
from panda.settings import Settings

START = 0.04
"""Learning rate of the first step of a warm-up, as a share of the highest."""
_MOST_NAMES = 8
"""Largest number of samples that an error names."""


class Optim(Settings):
    """Settings of the optimizer and its schedule.

    Args:
        name: `adamw` or `sgd` (Nesterov).
        lr: Highest learning rate.
        weight_decay: Weight decay, decoupled for AdamW, L2 for SGD.
        momentum: Momentum of SGD; AdamW ignores it.
        schedule: `onecycle` (a linear warm-up over 10 % of the steps, then a cosine down to 0), `cosine` (the same
            without warm-up), or `none`.
    """

    node: ClassVar[str] = "optim"

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, description="for example 0.001")
    weight_decay: float = Field(default=1e-4, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["onecycle", "cosine", "none"] = "onecycle"

    def build(self, parameters: Iterable[nn.Parameter], steps: int) -> OptimizerLRScheduler:
        """Build the optimizer and the schedule, as for Lightning's `configure_optimizers`.

        Args:
            parameters: Parameters of the network; frozen ones are left out.
            steps: Optimizer steps of the whole run.
        """
        trained = [p for p in parameters if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if self.name == "adamw":
            optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                trained, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum, nesterov=self.momentum > 0
            )
        if self.schedule == "none":
            return {"optimizer": optimizer}
        warm_up = 0.1 * steps if self.schedule == "onecycle" else 0.0

        def factor(step: int) -> float:
            if step < warm_up:
                return START + (1 - START) * step / warm_up
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1.0, steps - warm_up))))

        # A function leaves no state in the checkpoint, which would tie a resumed run to the old number of steps.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def check_finite(loss: Tensor, outputs: Tensor, lr: float, epoch: int, names: Callable[[], Sequence[str]]) -> None:
    """Raise a `PandaError` if the loss of a batch is NaN or infinite, because training has diverged.

    Args:
        loss: Loss of a batch.
        outputs: Output of the network, (N, …).
        lr: Highest learning rate, for the message.
        epoch: Epoch, for the message.
        names: Returns the names of the N samples; called only if the loss is not finite.
    """
    if bool(torch.isfinite(loss).all()):
        return
    fine = torch.isfinite(outputs.detach()).flatten(1).all(dim=1).tolist()
    batch = list(names())
    broken = [name for name, good in zip(batch, fine, strict=True) if not good] if len(batch) == len(fine) else []
    samples = broken or batch
    listed = "; ".join(samples[:_MOST_NAMES])
    if len(samples) > _MOST_NAMES:
        listed += f"; and {len(samples) - _MOST_NAMES} more"
    cause = "the network's output is no number for" if broken and len(broken) < len(batch) else "the batch was"
    raise PandaError(
        f"the loss is {loss.item()} in epoch {epoch}: training has diverged; lower optim.lr={lr:g}, set "
        "trainer.gradient_clip_val=1.0, or train in trainer.precision=32-true. Checkpoints of earlier epochs are kept"
        + (f"; {cause}: {listed}" if listed else "")
    )
