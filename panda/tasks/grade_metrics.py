"""Scores of the grades of slides.

`y_true` has the true classes of N slides, (N,) integers 0 to C - 1: ISUP grades, or cancer absent and present if C is
2. `prob` has their probabilities, (N, C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from panda.tasks.bootstrap import (
    compute_percentile_interval,
    count_groups,
    explain_no_interval,
    resample_counts,
    resample_sums,
)
from panda.tasks.metrics import compute_roc_area

AREAS = {"auroc_cancer": 1, "auroc_significant": 2}
"""AUROC to the lowest grade of its positive side."""


@dataclass(frozen=True)
class GradeScores:
    """Scores of the grades of slides. A score is None if it is undefined.

    Attributes:
        n: Number of slides.
        accuracy: Share of slides with the right class.
        qwk: Cohen's kappa with quadratic weights, by which PANDA was ranked. It is undefined if all true and predicted
            classes are the same one.
        auroc_cancer: AUROC of grade 1 or more. It is undefined without slides on both sides.
        auroc_significant: AUROC of grade 2 or more; None for two classes.
        confusion: Counts, C × C, with a row for each true class.
    """

    n: int
    accuracy: float | None
    qwk: float | None
    auroc_cancer: float | None
    auroc_significant: float | None
    confusion: list[list[int]]


def score_grades(y_true: ArrayLike, prob: ArrayLike) -> GradeScores:
    """Score the grades of slides, see the module.

    Raises:
        ValueError: If shapes do not agree, a grade is out of range, or a probability is negative or not finite.
    """
    truth, scores = _check_inputs(y_true, prob)
    counts = stack_confusions(truth, scores).sum(axis=0)
    once = np.ones(len(truth))
    found = dict.fromkeys(AREAS, np.array(math.nan))
    found["qwk"], found["accuracy"] = compute_agreement(counts)
    found |= {name: compute_auroc(*side, once) for name, side in _split_sides(truth, scores).items()}
    return GradeScores(
        n=len(truth),
        confusion=counts.astype(np.int64).tolist(),
        **{name: None if math.isnan(value) else float(value) for name, value in found.items()},
    )


def compute_grade_intervals(
    y_true: ArrayLike, prob: ArrayLike, groups: Sequence[Any] | NDArray[Any], *, seed: int
) -> dict[str, tuple[float, float]]:
    """Compute the intervals of the scores of `score_grades`, see `panda.tasks.bootstrap`.

    Draws in which a score is undefined are left out of its interval.

    Returns:
        Low and high of qwk, accuracy, auroc_cancer and auroc_significant; both NaN with too few groups, for an
        AUROC on either side, or if the score is undefined.
    """
    truth, scores = _check_inputs(y_true, prob)
    drawn = resample_sums(stack_confusions(truth, scores), groups, compute_agreement, seed=seed)
    found = dict(zip(("qwk", "accuracy"), map(compute_percentile_interval, drawn.T), strict=True))
    found |= dict.fromkeys(AREAS, (math.nan, math.nan))
    for name, side in _split_sides(truth, scores).items():
        if not explain_no_interval(count_groups(groups, side[1], ~side[1])):
            found[name] = compute_percentile_interval(resample_counts(groups, partial(compute_auroc, *side), seed=seed))
    return found


def _split_sides(
    truth: NDArray[np.int64], prob: NDArray[np.float64]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Return, for each AUROC of these classes, the score of each slide and whether it is on the positive side."""
    above = {name: least for name, least in AREAS.items() if least < prob.shape[1]}
    # Rounded, because sums of equal probabilities in another order differ in the last digits.
    return {name: (prob[:, least:].sum(axis=1).round(12), truth >= least) for name, least in above.items()}


def compute_auroc(
    score: NDArray[np.float64], positive: NDArray[np.bool_], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute the AUROC of slides that may count several times. A pair with equal scores counts half.

    Args:
        score: Score of each slide, (N,).
        positive: Whether a slide is on the positive side, (N,).
        times: How often each slide counts, (…, N).

    Returns:
        (…); NaN if all slides that count are on one side.
    """
    order = np.argsort(score, kind="stable")
    ranked, sides = times[..., order], (positive[order], ~positive[order])
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # starts of runs of equal scores
    return compute_roc_area(*(np.add.reduceat(ranked * side, starts, axis=-1) for side in sides))


def _check_inputs(y_true: Any, prob: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return grades (N,) and probabilities (N, C) that sum to 1, or raise a ValueError."""
    truth, scores = np.asarray(y_true, dtype=np.int64), np.asarray(prob, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2 or truth.shape != scores.shape[:1]:
        raise ValueError(f"y_true is (N,) and prob (N, C), not {truth.shape} and {scores.shape}")
    classes = scores.shape[1]
    if not ((truth >= 0) & (truth < classes)).all():
        raise ValueError(f"grades must be 0 to {classes - 1}, but are from {truth.min()} to {truth.max()}")
    if not (scores >= 0).all() or not np.isfinite(scores).all():
        raise ValueError("probabilities must be finite and at least 0 (apply a softmax to logits)")
    return truth, scores / np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)


def stack_confusions(y_true: NDArray[np.int64], prob: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the confusion matrix of each slide, (N, C, C): 1 at its true and predicted class, otherwise 0."""
    classes = np.eye(prob.shape[1])
    return np.asarray(classes[y_true][:, :, None] * classes[prob.argmax(axis=1)][:, None, :])


def compute_agreement(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute quadratic weighted kappa and accuracy, (…, 2), of counts (…, C, C) with a row for each true class.

    Kappa is NaN if all true and predicted classes are the same one. The function is our own, because scikit-learn's
    takes one matrix at a time and the bootstrap has thousands.
    """
    count = confusion.sum(axis=(-2, -1))
    grade = np.arange(confusion.shape[-1])
    distance = (grade[:, None] - grade[None, :]) ** 2
    by_chance = confusion.sum(axis=-1)[..., :, None] * confusion.sum(axis=-2)[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = 1 - count * (distance * confusion).sum(axis=(-2, -1)) / (distance * by_chance).sum(axis=(-2, -1))
        accuracy = np.trace(confusion, axis1=-2, axis2=-1) / count
    return np.stack([kappa, accuracy], axis=-1)


def compare_grades(pairs: NDArray[np.float64]) -> tuple[float, float]:
    """Compute kappa and accuracy of (N, 2) true and predicted classes, see `compute_agreement`."""
    true, predicted = pairs.astype(np.int64).T
    classes = int(pairs.max(initial=0)) + 1
    counts = np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)
    kappa, accuracy = compute_agreement(counts.astype(np.float64)).tolist()
    return kappa, accuracy
