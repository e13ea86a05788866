"""Logits and targets of several classes, and labels that say only "cancer".

Logits are (N, channels, h, w), see `panda.models.probabilities`. A target is (N, 1, h, w): the number of a class,
`IGNORED`, or `ANY_CANCER`. With several classes of cancer, a loss is either of pixels or of regions:

- A loss of pixels takes the probability that a label allows, see `compute_label_probability`. That of `ANY_CANCER` is
  the sum over all classes of cancer.
- A loss of regions is a loss of cancer or not, averaged over regions, see `average_regions`. A pixel counts in a region
  only if its label says whether the pixel belongs to it.

Both equal the loss of cancer or not for labels that only say "cancer" or not. The order of the classes of cancer
changes neither.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

IGNORED, ANY_CANCER = -1, -2
"""Marks in a target, the signed numbers of the marks in `panda.wsi.classes`."""


def merge_target(target: Tensor) -> Tensor:
    """Return the target of cancer or not: 1 for cancer of any class, 0, or below 0 for ignored pixels."""
    return torch.where(target == ANY_CANCER, 1, target).clamp_max(1)


def compute_label_probability(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the logarithm of the probability that a label allows, (N, 1, h, w), for logits of several classes.

    It is that of the class, or of all classes of cancer together for `ANY_CANCER`. Ignored pixels have any value.
    """
    log_probability = logits.float().log_softmax(1)
    of_class = log_probability.gather(1, target.long().clamp_min(0))
    return torch.where(target == ANY_CANCER, log_probability[:, 1:].logsumexp(1, keepdim=True), of_class)


def average_regions(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """Average a loss of cancer or not over cancer of any class, and over each class of cancer that the batch has.

    The regions have the same weight. A class that the batch lacks is left out, because a rare class would otherwise be
    pushed down by nearly every batch; cancer of any class always counts. Each region has the logit of its probability
    and a target of its own: 1 inside, 0 outside, `IGNORED` if the label does not say which.
    """
    if logits.shape[1] == 1:
        return loss(logits, target)
    logits = logits.float()
    cancer = logits[:, 1:].logsumexp(1, keepdim=True) - logits[:, :1]
    total = loss(cancer, merge_target(target))
    count = torch.ones((), device=logits.device)
    for number in range(1, logits.shape[1]):
        others = torch.cat([logits[:, :number], logits[:, number + 1 :]], 1).logsumexp(1, keepdim=True)
        inside = (target == number).to(target.dtype)
        present = inside.any()
        value = loss(logits[:, number : number + 1] - others, torch.where(target < 0, IGNORED, inside))
        total = total + torch.where(present, value, 0)
        count = count + present
    return total / count
