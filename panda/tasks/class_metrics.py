"""Counts of pixels by class of the label and prediction, during training.

A pixel counts for a class only if its label says whether it is of the class. So a pixel whose label says no more than
"cancer" counts for none of them, and a pixel without cancer counts for all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from panda.models.partial_labels import IGNORED
from panda.models.probabilities import merge_cancer_classes
from panda.tasks.pixel_histogram import count_numbers
from panda.wsi.classes import ClassSet


def predict_classes(probabilities: Tensor, threshold: float, classes: ClassSet) -> Tensor:
    """Predict the class of each pixel, (N, 1, h, w) int64.

    A pixel is cancer if the sum of the classes of cancer reaches the threshold. Its class is then the one with the
    highest probability; a tie has the highest Gleason pattern.

    Args:
        probabilities: Those of the classes of cancer, (N, number of them, h, w).
        threshold: Threshold of the sum.
        classes: The classes.
    """
    highest, *others = classes.by_pattern
    best, number = probabilities[:, highest - 1], torch.full_like(probabilities[:, 0], highest, dtype=torch.int64)
    for other in others:
        above = probabilities[:, other - 1] > best
        best = torch.where(above, probabilities[:, other - 1], best)
        number = torch.where(above, other, number)
    return torch.where(merge_cancer_classes(probabilities) >= threshold, number[:, None], 0)


class ClassCounts(Metric):
    """Number of labelled pixels by class of the label and predicted class, over batches and devices.

    Args:
        count: Number of classes.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = count
        self.add_state("counts", torch.zeros(count * count + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add a batch: predicted classes and target, both (N, 1, h, w), see `panda.models.partial_labels`."""
        cells = torch.where(target > IGNORED, target.long() * self.count + predicted, self.count**2)
        self.counts += count_numbers(cells, self.count**2 + 1)

    def compute(self) -> Tensor:
        """Return the counts, (classes, classes) int64: rows are labels, columns are predictions."""
        return self.counts[:-1].view(self.count, self.count).clone()
