"""Try a loss on a few numbers before a run begins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panda.errors import ConfigError


def check_loss(loss: nn.Module, name: str, logits: Tensor, target: Tensor) -> None:
    """Check that a loss computes a gradient for tensors of the task's shapes. `name` is its class, for the message.

    The logits are wrong everywhere, so that any loss has a gradient.
    """
    logits = logits.clone().requires_grad_()
    try:
        value = loss(logits, target)
        value.backward()
    except Exception as error:  # libraries raise any for a shape that they do not take
        raise ConfigError(f"loss={name} does not fit the task: {str(error).splitlines()[0]}") from error
    if logits.grad is None or not logits.grad.any():
        raise ConfigError(
            f"loss={name} gives no gradient for this task's logits {tuple(logits.shape)}: use another loss"
        )


def check_ignored_pixels(loss: nn.Module, name: str) -> None:
    """Check that a loss of one class skips ignored pixels (target below 0); most would learn them as a target."""
    target = torch.tensor([[1.0, -1.0], [0.0, -1.0]]).view(1, 1, 2, 2)
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    try:
        loss(logits, target).backward()
    except Exception:  # a loss that checks its target refuses the mark of an ignored pixel
        logits.grad = torch.ones_like(logits)
    assert logits.grad is not None
    if bool(logits.grad[target < 0].any()):
        raise ConfigError(
            f"data.ignore_background=true: loss={name} does not skip ignored pixels; use a loss of panda.models.losses"
        )
