"""Scores of grades against scikit-learn."""

import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as oracle
from torchmetrics.functional.classification import binary_auroc, multiclass_cohen_kappa

from panda.data.targets import ISUP
from panda.models.mil import MILNet
from panda.tasks.grade_metrics import (
    compute_agreement,
    compute_auroc,
    compute_grade_intervals,
    score_grades,
    stack_confusions,
)
from panda.tasks.grading import GradingTask
from panda.tasks.metadata import GradingMetadata
from panda.tasks.optim import Optim


def draw_grades(seed: int, classes: int, n: int = 120) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[truth]
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, prob.astype(np.float32)


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_grading_scores_match_oracle(classes: int, seed: int) -> None:
    truth, prob = draw_grades(seed, classes)
    predicted = prob.argmax(axis=1)
    found = score_grades(torch.tensor(truth), torch.tensor(prob))
    labels = list(range(classes))
    assert found.n == len(truth)
    assert found.accuracy == pytest.approx(oracle.accuracy_score(truth, predicted), abs=1e-12)
    kappa = oracle.cohen_kappa_score(truth, predicted, weights="quadratic", labels=labels)
    assert found.qwk == pytest.approx(kappa, abs=1e-12)
    both = torch.tensor(predicted), torch.tensor(truth)
    assert found.qwk == pytest.approx(float(multiclass_cohen_kappa(*both, classes, weights="quadratic")), abs=1e-5)
    assert found.confusion == oracle.confusion_matrix(truth, predicted, labels=labels).tolist()
    area = oracle.roc_auc_score(truth >= 1, prob[:, 1:].sum(axis=1, dtype=np.float64))
    assert found.auroc_cancer == pytest.approx(area, abs=1e-12)
    if classes > 2:
        area = oracle.roc_auc_score(truth >= 2, prob[:, 2:].sum(axis=1, dtype=np.float64))
        assert found.auroc_significant == pytest.approx(area, abs=1e-12)
    else:
        assert found.auroc_significant is None


def test_grading_scores_absent_classes() -> None:
    truth, prob = draw_grades(3, 6)
    kept = np.isin(truth, [0, 3])
    found = score_grades(truth[kept], prob[kept])
    predicted = prob[kept].argmax(axis=1)
    kappa = oracle.cohen_kappa_score(truth[kept], predicted, weights="quadratic", labels=list(range(6)))
    assert found.qwk == pytest.approx(kappa, abs=1e-12)
    assert found.auroc_cancer == pytest.approx(found.auroc_significant, abs=0.2)


def test_grading_scores_one_class() -> None:
    found = score_grades([0, 0, 0], np.eye(6)[[0, 0, 0]])
    assert found.accuracy == 1
    assert (found.qwk, found.auroc_cancer, found.auroc_significant) == (None, None, None)
    ones = score_grades([1, 1, 0], np.eye(6)[[1, 1, 0]])
    assert (ones.qwk, ones.auroc_cancer, ones.auroc_significant) == (1.0, 1.0, None)


def test_grading_scores_no_grades() -> None:
    found = score_grades(np.zeros(0, dtype=np.int64), np.zeros((0, 6)))
    assert found.n == 0
    assert found.accuracy is None
    assert found.auroc_cancer is None
    assert np.sum(found.confusion) == 0


def test_grading_scores_extreme_probabilities_rank_right() -> None:
    """Probabilities which pass 1 by rounding are not taken for logits, and tiny ones are not all alike."""
    p0 = np.array([1e-9, 1e-3, 0.5, 1 - 1e-9, 1.0], dtype=np.float64)
    prob = np.column_stack([p0, (1 - p0) + 3e-7])
    assert score_grades([1, 1, 1, 1, 0], prob).auroc_cancer == 1.0


@pytest.mark.parametrize(
    ("truth", "prob", "word"),
    [
        ([0, 6], np.full((2, 6), 1 / 6), "grades must be"),
        ([0], np.full((2, 6), 1 / 6), "prob"),
        ([0, 1], np.array([[0.5, 0.5], [-1.0, 2.0]]), "softmax"),
        ([0, 1], np.array([[0.5, 0.5], [math.nan, 2.0]]), "softmax"),
        ([0, 0], np.ones((2, 1)), "prob"),
    ],
)
def test_grading_scores_invalid_input_raises(truth: list[int], prob: NDArray[Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        score_grades(truth, prob)


@pytest.mark.parametrize("classes", [2, 6])
def test_compute_agreement_of_draws_equals_scores_of_slides(classes: int) -> None:
    truth, prob = draw_grades(4, classes)
    parts = stack_confusions(truth, prob.astype(np.float64))
    assert parts.sum(axis=0).tolist() == score_grades(truth, prob).confusion
    drawn = np.random.default_rng(0).integers(len(truth), size=(5, len(truth)))
    labels = list(range(classes))
    for picked, (kappa, accuracy) in zip(drawn, compute_agreement(parts[drawn].sum(axis=1)), strict=True):
        predicted = prob[picked].argmax(axis=1)
        expected = oracle.cohen_kappa_score(truth[picked], predicted, weights="quadratic", labels=labels)
        assert kappa == pytest.approx(expected)
        assert accuracy == pytest.approx(oracle.accuracy_score(truth[picked], predicted))


def test_compute_agreement_of_nothing_is_undefined() -> None:
    one_class = np.zeros((6, 6))
    one_class[3, 3] = 9
    found = compute_agreement(np.stack([one_class, np.zeros((6, 6))]))
    assert np.isnan(found[:, 0]).all()
    assert found[0, 1] == 1
    assert math.isnan(found[1, 1])


def test_auroc_of_draws_equals_auroc_of_slides() -> None:
    """Slides that count several times are slides that are there several times; of equal scores half."""
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 9, 50) / 9, rng.random(50) < 0.4
    times = rng.integers(0, 4, (20, 50))
    areas = compute_auroc(score, positive, times.astype(np.float64))
    for found, counts in zip(areas.tolist(), times, strict=True):
        expanded = torch.tensor(np.repeat(score, counts)), torch.tensor(np.repeat(positive, counts)).long()
        assert found == pytest.approx(float(binary_auroc(*expanded)), abs=1e-6)
        assert found == pytest.approx(oracle.roc_auc_score(expanded[1], expanded[0]), abs=1e-12)


def test_auroc_one_side_is_undefined() -> None:
    sides = np.array([True, False, False])
    found = compute_auroc(np.array([0.2, 0.2, 0.1]), sides, np.array([[1.0, 0, 0], [0, 1, 2], [0, 0, 0], [2, 1, 1]]))
    assert found.tolist() == pytest.approx([math.nan] * 3 + [0.75], nan_ok=True)
    assert compute_auroc(np.zeros(0), np.zeros(0, np.bool_), np.zeros((0, 0))).shape == (0,)


def test_grading_intervals_need_five_groups_on_each_side() -> None:
    truth, prob = [0, 1, 1, 1, 1, 1], np.array([[0.9, 0.1]] + [[0.2, 0.8]] * 3 + [[0.4, 0.6]] * 2)
    found = compute_grade_intervals(truth, prob, list("abbcde"), seed=0)
    assert not any(map(math.isnan, found["accuracy"]))
    assert all(map(math.isnan, (*found["auroc_cancer"], *found["auroc_significant"])))
    both = compute_grade_intervals(truth * 5, np.tile(prob, (5, 1)), np.arange(30), seed=0)
    assert both["auroc_cancer"] == pytest.approx((1, 1))
    again = compute_grade_intervals(truth * 5, np.tile(prob, (5, 1)), list("abbcde") * 4 + list("fghijk"), seed=0)
    assert all(map(math.isnan, again["auroc_cancer"])), "the benign slides are of two groups"
    with pytest.raises(ValueError, match="groups"):
        compute_grade_intervals(truth, prob, ["a", "b"], seed=0)


def test_grading_intervals_of_many_slides_take_seconds() -> None:
    truth, prob = draw_grades(0, 6, 5000)
    begun = time.process_time()
    found = compute_grade_intervals(truth, prob, np.arange(5000), seed=0)
    assert time.process_time() - begun < 10  # half a second; a loop over draws takes minutes
    for name, value in vars(score_grades(truth, prob)).items():
        if name in found:
            low, high = found[name]
            assert low < value < high
            assert high - low < 0.06


@pytest.mark.parametrize("slides", [1, 3])
def test_grading_task_validation_logs_any_number_of_slides(slides: int) -> None:
    metadata = GradingMetadata.model_construct(target=ISUP)
    task = GradingTask(MILNet("resnet18", num_classes=6), torch.nn.CrossEntropyLoss(), Optim(), metadata)
    logged: dict[str, float] = {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
    truth, prob = draw_grades(0, 6, slides)
    task.val_loss.update(torch.tensor(0.5), slides)
    task.val_slides.update(torch.tensor(prob), torch.tensor(truth))
    task.on_validation_epoch_end()
    assert logged["val/accuracy"] == pytest.approx(float((prob.argmax(axis=1) == truth).mean()))
