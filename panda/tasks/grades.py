"""Scores of the grades of slides."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_cohen_kappa,
    multiclass_confusion_matrix,
)


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
    truth = torch.as_tensor(np.array(_array(y_true))).long()
    scores = torch.as_tensor(np.array(_array(prob), dtype=np.float64))
    if scores.ndim != 2 or scores.shape[1] < 2 or truth.shape != scores.shape[:1]:
        raise ValueError(f"y_true is (N,) and prob (N, C), not {tuple(truth.shape)} and {tuple(scores.shape)}")
    classes = scores.shape[1]
    if not bool(((truth >= 0) & (truth < classes)).all()):
        raise ValueError(f"grades must be 0 … {classes - 1}, but run from {truth.min()} to {truth.max()}")
    if not bool((scores >= 0).all()) or not bool(torch.isfinite(scores).all()):
        raise ValueError("probabilities must be numbers of at least 0 (apply a softmax to logits)")
    # Sums of float32 may pass 1 by a hair, and torchmetrics takes anything past 1 for logits.
    scores = scores / scores.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    predicted = scores.argmax(dim=1)
    found: dict[str, Any] = {"n": len(truth), "accuracy": None, "qwk": None}
    found["confusion"] = [[0] * classes for _ in range(classes)]
    if len(truth):
        found["accuracy"] = float(multiclass_accuracy(predicted, truth, classes, average="micro"))
        kappa = multiclass_cohen_kappa(predicted, truth, classes, weights="quadratic")
        found["qwk"] = None if math.isnan(kappa) else float(kappa)
        found["confusion"] = multiclass_confusion_matrix(predicted, truth, classes).tolist()
    found["auroc_cancer"] = _auroc(scores[:, 1:].sum(dim=1), truth >= 1)
    found["auroc_significant"] = _auroc(scores[:, 2:].sum(dim=1), truth >= 2) if classes > 2 else None
    return found


def _array(values: Any) -> Any:
    return values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values


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
