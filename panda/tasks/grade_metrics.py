"""Scores of the grades of slides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from panda.tasks.bootstrap import compute_percentile_interval, resample_counts, resample_sums
from panda.tasks.metrics import compute_roc_area

AREAS = {"auroc_cancer": 1, "auroc_significant": 2}
"""AUROCs, and the least grade on the upper side of each."""


def score_grades(y_true: ArrayLike | Tensor, prob: ArrayLike | Tensor) -> dict[str, Any]:
    """Score the grades of slides.

    Args:
        y_true: (N,) integers in 0 … C - 1: ISUP grades, or 0 and 1 for cancer where C is 2.
        prob: (N, C) probabilities.

    Returns:
        n; accuracy; qwk (Cohen's kappa with quadratic weights, by which PANDA was ranked); auroc_cancer
        (grade 1 or more against 0); auroc_significant (grade 2 or more against less; None where C is 2);
        confusion, C × C counts with a row a true grade. What is undefined is None: an AUROC of one class, or
        kappa where truth and prediction are all of one and the same grade.

    Raises:
        ValueError: Shapes that do not agree, grades out of range, or probabilities that are not numbers >= 0.
    """
    truth, scores = _checked(y_true, prob)
    counts = stack_confusions(truth, scores).sum(axis=0)
    once = np.ones(len(truth))
    found = dict(zip(("qwk", "accuracy"), compute_agreement(counts), strict=True))
    found |= {name: compute_auroc(*side, once) for name, side in _sides(truth, scores).items()}
    return {
        "n": len(truth),
        "confusion": counts.astype(np.int64).tolist(),
        **dict.fromkeys(AREAS),
        **{name: None if math.isnan(value) else float(value) for name, value in found.items()},
    }


def compute_grade_intervals(
    y_true: ArrayLike, prob: ArrayLike, groups: Sequence[Any] | NDArray[Any], *, seed: int
) -> dict[str, tuple[float, float]]:
    """Give the intervals of the figures of `score_grades`, see `panda.tasks.bootstrap`.

    Draws in which a figure is undefined are left out of its interval: an AUROC's is over the draws that hold both of
    its sides.

    Args:
        y_true: As for `score_grades`.
        prob: As for `score_grades`.
        groups: (N,), each slide's group.
        seed: Of the drawing.

    Returns:
        (low, high) of qwk, accuracy, auroc_cancer and auroc_significant; (nan, nan) with fewer than two groups, or
        where the figure is undefined.

    Raises:
        ValueError: As `score_grades`, or not as many groups as slides.
    """
    truth, scores = _checked(y_true, prob)
    drawn = resample_sums(stack_confusions(truth, scores), groups, compute_agreement, seed=seed)
    found = dict(zip(("qwk", "accuracy"), map(compute_percentile_interval, drawn.T), strict=True))
    found |= dict.fromkeys(AREAS, (math.nan, math.nan))
    for name, side in _sides(truth, scores).items():
        found[name] = compute_percentile_interval(resample_counts(groups, partial(compute_auroc, *side), seed=seed))
    return found


def _sides(
    truth: NDArray[np.int64], prob: NDArray[np.float64]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """For each AUROC that so many classes have, the score of slides and which are on its upper side."""
    above = {name: least for name, least in AREAS.items() if least < prob.shape[1]}
    # Rounded: sums of the same probabilities in another order differ in the last digits, and would be no equals.
    return {name: (prob[:, least:].sum(axis=1).round(12), truth >= least) for name, least in above.items()}


def compute_auroc(
    score: NDArray[np.float64], positive: NDArray[np.bool_], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give the AUROC of slides, each counted so many times; of equal scores half.

    Args:
        score: (N,).
        positive: (N,), whether a slide is on the upper side.
        times: (…, N), how often each slide counts.

    Returns:
        (…); nan where all slides that count are on one side.
    """
    order = np.argsort(score, kind="stable")
    ranked, sides = times[..., order], (positive[order], ~positive[order])
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # of runs of equal scores
    return compute_roc_area(*(np.add.reduceat(ranked * side, starts, axis=-1) for side in sides))


def _checked(y_true: Any, prob: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Grades (N,) and probabilities (N, C) that sum to 1, or what is wrong with them."""
    truth = np.asarray(_array(y_true), dtype=np.int64)
    scores = np.asarray(_array(prob), dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2 or truth.shape != scores.shape[:1]:
        raise ValueError(f"y_true is (N,) and prob (N, C), not {truth.shape} and {scores.shape}")
    classes = scores.shape[1]
    if not ((truth >= 0) & (truth < classes)).all():
        raise ValueError(f"grades must be 0 … {classes - 1}, but run from {truth.min()} to {truth.max()}")
    if not (scores >= 0).all() or not np.isfinite(scores).all():
        raise ValueError("probabilities must be numbers of at least 0 (apply a softmax to logits)")
    return truth, scores / np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _array(values: Any) -> Any:
    return values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values


def stack_confusions(y_true: NDArray[np.int64], prob: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each slide's part of the confusion matrix, for a bootstrap.

    Args:
        y_true: (N,) integers in 0 … C - 1.
        prob: (N, C) probabilities.

    Returns:
        (N, C, C), 1 where true and predicted class meet.
    """
    classes = np.eye(prob.shape[1])
    return np.asarray(classes[y_true][:, :, None] * classes[prob.argmax(axis=1)][:, None, :])


def compute_agreement(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute Cohen's kappa with quadratic weights, and accuracy.

    It is our own, because scikit-learn's takes one matrix at a time and the bootstrap has thousands.

    Args:
        confusion: Counts, (…, C, C), with a row for each true class.

    Returns:
        Kappa and accuracy, (…, 2). Kappa is NaN if all true and predicted classes are the same one.
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
