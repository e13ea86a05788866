"""Histograms and scores against scikit-learn and comparisons of every pixel."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as oracle

from panda.tasks.metrics import (
    BINS,
    PixelHistogram,
    bootstrap_interval,
    curve,
    dice_at,
    grading_scores,
    mean_slide_dice,
    nanmean,
    pixel_histogram,
    pooled,
    probability_bins,
    scores_at,
    slide_dice,
    threshold_bin,
)

EDGES = np.arange(BINS) / BINS


def brute_bins(prob: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray((prob.astype(np.float64)[:, None] >= EDGES[None]).sum(axis=1) - 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_bins_are_exact(dtype: type[np.floating]) -> None:
    """At, just under and just over every threshold, and anywhere."""
    rng = np.random.default_rng(0)
    at = (np.arange(BINS + 1) / BINS).astype(dtype)
    beside = [np.nextafter(at, dtype(2)), np.nextafter(at, dtype(-1))]
    prob = np.concatenate([at, *beside, rng.random(20_000).astype(dtype), rng.random(2000).astype(dtype) ** 8])
    prob = np.clip(prob, 0, 1)
    np.testing.assert_array_equal(probability_bins(prob), brute_bins(prob))
    found = probability_bins(torch.tensor(prob))
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), brute_bins(prob))


def test_bins_of_bfloat16_and_of_any_shape() -> None:
    prob = torch.rand(2, 1, 8, 9).bfloat16()
    assert probability_bins(prob).shape == prob.shape
    np.testing.assert_array_equal(probability_bins(prob).flatten(), brute_bins(prob.float().flatten().numpy()))
    assert probability_bins(torch.tensor(1.0)).item() == BINS - 1
    assert probability_bins(torch.rand(0)).shape == (0,)


@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="sigmoid"):
        probability_bins(torch.tensor([0.5, value]))
    with pytest.raises(ValueError, match="floating"):
        probability_bins(torch.tensor([0, 1]))


def slide(seed: int, part: float, pixels: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(pixels, generator=generator) < part
    prob = torch.sigmoid(2 * torch.randn(pixels, generator=generator) + 2 * target - 1)
    return prob, target


@pytest.mark.parametrize("part", [0.0, 0.01, 0.4, 1.0])
def test_curve_against_every_pixel(part: float) -> None:
    prob, target = slide(1, part)
    found = curve(*pixel_histogram(prob, target))
    p, t = prob.double().numpy(), target.numpy()
    for k in range(0, BINS, 7):
        predicted = p >= k / 1000
        assert found.thresholds[k] == k / 1000
        assert found.tp[k] == (predicted & t).sum()
        assert found.fp[k] == (predicted & ~t).sum()
        assert found.fn[k] == (~predicted & t).sum()
        undefined = {"zero_division": math.nan}
        np.testing.assert_allclose(found.precision[k], oracle.precision_score(t, predicted, **undefined))
        np.testing.assert_allclose(found.recall[k], oracle.recall_score(t, predicted, **undefined))
        np.testing.assert_allclose(found.dice[k], oracle.f1_score(t, predicted, **undefined))
        union = (predicted | t).sum()
        np.testing.assert_allclose(found.iou[k], (predicted & t).sum() / union if union else math.nan)


def test_no_pixels() -> None:
    empty = pixel_histogram(torch.rand(0), torch.zeros(0, dtype=torch.bool))
    assert empty.shape == (2, BINS)
    assert np.isnan(curve(*empty).dice).all()
    assert math.isnan(dice_at(empty, 0.5))


def test_metric_streams() -> None:
    metric = PixelHistogram()
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(2, BINS, dtype=torch.int64)
    for shape in [(2, 1, 8, 8), (5,), (1, 1, 3, 4)]:
        prob = torch.rand(shape, generator=generator)
        target = torch.rand(shape, generator=generator) < 0.5
        where = torch.rand(shape, generator=generator) < 0.7
        metric.update(prob, target.float(), where)
        total += pixel_histogram(prob[where], target[where])
    assert metric.compute().dtype == torch.int64
    torch.testing.assert_close(metric.compute(), total)
    metric.reset()
    metric.update(torch.tensor([0.25]), torch.tensor([True]))
    assert metric.compute()[0, 250] == 1
    assert metric.compute().sum() == 1


def test_metrics_of_two_devices_add_up() -> None:
    first, second = PixelHistogram(), PixelHistogram()
    first.update(torch.tensor([0.25, 0.5]), torch.tensor([True, False]))
    second.update(torch.tensor([0.25]), torch.tensor([True]))
    assert all(reduce is not None for reduce in first._reductions.values())
    first.merge_state(second)
    assert first.compute()[0, 250] == 2
    assert first.compute()[1, 500] == 1


def test_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="target is"):
        pixel_histogram(torch.rand(2, 1, 3, 3), torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="where is"):
        pixel_histogram(torch.rand(3), torch.zeros(3), torch.ones(1))
    with pytest.raises(ValueError, match="a histogram is"):
        dice_at(np.zeros((2, 7), dtype=np.int64), 0.5)
    with pytest.raises(ValueError, match="a histogram is"):
        dice_at(np.zeros((2, BINS)), 0.5)


def test_one_threshold() -> None:
    prob, target = slide(2, 0.3)
    hist = pixel_histogram(prob, target)
    predicted = prob.double().numpy() >= 0.57
    assert dice_at(hist, 0.57) == pytest.approx(oracle.f1_score(target, predicted))
    found = scores_at(hist.numpy(), 0.57)
    assert found["recall"] == pytest.approx(oracle.recall_score(target, predicted))
    assert found["tp"] == (predicted & target.numpy()).sum()
    assert scores_at(torch.zeros(2, BINS, dtype=torch.int64), 0.5) == {
        **{"tp": 0, "fp": 0, "fn": 0},
        **{"dice": None, "iou": None, "precision": None, "recall": None},
    }
    assert [threshold_bin(k / BINS) for k in range(BINS)] == list(range(BINS))
    for wrong in (-0.001, 1.0, 0.5004):
        with pytest.raises(ValueError, match="threshold"):
            threshold_bin(wrong)


def test_slides_without_cancer_have_no_dice() -> None:
    hists = {
        "a": pixel_histogram(*slide(1, 0.3)),
        "benign": pixel_histogram(torch.tensor([0.9, 0.2, 0.6]), torch.zeros(3)),
        "b": pixel_histogram(*slide(2, 0.1)),
    }
    rows = slide_dice(hists)
    assert np.isnan(rows[1]).all()
    expected = (dice_at(hists["a"], 0.5) + dice_at(hists["b"], 0.5)) / 2
    assert mean_slide_dice(hists)[500] == pytest.approx(expected)
    assert np.isnan(mean_slide_dice({"benign": hists["benign"]})).all()
    assert np.isnan(mean_slide_dice({})).all()
    np.testing.assert_array_equal(pooled(hists), sum(h.numpy() for h in hists.values()))
    assert pooled({}).sum() == 0


def test_bootstrap_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    low, high = bootstrap_interval(values, np.arange(400), seed=1)
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert (low, high) == bootstrap_interval(values, np.arange(400), seed=1)
    assert (low, high) != bootstrap_interval(values, np.arange(400), seed=2)


def test_bootstrap_draws_groups() -> None:
    """Ten copies of each value in one group say no more than one."""
    values = np.random.default_rng(0).normal(size=50)
    once = bootstrap_interval(values, [f"p{i}" for i in range(50)], seed=3)
    copied = bootstrap_interval(np.repeat(values, 10), np.repeat(np.arange(50), 10), seed=3)
    assert copied[1] - copied[0] == pytest.approx(once[1] - once[0], rel=0.1)


def test_bootstrap_of_nothing() -> None:
    assert all(math.isnan(v) for v in bootstrap_interval([1.0, 2.0], ["a", "a"], seed=0))
    assert all(math.isnan(v) for v in bootstrap_interval([], [], seed=0))
    assert all(math.isnan(v) for v in bootstrap_interval([math.nan] * 3, [0, 1, 2], seed=0))
    low, high = bootstrap_interval([1.0, math.nan, 1.0, math.nan], [0, 1, 2, 3], seed=0)
    assert (low, high) == (1.0, 1.0)
    with pytest.raises(ValueError, match="groups"):
        bootstrap_interval([1.0], [0, 1], seed=0)
    assert math.isnan(nanmean(np.array([math.nan])))


def test_bootstrap_of_any_statistic_over_rows() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 80)
    rows = np.column_stack([truth, np.clip(truth + rng.integers(-1, 2, 80), 0, 5)])

    def kappa(drawn: NDArray[Any]) -> float:
        return float(oracle.cohen_kappa_score(drawn[:, 0], drawn[:, 1], weights="quadratic"))

    low, high = bootstrap_interval(rows, np.arange(80), seed=0, statistic=kappa, n=50)
    assert low < kappa(rows) < high


def grades(seed: int, classes: int, n: int = 120) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[truth]
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, prob.astype(np.float32)


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_grades_against_the_oracle(classes: int, seed: int) -> None:
    truth, prob = grades(seed, classes)
    predicted = prob.argmax(axis=1)
    found = grading_scores(torch.tensor(truth), torch.tensor(prob))
    labels = list(range(classes))
    assert found["n"] == len(truth)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, predicted))
    kappa = oracle.cohen_kappa_score(truth, predicted, weights="quadratic", labels=labels)
    assert found["qwk"] == pytest.approx(kappa, abs=1e-5)
    assert found["confusion"] == oracle.confusion_matrix(truth, predicted, labels=labels).tolist()
    area = oracle.roc_auc_score(truth >= 1, prob[:, 1:].sum(axis=1, dtype=np.float64))
    assert found["auroc_cancer"] == pytest.approx(area, abs=1e-4)
    if classes > 2:
        area = oracle.roc_auc_score(truth >= 2, prob[:, 2:].sum(axis=1, dtype=np.float64))
        assert found["auroc_significant"] == pytest.approx(area, abs=1e-4)
    else:
        assert found["auroc_significant"] is None


def test_grades_with_absent_classes() -> None:
    truth, prob = grades(3, 6)
    kept = np.isin(truth, [0, 3])
    found = grading_scores(truth[kept], prob[kept])
    predicted = prob[kept].argmax(axis=1)
    kappa = oracle.cohen_kappa_score(truth[kept], predicted, weights="quadratic", labels=list(range(6)))
    assert found["qwk"] == pytest.approx(kappa, abs=1e-5)
    assert found["auroc_cancer"] == pytest.approx(found["auroc_significant"], abs=0.2)


def test_grades_of_one_class() -> None:
    found = grading_scores([0, 0, 0], np.eye(6)[[0, 0, 0]])
    assert found["accuracy"] == 1
    assert (found["qwk"], found["auroc_cancer"], found["auroc_significant"]) == (None, None, None)
    ones = grading_scores([1, 1, 0], np.eye(6)[[1, 1, 0]])
    assert (ones["qwk"], ones["auroc_cancer"], ones["auroc_significant"]) == (1.0, 1.0, None)


def test_no_grades() -> None:
    found = grading_scores(np.zeros(0, dtype=np.int64), np.zeros((0, 6)))
    assert found["n"] == 0
    assert found["accuracy"] is None
    assert found["auroc_cancer"] is None
    assert np.sum(found["confusion"]) == 0


def test_sure_networks_are_ranked_right() -> None:
    """Probabilities which pass 1 by rounding are not taken for logits, and tiny ones are not all alike."""
    p0 = np.array([1e-9, 1e-3, 0.5, 1 - 1e-9, 1.0], dtype=np.float64)
    prob = np.column_stack([p0, (1 - p0) + 3e-7])
    assert grading_scores([1, 1, 1, 1, 0], prob)["auroc_cancer"] == 1.0


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
def test_grades_that_are_refused(truth: list[int], prob: NDArray[Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        grading_scores(truth, prob)
