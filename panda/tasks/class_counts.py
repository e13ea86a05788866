"""Scores of the classes of a segmentation, from counts of pixels by label, predicted class and probability.

Counts are (ROWS, C, BINS) int64 for C classes. The rows are labels: the C classes, then `NO_PATTERNS`, `ANY_CANCER` and
`IGNORED`, see `find_row`. The columns are the class of a pixel if it is cancer, and the bins are those of its
probability of cancer, as in `panda.tasks.metrics`. Counts add up over slides.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from panda.tasks.bins import BINS
from panda.tasks.metrics import divide, find_threshold_bin
from panda.wsi.classes import ANY_CANCER, IGNORED, OTHER

Extra = Literal["no_patterns", "any_cancer", "ignored"]
_EXTRA: tuple[Extra, ...] = ("no_patterns", "any_cancer", "ignored")


def find_row(kind: Extra, classes: int) -> int:
    """Return the row of the labels that are no class.

    Args:
        kind: `no_patterns` are pixels without cancer by a label map that separates no patterns, `any_cancer` is cancer
            of an unknown pattern, and `ignored` has no label.
        classes: Number of classes.
    """
    return classes + _EXTRA.index(kind)


def shape_counts(classes: int) -> tuple[int, int, int]:
    """Return the shape of the counts of pixels of C classes, (ROWS, C, BINS)."""
    return classes + len(_EXTRA), classes, BINS


def count_class_pixels(
    prob: NDArray[np.float32],
    predicted: NDArray[np.uint8],
    target: NDArray[np.uint8],
    where: NDArray[np.bool_],
    classes: int,
    *,
    has_patterns: bool,
) -> NDArray[np.int64]:
    """Count pixels by label, predicted class and probability.

    Args:
        prob: Probability of cancer, (h, w).
        predicted: Class of a pixel if it is cancer, 1 to C - 1; 0 for a pixel that was not scored; (h, w).
        target: Targets of `panda.wsi.classes`, (h, w).
        where: Pixels that count, (h, w).
        classes: Number of classes, C.
        has_patterns: Whether the label map gives patterns to its codes.

    Returns:
        (C + 3, C, BINS).
    """
    import torch  # noqa: PLC0415  (what reads counts needs none)

    from panda.tasks.pixel_histogram import find_bins  # noqa: PLC0415

    rows = np.arange(256)
    rows[OTHER] = OTHER if has_patterns else find_row("no_patterns", classes)
    rows[ANY_CANCER], rows[IGNORED] = find_row("any_cancer", classes), find_row("ignored", classes)
    shape = shape_counts(classes)
    bins = find_bins(torch.from_numpy(prob[where])).numpy()
    cells = (rows[target[where]] * classes + predicted[where]) * BINS + bins
    return np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape)


def confuse_classes(counts: NDArray[Any], threshold: float) -> NDArray[np.int64]:
    """Return the confusion matrix at a threshold, (…, ROWS, C), from counts (…, ROWS, C, BINS)."""
    k = find_threshold_bin(threshold)
    found = counts[..., k:].sum(axis=-1)
    found[..., 0] += counts[..., :k].sum(axis=(-1, -2))
    return np.asarray(found, np.int64)


def measure_class_dice(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the Dice of each class of cancer, (…, C - 1), from confusion matrices (…, ROWS, C).

    Only pixels whose label names their class count. A class that no pixel has is NaN.
    """
    classes = confusion.shape[-1]
    known = confusion[..., :classes, :].astype(np.float64)
    labelled, predicted = known.sum(axis=-1), known.sum(axis=-2)
    overlap = np.diagonal(known, axis1=-2, axis2=-1)
    return divide(2 * overlap, (labelled + predicted) * (labelled > 0))[..., 1:]
