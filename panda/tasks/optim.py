"""Optimizer and learning-rate schedule of both tasks, as plain settings."""

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
"""Learning rate of the first step as a share of the highest, where there is a warm-up."""


_NAMED = 8
"""Samples that an error names."""


class Optim(Settings):
    """Builds the optimizer and its schedule for a number of steps.

    Args:
        name: `adamw` or `sgd` (Nesterov).
        lr: Highest learning rate.
        weight_decay: Decoupled for AdamW, L2 for SGD.
        momentum: Of SGD; AdamW has its betas.
        schedule: `onecycle` (a linear warm-up over the first 10 % of the steps, then down to 0 along a cosine),
            `cosine` (the same without warm-up), or `none`.
    """

    node: ClassVar[str] = "optim"

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, description="for example 0.001")
    weight_decay: float = Field(default=1e-4, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["onecycle", "cosine", "none"] = "onecycle"

    def build(self, parameters: Iterable[nn.Parameter], steps: int) -> OptimizerLRScheduler:
        """The optimizer and schedule in Lightning's form.

        Args:
            parameters: What is trained; frozen parameters are left out.
            steps: Optimizer steps of the whole run.

        Returns:
            The mapping that `configure_optimizers` returns; the schedule moves every step.
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

        # A plain function of the step leaves nothing in the checkpoint that would hold a resumed run, which may be
        # asked for more epochs, to the old number of steps.
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }


def check_finite(loss: Tensor, outputs: Tensor, lr: float, epoch: int, names: Callable[[], Sequence[str]]) -> None:
    """End a training that has diverged: from weights that are no numbers nothing more is learnt.

    Args:
        loss: Of a batch.
        outputs: Of the network, (N, …).
        lr: The highest learning rate, for the message.
        epoch: For the message.
        names: Names the N samples of the batch; asked only where the loss is no number.

    Raises:
        PandaError: The loss is nan or infinite.
    """
    if bool(torch.isfinite(loss).all()):
        return
    fine = torch.isfinite(outputs.detach()).flatten(1).all(dim=1).tolist()
    batch = list(names())
    broken = [name for name, good in zip(batch, fine, strict=True) if not good] if len(batch) == len(fine) else []
    told = broken or batch
    where = "; ".join(told[:_NAMED]) + (f"; and {len(told) - _NAMED} more" if len(told) > _NAMED else "")
    whose = "the network's output is no number for" if broken and len(broken) < len(batch) else "the batch was"
    raise PandaError(
        f"the loss is {loss.item()} in epoch {epoch}: training has diverged; lower optim.lr={lr:g}, set "
        "trainer.gradient_clip_val=1.0, or train in trainer.precision=32-true. Checkpoints of earlier epochs are kept"
        + (f"; {whose}: {where}" if where else "")
    )
