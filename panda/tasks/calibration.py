"""Calibration of probabilities, and the temperature that corrects it, from histograms.

A histogram has the counts of cancer and of other pixels, (2, BINS). It counts a probability at the middle of its bin.
It cannot separate probabilities below 0.001 or from 0.999, which a confident network gives to most pixels. Results are
exact up to that confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from scipy.optimize import brentq

from panda.stored import Plain, Share, Timestamp
from panda.tasks.bins import BINS

RELIABILITY_BINS = 20
"""Bins of equal width of the reliability diagram and of the expected calibration error."""
LOWEST, HIGHEST = 0.05, 20.0
"""Range of the temperatures that are reported."""

_MIDDLE = (np.arange(BINS) + 0.5) / BINS
_LOGIT = np.log(_MIDDLE / (1 - _MIDDLE))


class Temperature(Plain, frozen=True):
    """A temperature T and its provenance. Calibrated probabilities have the logits of the network divided by T.

    T above 1 means that the network is overconfident, below 1 that it is underconfident.
    """

    value: Annotated[float, Field(gt=0)] | None = Field(
        description="T: the probabilities of logits / T are most likely on validation. Null for the reason in `note`."
    )
    note: str = Field(description="Why there is no temperature, otherwise empty.")
    chosen_on: str = Field(description="The slides it was fitted on.")
    date: Timestamp = Field(description="Date of the fit, ISO 8601, UTC.")


class CalibrationScores(Plain, frozen=True):
    """Errors of the probabilities of a split, over pixels of tissue."""

    ece: Share | None = Field(
        description="Mean distance of probability and share of cancer, over bins. Null without pixels."
    )
    nll: NonNegativeFloat | None = Field(
        description="Mean negative log-likelihood of a pixel, nat. Null without pixels."
    )
    ece_scaled: Share | None = Field(description="`ece` at the temperature. Null without pixels or temperature.")
    nll_scaled: NonNegativeFloat | None = Field(
        description="`nll` at the temperature, nat. Null without pixels or temperature."
    )


class Calibration(Temperature, frozen=True):
    """Errors of probabilities in 1,000 bins, and the temperature that reduces them.

    Maps, thresholds and scores use the probabilities of the network unchanged. A temperature would not change their
    order, so the threshold would move with it and every mask would stay the same.
    """

    bins: NonNegativeInt = Field(description="Bins of equal width for `ece`.")
    val: CalibrationScores = Field(description="Validation slides, on which T was fitted.")
    test: CalibrationScores | None = Field(description="Test slides. Null if the test slides were not scored.")


def fit_temperature(hist: NDArray[np.int64], chosen_on: str, date: str) -> Temperature:
    """Find the temperature with the lowest negative log-likelihood (Guo and others 2017, section 4.2).

    It has no value if all pixels are of one kind, or if it would be outside `LOWEST` to `HIGHEST`.

    Args:
        hist: Counts of validation pixels, (2, BINS).
        chosen_on: The slides, in words.
        date: Date of the fit, ISO 8601.
    """
    value, note = None, "needs pixels with and without cancer"
    if hist[0].any() and hist[1].any():
        value, note = solve_temperature(
            lambda inverse: _differentiate(inverse, hist),
            "the probabilities say next to nothing about cancer",
            "cancer and other pixels are separated without an error",
        )
    return Temperature(value=value, note=note, chosen_on=chosen_on, date=date)


def solve_temperature(
    differentiate: Callable[[float], float], if_above: str, if_below: str
) -> tuple[float | None, str]:
    """Return the temperature with the lowest loss and an empty note; None and a note outside `LOWEST` to `HIGHEST`.

    Args:
        differentiate: Derivative of the loss with respect to 1 / T. The loss is convex in it, so there is one root.
        if_above: What a temperature above `HIGHEST` means.
        if_below: What one below `LOWEST` means.
    """
    low, high = 1 / HIGHEST, 1 / LOWEST
    if differentiate(low) >= 0:
        return None, f"above {HIGHEST:g}: {if_above}"
    if differentiate(high) <= 0:
        return None, f"below {LOWEST:g}: {if_below}"
    return 1 / float(brentq(differentiate, low, high, xtol=1e-12)), ""


def _differentiate(inverse: float, hist: NDArray[np.int64]) -> float:
    """Return the derivative of the negative log-likelihood with respect to 1 / T."""
    return float((_LOGIT * (hist.sum(axis=0) * _scale_bins(inverse) - hist[0])).sum())


def _scale_bins(inverse: float) -> NDArray[np.float64]:
    """Return the probabilities of the bins, (BINS,), at a temperature 1 / inverse."""
    return np.asarray(1 / (1 + np.exp(-_LOGIT * inverse)))


@dataclass(frozen=True)
class Reliability:
    """Share of cancer among pixels of similar probability. All arrays are (RELIABILITY_BINS,).

    Attributes:
        pixels: Number of pixels.
        probability: Mean probability; NaN without pixels.
        cancer: Share of cancer; NaN without pixels.
    """

    pixels: NDArray[np.int64]
    probability: NDArray[np.float64]
    cancer: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: |probability - cancer|, weighted by pixels; NaN without pixels."""
        if not self.pixels.any():
            return math.nan
        return float(np.nansum(self.pixels * np.abs(self.probability - self.cancer)) / self.pixels.sum())


def measure_reliability(hist: NDArray[np.int64], temperature: float = 1.0) -> Reliability:
    """Compare probabilities at a temperature with shares of cancer, in bins of equal width from 0 to 1."""
    scaled = _scale_bins(1 / temperature)
    member = np.minimum((scaled * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    total = hist.sum(axis=0)

    def sum_bins(weights: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(member, weights=weights, minlength=RELIABILITY_BINS), np.float64)

    pixels = sum_bins(total)
    with np.errstate(invalid="ignore"):
        return Reliability(pixels.astype(np.int64), sum_bins(total * scaled) / pixels, sum_bins(hist[0]) / pixels)


def score_calibration(hist: NDArray[np.int64], temperature: float | None) -> CalibrationScores:
    """Compute calibration error and log-likelihood of the probabilities, and at a temperature if there is one."""
    found: dict[str, float | None] = {}
    pixels = int(hist.sum())
    for suffix, t in (("", 1.0), ("_scaled", temperature)):
        found[f"ece{suffix}"] = measure_reliability(hist, t).ece if pixels and t else None
        logit = _LOGIT / (t or 1.0)
        loss = float((hist[0] * np.logaddexp(0, -logit) + hist[1] * np.logaddexp(0, logit)).sum())
        found[f"nll{suffix}"] = loss / pixels if pixels and t else None
    return CalibrationScores(**found)
