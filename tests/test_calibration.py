"""Temperatures and calibration errors from histograms, against raw logits and torchmetrics."""

import csv
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_calibration_error

from panda.report.curves import write_calibration
from panda.tasks.bins import BINS
from panda.tasks.calibration import RELIABILITY_BINS, fit_temperature, measure_reliability, score_calibration
from panda.tasks.pixel_histogram import count_probabilities


def pixels(sureness: float, spread: float = 1.5, count: int = 200_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (float64) that are `sureness` times as sure as they should be, and the truth drawn by the right ones."""
    generator = torch.Generator().manual_seed(0)
    right = spread * torch.randn(count, generator=generator, dtype=torch.float64) - 1
    return sureness * right, torch.rand(count, generator=generator, dtype=torch.float64) < right.sigmoid()


def histogram(logits: torch.Tensor, target: torch.Tensor) -> NDArray[np.int64]:
    return count_probabilities(logits.sigmoid(), target).numpy()


def raw_loss(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> float:
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logits / temperature, target.double()))


def raw_temperature(logits: torch.Tensor, target: torch.Tensor) -> float:
    """By golden-section search over the raw logits."""
    low, high, ratio = math.log(0.05), math.log(20), (math.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if raw_loss(logits, target, math.exp(a)) < raw_loss(logits, target, math.exp(b)):
            high = b
        else:
            low = a
    return math.exp((low + high) / 2)


@pytest.mark.parametrize("sureness", [0.4, 1.0, 1.8])
def test_fit_temperature_equals_fit_on_raw_logits(sureness: float) -> None:
    logits, target = pixels(sureness)
    found = fit_temperature(histogram(logits, target), "here", "2026-01-01T00:00:00Z")
    assert found.value == pytest.approx(raw_temperature(logits, target), rel=5e-3)
    assert found.value == pytest.approx(sureness, rel=0.03)
    assert (found.note, found.chosen_on) == ("", "here")


def test_fit_temperature_beyond_last_bin_is_less_sure() -> None:
    """Most logits past ±7: the fit is right for what the bins tell apart, and says less than raw logits would."""
    logits, target = pixels(6.0, spread=2.5)
    assert float((logits.abs() > 7.6).double().mean()) > 0.5
    found = fit_temperature(histogram(logits, target), "", "2026-01-01T00:00:00Z").value
    clipped = logits.clamp(math.log(0.0005 / 0.9995), math.log(0.9995 / 0.0005))
    assert found == pytest.approx(raw_temperature(clipped, target), rel=0.01)
    assert found is not None
    assert 1 < found < raw_temperature(logits, target)


def test_fit_temperature_minimizes_loss_and_keeps_mask() -> None:
    logits, target = pixels(2.5)
    hist = histogram(logits, target)
    temperature = fit_temperature(hist, "", "2026-01-01T00:00:00Z").value
    assert temperature is not None
    loss = {t: score_calibration(hist, t * temperature).nll_scaled for t in (0.98, 1.0, 1.02)}
    assert loss[1.0] == min(value for value in loss.values() if value is not None)
    threshold = 0.3
    moved = 1 / (1 + math.exp(-math.log(threshold / (1 - threshold)) / temperature))
    assert torch.equal(logits.sigmoid() >= threshold, (logits / temperature).sigmoid() >= moved)


@pytest.mark.parametrize("sureness", [1.0, 3.0])
def test_calibration_scores_match_torchmetrics_and_raw(sureness: float) -> None:
    logits, target = pixels(sureness)
    hist = histogram(logits, target)
    temperature = fit_temperature(hist, "", "2026-01-01T00:00:00Z").value
    found = score_calibration(hist, temperature)
    for suffix, t in (("", 1.0), ("_scaled", temperature)):
        assert t is not None
        expected = binary_calibration_error((logits / t).sigmoid(), target.long(), RELIABILITY_BINS, norm="l1")
        assert getattr(found, f"ece{suffix}") == pytest.approx(float(expected), abs=1e-3)
        assert getattr(found, f"nll{suffix}") == pytest.approx(raw_loss(logits, target, t), rel=0.02)  # the last bins
    if sureness == 3.0:
        assert found.ece_scaled < found.ece / 5  # type: ignore[operator]


def test_reliability_counts_every_pixel_once() -> None:
    logits, target = pixels(1.0)
    found = measure_reliability(histogram(logits, target))
    member = (logits.sigmoid().numpy() * RELIABILITY_BINS).astype(int)
    assert found.pixels.tolist() == np.bincount(member, minlength=RELIABILITY_BINS).tolist()
    for k in range(RELIABILITY_BINS):
        assert found.cancer[k] == pytest.approx(target.numpy()[member == k].mean())
        assert found.probability[k] == pytest.approx(logits.sigmoid().numpy()[member == k].mean(), abs=5e-4)


@pytest.mark.parametrize(
    ("cancer", "other", "word"),
    [
        ([], [], "needs pixels"),
        ([0.5], [], "needs pixels"),
        ([], [0.5], "needs pixels"),
        ([0.9] * 5, [0.1] * 5, "below 0.05"),
        ([0.1] * 5, [0.9] * 5, "above 20"),
        ([0.9, 0.1], [0.9, 0.1], "above 20"),
    ],
)
def test_fit_temperature_undefined_gives_reason(
    cancer: list[float], other: list[float], word: str, tmp_path: Path
) -> None:
    prob = torch.tensor([*cancer, *other], dtype=torch.float64)
    hist = count_probabilities(prob, torch.arange(len(prob)) < len(cancer)).numpy()
    found = fit_temperature(hist, "", "2026-01-01T00:00:00Z")
    assert found.value is None
    assert word in found.note
    scores = score_calibration(hist, found.value)
    assert scores.ece_scaled is scores.nll_scaled is None
    assert (scores.ece is None) == (len(prob) == 0)
    write_calibration({"validation": hist}, found.value, tmp_path)
    assert cv2.imread(str(tmp_path / "calibration.png")) is not None


def test_write_calibration_writes_table_and_picture(tmp_path: Path) -> None:
    hists = {"validation": histogram(*pixels(2.0)), "test": np.zeros((2, BINS), dtype=np.int64)}
    write_calibration(hists, 2.0, tmp_path)
    with (tmp_path / "calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["scaled"]) for row in rows[::RELIABILITY_BINS]] == [
        ("validation", "0"), ("validation", "1"), ("test", "0"), ("test", "1"),
    ]  # fmt: skip
    assert sum(int(row["pixels"]) for row in rows[:RELIABILITY_BINS]) == 200_000
    assert (rows[1]["low"], rows[1]["high"]) == ("0.05", "0.1")
    assert all(0.05 <= float(row["probability"]) < 0.1 for row in (rows[1], rows[RELIABILITY_BINS + 1]))
    assert {row["cancer"] for row in rows if row["split"] == "test"} == {""}
    image = cv2.imread(str(tmp_path / "calibration.png"))
    assert image is not None
    assert image.shape[1] > 1400  # a panel a split
