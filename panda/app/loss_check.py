"""Try a loss on a few numbers before a run begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from panda.app.build import Faults


def check_loss(loss: nn.Module, logits: Tensor, target: Tensor, node: Mapping[str, Any], faults: Faults) -> bool:
    """Return whether a loss computes a gradient for tensors of the task's shapes, and add a fault if not.

    The logits are wrong everywhere, so that any loss has a gradient.
    """
    logits = logits.clone().requires_grad_()
    try:
        value = loss(logits, target)
        value.backward()
    except Exception as error:  # libraries raise any for a shape that they do not take
        faults.add(f"loss={node['_target_']} does not fit the task: {str(error).splitlines()[0]}")
        return False
    fits = logits.grad is not None and bool(logits.grad.any())
    if not fits:
        faults.add(
            f"loss={node['_target_']} gives no gradient for this task's logits {tuple(logits.shape)}: use another loss"
        )
    return fits


def check_ignored_pixels(loss: nn.Module, node: Mapping[str, Any], faults: Faults) -> None:
    """Check that a loss of one class skips ignored pixels (target below 0); most would learn them as a target."""
    target = torch.tensor([[1.0, -1.0], [0.0, -1.0]]).view(1, 1, 2, 2)
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    try:
        loss(logits, target).backward()
    except Exception:  # a loss that checks its target refuses the mark of an ignored pixel
        logits.grad = torch.ones_like(logits)
    assert logits.grad is not None
    if bool(logits.grad[target < 0].any()):
        faults.add(
            f"data.ignore_background=true: loss={node['_target_']} does not skip ignored pixels; use a loss "
            "of panda.models.losses"
        )
