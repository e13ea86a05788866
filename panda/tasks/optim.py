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
            fused = all(parameter.is_cuda for parameter in trained)  # one kernel a step instead of several a weight
            optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay, fused=fused or None)
            # A fused step could also undo the scale of 16-mixed. Lightning leaves that to it, and then refuses to clip
            # gradients, in bf16-mixed too, which has no scale.
            optimizer._step_supports_amp_scaling = False
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


class FiniteCheck:
    """Stops a training whose loss is NaN or infinite.

    A batch is checked when the next one is added, so that a GPU never waits for the check. `settle` checks the last
    batch, and is called before a checkpoint is written.

    Args:
        lr: Highest learning rate, for the message.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self._pending: tuple[Tensor, torch.cuda.Event | None, int, Callable[[], Sequence[str]]] | None = None

    def add(self, loss: Tensor, outputs: Tensor, epoch: int, names: Callable[[], Sequence[str]]) -> None:
        """Add a batch, and raise a `PandaError` if the loss of the batch before is not finite.

        Args:
            loss: Loss of the batch.
            outputs: Output of the network, (N, …).
            epoch: Epoch, for the message.
            names: Returns the names of the N samples; called only if the loss is not finite.
        """
        fine = torch.isfinite(outputs.detach()).flatten(1).all(dim=1)
        found, copied = torch.cat([loss.detach().double().reshape(1), fine.double()]), None
        if found.is_cuda:
            found = torch.empty_like(found, device="cpu", pin_memory=True).copy_(found, non_blocking=True)
            copied = torch.cuda.current_stream().record_event()
        before, self._pending = self._pending, (found, copied, epoch, names)
        self._check(before)

    def settle(self) -> None:
        """Check the last batch that was added, see `add`."""
        before, self._pending = self._pending, None
        self._check(before)

    def _check(self, batch: tuple[Tensor, torch.cuda.Event | None, int, Callable[[], Sequence[str]]] | None) -> None:
        if batch is None:
            return
        found, copied, epoch, names = batch
        if copied is not None:
            copied.synchronize()
        loss, *fine = found.tolist()
        if not math.isfinite(loss):
            self._pending = None
            raise PandaError(_describe_divergence(loss, [bool(each) for each in fine], self.lr, epoch, list(names())))


def _describe_divergence(loss: float, fine: Sequence[bool], lr: float, epoch: int, batch: Sequence[str]) -> str:
    """Return the message for a batch of named samples, whose outputs are finite or not."""
    broken = [name for name, good in zip(batch, fine, strict=True) if not good] if len(batch) == len(fine) else []
    samples = broken or batch
    listed = "; ".join(samples[:_MOST_NAMES])
    if len(samples) > _MOST_NAMES:
        listed += f"; and {len(samples) - _MOST_NAMES} more"
    cause = "the network's output is no number for" if broken and len(broken) < len(batch) else "the batch was"
    return (
        f"the loss is {loss} in epoch {epoch}: training has diverged; lower optim.lr={lr:g}, set "
        "trainer.gradient_clip_val=1.0, or train in trainer.precision=32-true. Checkpoints of earlier epochs are kept"
        + (f"; {cause}: {listed}" if listed else "")
    )
