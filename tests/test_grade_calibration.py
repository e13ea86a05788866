"""Calibration of grades and abstention, against scikit-learn, searches by brute force and references of a few lines."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from panda.tasks.grade_calibration import (
    FEWEST_SLIDES,
    assign_bins,
    choose_abstention,
    compute_aurc,
    compute_nll,
    fit_grade_temperature,
    measure_grade_reliability,
    scale_probabilities,
    trace_risk,
)

DATE = "2026-01-01T00:00:00Z"


def draw_slides(sureness: float, count: int = 400, classes: int = 6) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities that are `sureness` times as sure as they should be, and labels drawn by the right ones."""
    rng = np.random.default_rng(0)
    right = rng.normal(size=(count, classes)) * 1.5
    shares = np.exp(right) / np.exp(right).sum(axis=1, keepdims=True)
    label = np.array([rng.choice(classes, p=row) for row in shares])
    return scale_probabilities(shares, 1 / sureness), label


def draw_confidences(count: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Confidences, some of them equal, and whether the class is right."""
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.uniform(0.2, 1, count), 2)
    return confidence, rng.random(count) < confidence


@pytest.mark.parametrize("sureness", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 6])
def test_fit_grade_temperature_equals_brute_force(sureness: float, classes: int) -> None:
    prob, label = draw_slides(sureness, classes=classes)
    found = fit_grade_temperature(prob, label, "here", DATE)
    tried = sureness * np.linspace(0.5, 2.0, 301)
    losses = [log_loss(label, scale_probabilities(prob, t), labels=range(classes)) for t in tried]
    assert found.value == pytest.approx(tried[np.argmin(losses)], rel=6e-3)
    assert found.value == pytest.approx(sureness, rel=0.2)
    assert compute_nll(scale_probabilities(prob, found.value or 0), label) == pytest.approx(min(losses), rel=1e-5)
    assert (found.note, found.chosen_on) == ("", "here")


def test_fit_grade_temperature_few_slides_gives_reason() -> None:
    prob, label = draw_slides(1.0, FEWEST_SLIDES)
    assert fit_grade_temperature(prob, label, "", DATE).value is not None
    found = fit_grade_temperature(prob[1:], label[1:], "", DATE)
    assert (found.value, found.note) == (None, "needs 20 validation slides, there are 19")


def test_fit_grade_temperature_out_of_range_gives_reason() -> None:
    prob = np.tile([0.9, 0.1], (30, 1))
    assert "below 0.05" in fit_grade_temperature(prob, np.zeros(30, np.int64), "", DATE).note
    assert "above 20" in fit_grade_temperature(prob, np.ones(30, np.int64), "", DATE).note


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda parts: sum(parts) > 0),
    st.floats(0.05, 20),
    st.floats(0.05, 20),
)
def test_scale_probabilities_keeps_class_and_is_monotone(parts: list[float], one: float, other: float) -> None:
    prob = np.array(parts) / sum(parts)
    cold, warm = scale_probabilities(prob, min(one, other)), scale_probabilities(prob, max(one, other))
    for scaled in (cold, warm):
        assert scaled.sum() == pytest.approx(1)
        assert scaled[prob.argmax()] == scaled.max()
    assert cold.max() >= warm.max() - 1e-12  # a higher temperature is less confident
    assert scale_probabilities(warm, 1 / max(one, other)) == pytest.approx(prob, abs=1e-6)


def test_scale_probabilities_divides_logits() -> None:
    logits = np.array([[3.0, -1.0, 0.5], [-400.0, 400.0, 0.0]])
    prob = np.exp(logits - logits.max(axis=1, keepdims=True))
    prob /= prob.sum(axis=1, keepdims=True)
    expected = np.exp((logits - logits.max(axis=1, keepdims=True)) / 2.5)
    assert scale_probabilities(prob[:1], 2.5) == pytest.approx(expected[:1] / expected[:1].sum())
    assert np.isfinite(scale_probabilities(prob, 0.05)).all()


@pytest.mark.parametrize(("count", "bins"), [(1, 1), (19, 1), (20, 2), (57, 5), (400, 10)])
def test_reliability_has_bins_of_equal_mass(count: int, bins: int) -> None:
    confidence, correct = draw_confidences(count)
    found = measure_grade_reliability(confidence, correct)
    order = sorted(range(count), key=lambda k: (confidence[k], correct[k]))
    parts = [order[-(-b * count // bins) : -(-(b + 1) * count // bins)] for b in range(bins)]
    expected = sum(abs(sum(confidence[part]) - sum(correct[part])) for part in parts) / count
    assert found.ece == pytest.approx(expected)
    assert len(found.slides) == bins
    assert found.slides.max() - found.slides.min() <= 1
    assert found.slides.sum() == count
    assert (found.low[1:] >= found.high[:-1]).all()
    turned = assign_bins(confidence[::-1], correct[::-1])[::-1]
    pairs = list(zip(confidence, correct, assign_bins(confidence, correct), strict=True))
    assert sorted(pairs) == sorted(zip(confidence, correct, turned, strict=True))


def test_trace_risk_full_coverage_is_one_less_accuracy() -> None:
    confidence, correct = draw_confidences(60)
    curve = trace_risk(confidence, correct)
    for k, least in enumerate(curve.confidence):
        graded = confidence >= least
        assert curve.slides[k] == graded.sum()
        assert curve.risk[k] == pytest.approx(1 - correct[graded].mean())
    assert curve.risk[-1] == pytest.approx(1 - correct.mean())


def test_compute_aurc_equals_mean_over_orders() -> None:
    confidence = np.array([0.9, 0.6, 0.6, 0.6, 0.3])
    correct = np.array([True, False, True, False, True])
    areas = []
    for order in itertools.permutations(range(5)):
        if (np.diff(confidence[list(order)]) <= 0).all():
            wrong = ~correct[list(order)]
            areas.append((wrong.cumsum() / np.arange(1, 6)).mean())
    assert compute_aurc(confidence, correct, np.ones(5)) == pytest.approx(np.mean(areas))


def test_compute_aurc_counts_repeated_slides() -> None:
    confidence, correct = draw_confidences(30)
    rng = np.random.default_rng(1)
    times = rng.integers(0, 3, (4, 30)).astype(float)
    found = compute_aurc(confidence, correct, times)
    for row, area in zip(times.astype(int), found, strict=True):
        repeated = np.repeat(confidence, row), np.repeat(correct, row)
        assert area == pytest.approx(float(compute_aurc(*repeated, np.ones(row.sum()))))
    assert np.isnan(compute_aurc(confidence, correct, np.zeros(30)))


@pytest.mark.parametrize("risk", [0.1, 0.2, 0.3])
def test_choose_abstention_grades_most_slides_at_risk(risk: float) -> None:
    confidence, correct = draw_confidences(80)
    found = choose_abstention(confidence, correct, risk, "here", DATE)
    allowed = [
        (confidence >= least).sum() for least in confidence if 1 - correct[confidence >= least].mean() <= risk + 1e-12
    ]
    assert found.value is not None
    graded = confidence >= found.value
    assert graded.sum() == max(allowed)
    assert 1 - correct[graded].mean() <= risk + 1e-12
    assert (found.risk, found.note) == (risk, "")


def test_choose_abstention_without_threshold_gives_reason() -> None:
    confidence, correct = draw_confidences(FEWEST_SLIDES)
    assert choose_abstention(confidence, np.ones(20, bool), 0.1, "", DATE).value == 0  # all are graded
    few = choose_abstention(confidence[1:], correct[1:], 0.1, "", DATE)
    assert (few.value, few.note) == (None, "needs 20 validation slides, there are 19")
    bad = choose_abstention(np.full(20, 0.5), np.arange(20) < 10, 0.1, "", DATE)
    assert (bad.value, bad.note) == (None, "the 20 most confident of 20 slides have a risk of 0.5")
