"""Histograms and scores against scikit-learn and comparisons of every pixel."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as oracle

from panda.tasks.bins import BINS
from panda.tasks.epoch_metrics import MeanLoss
from panda.tasks.metrics import (
    PixelScores,
    compute_areas,
    compute_curve,
    compute_dice,
    find_threshold_bin,
    pool_histograms,
    score_threshold,
)
from panda.tasks.pixel_histogram import PixelHistogram, count_probabilities, find_bins
from panda.tasks.threshold import score_by_criterion

EDGES = np.arange(BINS) / BINS


def find_bins_by_brute_force(prob: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray((prob.astype(np.float64)[:, None] >= EDGES[None]).sum(axis=1) - 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_find_bins_is_exact(dtype: type[np.floating]) -> None:
    """At, just under and just over every threshold, and anywhere."""
    rng = np.random.default_rng(0)
    at = (np.arange(BINS + 1) / BINS).astype(dtype)
    beside = [np.nextafter(at, dtype(2)), np.nextafter(at, dtype(-1))]
    prob = np.concatenate([at, *beside, rng.random(20_000).astype(dtype), rng.random(2000).astype(dtype) ** 8])
    prob = np.clip(prob, 0, 1)
    found = find_bins(torch.tensor(prob))
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), find_bins_by_brute_force(prob))


def test_find_bins_bfloat16_and_any_shape() -> None:
    prob = torch.rand(2, 1, 8, 9).bfloat16()
    assert find_bins(prob).shape == prob.shape
    np.testing.assert_array_equal(find_bins(prob).flatten(), find_bins_by_brute_force(prob.float().flatten().numpy()))
    assert find_bins(torch.tensor(1.0)).item() == BINS - 1
    assert find_bins(torch.rand(0)).shape == (0,)


@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf])
def test_find_bins_non_probability_raises(value: float) -> None:
    with pytest.raises(ValueError, match="sigmoid"):
        find_bins(torch.tensor([0.5, value]))
    with pytest.raises(ValueError, match="floating"):
        find_bins(torch.tensor([0, 1]))


def slide(seed: int, part: float, pixels: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(pixels, generator=generator) < part
    prob = torch.sigmoid(2 * torch.randn(pixels, generator=generator) + 2 * target - 1)
    return prob, target


@pytest.mark.parametrize("part", [0.0, 0.01, 0.4, 1.0])
def test_compute_curve_matches_all_pixels(part: float) -> None:
    prob, target = slide(1, part)
    found = compute_curve(count_probabilities(prob, target))
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


def test_compute_curve_no_pixels() -> None:
    empty = count_probabilities(torch.rand(0), torch.zeros(0, dtype=torch.bool))
    assert empty.shape == (2, BINS)
    assert np.isnan(compute_curve(empty).dice).all()
    assert math.isnan(compute_dice(empty, 0.5))


def test_pixel_histogram_accumulates_batches() -> None:
    metric = PixelHistogram()
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(2, BINS, dtype=torch.int64)
    for shape in [(2, 1, 8, 8), (5,), (1, 1, 3, 4)]:
        prob = torch.rand(shape, generator=generator)
        target = torch.rand(shape, generator=generator) < 0.5
        where = torch.rand(shape, generator=generator) < 0.7
        metric.update(prob, target.float(), where)
        total += count_probabilities(prob[where], target[where])
    assert metric.compute().dtype == torch.int64
    torch.testing.assert_close(metric.compute(), total)
    metric.reset()
    metric.update(torch.tensor([0.25]), torch.tensor([True]))
    assert metric.compute()[0, 250] == 1
    assert metric.compute().sum() == 1


def test_pixel_histogram_two_devices_add_up() -> None:
    first, second = PixelHistogram(), PixelHistogram()
    first.update(torch.tensor([0.25, 0.5]), torch.tensor([True, False]))
    second.update(torch.tensor([0.25]), torch.tensor([True]))
    assert all(reduce is not None for reduce in first._reductions.values())
    first.merge_state(second)
    assert first.compute()[0, 250] == 2
    assert first.compute()[1, 500] == 1


def test_pixel_histogram_no_probability_raises_in_compute() -> None:
    """A check in each batch would wait for a GPU."""
    metric, prob = PixelHistogram(), torch.tensor([0.5, math.nan])
    metric.update(prob, torch.tensor([True, False]), torch.tensor([True, False]))
    assert metric.compute().sum() == 1
    metric.update(prob, torch.tensor([True, False]))
    with pytest.raises(ValueError, match="sigmoid"):
        metric.compute()


def test_mean_loss_weighs_batches() -> None:
    first, second = MeanLoss(), MeanLoss()
    first.update(torch.tensor(1.0), 3)
    first.update(torch.tensor(2.0), torch.tensor(1))
    second.update(torch.tensor(5.0), 4)
    assert second.compute() == 5
    first.merge_state(second)
    assert first.compute() == 3.125


def test_metrics_other_shapes_raise() -> None:
    with pytest.raises(ValueError, match="target is"):
        count_probabilities(torch.rand(2, 1, 3, 3), torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="where is"):
        count_probabilities(torch.rand(3), torch.zeros(3), torch.ones(1))
    with pytest.raises(ValueError, match="a histogram is"):
        compute_dice(np.zeros((2, 7), dtype=np.int64), 0.5)
    with pytest.raises(ValueError, match="a histogram is"):
        compute_dice(np.zeros((2, BINS)), 0.5)


def test_score_threshold_matches_oracle() -> None:
    prob, target = slide(2, 0.3)
    hist = count_probabilities(prob, target)
    predicted = prob.double().numpy() >= 0.57
    assert compute_dice(hist, 0.57) == pytest.approx(oracle.f1_score(target, predicted))
    found = score_threshold(hist.numpy(), 0.57)
    assert found.recall == pytest.approx(oracle.recall_score(target, predicted))
    assert found.tp == (predicted & target.numpy()).sum()
    assert score_threshold(torch.zeros(2, BINS, dtype=torch.int64), 0.5) == PixelScores(0, 0, 0, *[None] * 4)
    assert [find_threshold_bin(k / BINS) for k in range(BINS)] == list(range(BINS))
    for wrong in (-0.001, 1.0, 0.5004):
        with pytest.raises(ValueError, match="threshold"):
            find_threshold_bin(wrong)


def test_metrics_slides_without_cancer_have_no_dice() -> None:
    hists = {
        "a": count_probabilities(*slide(1, 0.3)),
        "benign": count_probabilities(torch.tensor([0.9, 0.2, 0.6]), torch.zeros(3)),
        "b": count_probabilities(*slide(2, 0.1)),
    }
    expected = (compute_dice(hists["a"], 0.5) + compute_dice(hists["b"], 0.5)) / 2
    assert score_by_criterion(hists, "dice_mean_slide")[500] == pytest.approx(expected)
    assert np.isnan(score_by_criterion({"benign": hists["benign"]}, "dice_mean_slide")).all()
    assert np.isnan(score_by_criterion({}, "dice_mean_slide")).all()
    np.testing.assert_array_equal(pool_histograms(hists), sum(h.numpy() for h in hists.values()))
    assert pool_histograms({}).sum() == 0


def draw_binned(seed: int, part: float) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return a histogram, the probabilities rounded down to their bins, and the truth."""
    prob, target = slide(seed, part)
    return count_probabilities(prob, target).numpy(), find_bins(prob).numpy() / BINS, target.numpy()


@pytest.mark.parametrize("part", [0.01, 0.4, 0.99])
def test_compute_areas_match_scikit_learn(part: float) -> None:
    hist, prob, target = draw_binned(3, part)
    average, auroc = compute_areas(hist)
    assert average == pytest.approx(oracle.average_precision_score(target, prob), abs=1e-12)
    assert auroc == pytest.approx(oracle.roc_auc_score(target, prob), abs=1e-12)
    exact, _ = slide(3, part)  # what binning costs
    assert average == pytest.approx(oracle.average_precision_score(target, exact), abs=2e-3)
    assert auroc == pytest.approx(oracle.roc_auc_score(target, exact), abs=2e-3)


def test_compute_areas_many_histograms_and_one_class() -> None:
    cancer, other, both = draw_binned(1, 1.0)[0], draw_binned(1, 0.0)[0], draw_binned(1, 0.3)[0]
    average, auroc = compute_areas(np.stack([cancer, other, both, np.zeros_like(both)]))
    assert average[0] == 1
    assert average[2] == compute_areas(both)[0]
    assert np.isnan(average[[1, 3]]).all()
    assert np.isnan(auroc[[0, 1, 3]]).all()
    assert auroc[2] == compute_areas(both)[1]


def test_count_probabilities_skips_ignored_pixels() -> None:
    prob, target = slide(4, 0.3)
    mask = target.float()
    ignored = torch.rand(len(mask), generator=torch.Generator().manual_seed(0)) < 0.4
    mask[ignored], prob[ignored] = -1, math.nan
    found = count_probabilities(prob, mask > 0.5, mask >= 0)
    torch.testing.assert_close(found, count_probabilities(prob[~ignored], target[~ignored]))
    assert count_probabilities(prob, mask > 0.5, torch.zeros_like(mask)).sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_count_probabilities_any_precision_is_exact(dtype: torch.dtype, part: float) -> None:
    """Half precision is scored as the numbers it holds, not rounded once more."""
    prob, target = slide(5, part)
    prob = prob.to(dtype)
    hist = count_probabilities(prob, target)
    for threshold in (0.1, 0.5, 0.7):
        predicted = prob.double().numpy() >= threshold
        scores = score_threshold(hist, threshold)
        assert scores.tp == (predicted & target.numpy()).sum()
        assert scores.fp == (predicted & ~target.numpy()).sum()
