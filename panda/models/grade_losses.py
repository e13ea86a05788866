"""Losses over the classes of whole slides."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class CumulativeLoss(nn.Module):
    """Cross-entropy of each question whether a grade is above k, the mean over them: near misses cost less.

    The loss of CORAL (Cao, Mirjalili, Raschka 2020), over classes in an order. P(grade > k) is the sum of the classes
    above, so it teaches the `softmax` head as well as the `ordinal` one.
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits (B, C), computed in float32, and labels (B,) in 0 … C - 1.

        Raises:
            ValueError: Logits that are not of two classes or more.
        """
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(f"it is over classes in an order, (B, C) logits with C at least 2, not {(*logits.shape,)}")
        logits = logits.float()
        classes = logits.shape[1]
        below = torch.stack([logits[:, : k + 1].logsumexp(dim=1) for k in range(classes - 1)], dim=1)
        above = torch.stack([logits[:, k + 1 :].logsumexp(dim=1) for k in range(classes - 1)], dim=1)
        passed = (label[:, None] > torch.arange(classes - 1, device=label.device)).float()
        return functional.binary_cross_entropy_with_logits(above - below, passed)
