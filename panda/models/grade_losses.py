"""Losses over the classes of whole slides."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class CumulativeLoss(nn.Module):
    """Cross-entropy of the questions "is the grade above k?", averaged over k. Near misses cost less.

    This is the loss of CORAL (Cao, Mirjalili, Raschka 2020) for ordered classes. P(grade > k) is the sum of the classes
    above k, so the loss trains the `softmax` head as well as the `ordinal` one.
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Compute the scalar float32 loss of logits (B, C), C at least 2, and true classes (B,), 0 to C - 1."""
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(f"logits are (B, C) of ordered classes with C at least 2, not {(*logits.shape,)}")
        logits = logits.float()
        classes = logits.shape[1]
        below = torch.stack([logits[:, : k + 1].logsumexp(dim=1) for k in range(classes - 1)], dim=1)
        above = torch.stack([logits[:, k + 1 :].logsumexp(dim=1) for k in range(classes - 1)], dim=1)
        passed = (label[:, None] > torch.arange(classes - 1, device=label.device)).float()
        return functional.binary_cross_entropy_with_logits(above - below, passed)
