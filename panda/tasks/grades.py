"""Scores of the grades of slides."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc


def grading_scores(y_true: ArrayLike | Tensor, prob: ArrayLike | Tensor) -> dict[str, Any]:
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
    counts = confusions(truth, scores).sum(axis=0)
    kappa, right = (None if math.isnan(value) else float(value) for value in agreement(counts))
    positive = torch.as_tensor(truth)
    tensor = torch.as_tensor(scores)
    return {
        "n": len(truth),
        "accuracy": right,
        "qwk": kappa,
        "confusion": counts.astype(np.int64).tolist(),
        "auroc_cancer": _auroc(tensor[:, 1:].sum(dim=1), positive >= 1),
        "auroc_significant": _auroc(tensor[:, 2:].sum(dim=1), positive >= 2) if scores.shape[1] > 2 else None,
    }


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
    # Sums of float32 may pass 1 by a hair, and torchmetrics takes anything past 1 for logits.
    return truth, scores / np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _array(values: Any) -> Any:
    return values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values


def _auroc(score: Tensor, positive: Tensor) -> float | None:
    if not positive.any() or positive.all():
        return None
    return float(binary_auroc(score.clamp(0, 1), positive.long()))


def confusions(y_true: NDArray[np.int64], prob: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each slide's part of the confusion matrix, for a bootstrap.

    Args:
        y_true: (N,) integers in 0 … C - 1.
        prob: (N, C) probabilities.

    Returns:
        (N, C, C), 1 where true and predicted class meet.
    """
    classes = np.eye(prob.shape[1])
    return np.asarray(classes[y_true][:, :, None] * classes[prob.argmax(axis=1)][:, None, :])


def agreement(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give Cohen's kappa with quadratic weights, and the accuracy.

    Args:
        confusion: (…, C, C) counts with a row a true class.

    Returns:
        (…, 2); nan where they are undefined: kappa where truth and prediction are all of one and the same class.
    """
    count = confusion.sum(axis=(-2, -1))
    grade = np.arange(confusion.shape[-1])
    distance = (grade[:, None] - grade[None, :]) ** 2
    by_chance = confusion.sum(axis=-1)[..., :, None] * confusion.sum(axis=-2)[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = 1 - count * (distance * confusion).sum(axis=(-2, -1)) / (distance * by_chance).sum(axis=(-2, -1))
        right = np.trace(confusion, axis1=-2, axis2=-1) / count
    return np.stack([kappa, right], axis=-1)
