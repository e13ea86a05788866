"""Metrics that a training gathers over the batches and processes of an epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class MeanLoss(Metric):
    """Weighted mean of the losses of batches, over batches and devices.

    `torchmetrics.MeanMetric` looks for NaN in every batch, which waits for a GPU; without that it drops the weights.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: Tensor | int) -> None:
        """Add the loss of a batch, a scalar, with the number of its pixels, patches or slides."""
        self.total += loss.detach() * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """Return the mean; NaN without weight."""
        return self.total / self.weight


def separate_metrics(module: nn.Module) -> None:
    """Give all metrics of a module states of their own, in the process that trains it.

    Lightning's `ddp_spawn` separates the weights of its processes on a CPU but not the states of metrics, which stay in
    memory that all processes share: each would add its batches to the counts of the others.
    """
    for metric in module.modules():
        if isinstance(metric, Metric):
            metric.reset()
