"""Probabilities of classes from logits.

Logits are (N, channels, h, w), of any floating dtype. With one channel its sigmoid is the probability of cancer.
Otherwise the softmax over the channels has the probability of each class: channel 0 is no cancer, and the others are
the classes of cancer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compute_cancer_classes(logits: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute the probability of each class of cancer, (N, max(1, channels - 1), h, w) float32 in [0, 1].

    Args:
        logits: The logits.
        out: Gets the result, if it is given.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        return torch.sigmoid(logits, out=out)
    found = logits.softmax(1)[:, 1:]
    return found if out is None else out.copy_(found)


def merge_cancer_classes(probabilities: Tensor) -> Tensor:
    """Return the probability of cancer of any class, (N, 1, h, w), from the result of `compute_cancer_classes`."""
    if probabilities.shape[1] == 1:
        return probabilities
    return probabilities.sum(1, keepdim=True).clamp_max(1)  # the rounded sum can be slightly above 1


def compute_cancer_probability(logits: Tensor) -> Tensor:
    """Compute the probability of cancer of any class, (N, 1, h, w) float32 in [0, 1]."""
    return merge_cancer_classes(compute_cancer_classes(logits))
