"""Try a loss on a few numbers before a run begins."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from panda.data.targets import Kind, TargetSpec
from panda.errors import ConfigError
from panda.models.grade_losses import CumulativeLoss
from panda.models.partial_labels import ANY_CANCER, IGNORED


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


LOSSES: Mapping[Kind, str] = {
    "classes": "cross_entropy",
    "ordinal": "cross_entropy or loss=coral",
    "regression": "huber or loss=mse",
    "survival": "cox",
}
"""Losses of conf/loss for each kind of target."""


def check_target_loss(loss: nn.Module, name: str, target: TargetSpec) -> None:
    """Check that a loss fits the kind of a grading's target; see `GradingTask` for its arguments."""
    remedy = f"task.kind={target.kind} of task.target={target.name}: give loss={LOSSES[target.kind]}"
    if target.has_classes:
        if target.kind == "classes" and target.outputs > 2 and isinstance(loss, CumulativeLoss):
            raise ConfigError(f"loss={name} is for classes in order, not for {remedy}")
        try:
            rows = target.outputs + 1  # with a row for each class, a loss of numbers would broadcast the labels
            return check_loss(loss, name, torch.zeros(rows, target.outputs), torch.arange(rows) % target.outputs)
        except ConfigError as error:
            raise ConfigError(f"{error.faults[0]}; {remedy}") from error
    if target.kind == "regression":
        outputs, label, wanted = torch.tensor([2.0, 3.0, 4.0]), torch.ones(3), [1, 1, 1]
    else:
        outputs, label, wanted = torch.zeros(3), torch.tensor([[1.0, 1], [2, 0], [3, 0]]), [-1, 1, 1]
    outputs.requires_grad_()
    try:
        loss(outputs, label).backward()
    except Exception as error:  # libraries raise any for a shape that they do not take
        raise ConfigError(f"loss={name} does not fit {remedy} ({str(error).splitlines()[0]})") from error
    if outputs.grad is None or outputs.grad.sign().tolist() != wanted:
        raise ConfigError(f"loss={name} does not fit {remedy}")
    return None


def check_ignored_pixels(loss: nn.Module, name: str, channels: int = 1) -> None:
    """Check that a loss skips ignored pixels; most would learn them as a target."""
    if bool(_find_gradient(loss, [[1, IGNORED], [0, IGNORED]], channels)[..., 1].any()):
        raise ConfigError(
            f"data.ignore_background=true: loss={name} does not skip ignored pixels; use a loss of panda.models.losses"
        )


def check_partial_labels(loss: nn.Module, name: str, channels: int) -> None:
    """Check that a loss of several classes lowers no cancer only at a pixel whose label says no more than "cancer"."""
    gradient = _find_gradient(loss, [[ANY_CANCER, 1], [ANY_CANCER, 0]], channels)[0, :, :, 0]
    if bool((gradient[0] <= 0).any() or (gradient[1:] > 0).any()):
        raise ConfigError(
            f"task.classes: loss={name} does not take labels that say no more than cancer; use a loss of "
            "panda.models.losses"
        )


def _find_gradient(loss: nn.Module, target: list[list[int]], channels: int) -> Tensor:
    """Return the gradient of a loss at logits of 0, (1, channels, 2, 2); ones if it refuses the target."""
    logits = torch.zeros(1, channels, 2, 2, requires_grad=True)
    try:
        loss(logits, torch.tensor(target, dtype=torch.float32)[None, None]).backward()
    except Exception:  # a loss that checks its target refuses such marks
        return torch.ones_like(logits)
    assert logits.grad is not None
    return logits.grad
