"""Calibration of the classes of slides: temperature, calibration error, and the confidence below which none is given.

`prob` has the probabilities of N slides, (N, C) float64, and `label` their true classes, (N,) integers. The confidence
of a slide is the probability of its most probable class, which is wrong or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from panda.stored import Plain, Share, Timestamp
from panda.tasks.calibration import Temperature, solve_temperature

FEWEST_SLIDES = 20
"""Number of validation slides from which temperature and abstention are chosen: with fewer, chance decides."""
MOST_BINS, FEWEST_IN_BIN = 10, 10
"""Bins of the calibration error: at most so many, each with at least so many slides if there is more than one."""

_TINY = np.finfo(np.float64).tiny


class AbstentionChoice(Plain, frozen=True):
    """The confidence below which a slide is not certain enough to grade, and its origin.

    It is the lowest one at which at most the share `risk` of the graded validation slides got a wrong class. It is
    in the middle between the last slide that is graded and the first that is not.
    """

    value: Share | None = Field(
        description="Least confidence of a graded slide; 0 if all are graded. Null for the reason in `note`."
    )
    risk: Share = Field(description="Largest share of wrong classes among graded slides: `task.abstain_risk`.")
    note: str = Field(description="Why there is no such confidence, otherwise empty.")
    chosen_on: str = Field(description="The slides it was chosen on.")
    date: Timestamp = Field(description="Date of the choice, ISO 8601, UTC.")


class GradeCalibrationErrors(Plain, frozen=True):
    """Errors of the probabilities of the slides of a split, before and after the temperature."""

    bins: NonNegativeInt = Field(description="Bins of equal numbers of slides for `ece`: at most 10, of 10 or more.")
    ece: Share | None = Field(description="Mean distance of confidence and accuracy, over bins. Null without slides.")
    nll: NonNegativeFloat | None = Field(
        description="Mean negative log-likelihood of a slide, nat. Null without slides."
    )
    ece_scaled: Share | None = Field(description="`ece` at the temperature. Null without slides or temperature.")
    nll_scaled: NonNegativeFloat | None = Field(
        description="`nll` at the temperature, nat. Null without slides or temperature."
    )


class GradeCalibration(Temperature, frozen=True):
    """Temperature and abstention of a grader, and the errors of its probabilities.

    All other figures, tables and pages have the probabilities at the temperature. It changes no predicted class.
    """

    abstention: AbstentionChoice | None = Field(
        description="Confidence below which a slide is not certain enough to grade. Null if `task.abstain_risk` is."
    )
    val: GradeCalibrationErrors = Field(description="Validation slides, on which both were chosen.")
    test: GradeCalibrationErrors | None = Field(description="Test slides. Null if the test slides were not scored.")


def scale_probabilities(prob: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return the probabilities of the logits divided by a temperature, (…, C) as `prob`.

    The most probable class keeps that place, because its part of the sum is 1 and no other exceeds 1.
    """
    logs = np.log(np.maximum(prob, _TINY))
    parts = np.exp((logs - logs.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(parts / parts.sum(axis=-1, keepdims=True))


def fit_grade_temperature(
    prob: NDArray[np.float64], label: NDArray[np.int64], chosen_on: str, date: str
) -> Temperature:
    """Find the temperature with the lowest negative log-likelihood (Guo and others 2017, section 4.2).

    It has no value with fewer than `FEWEST_SLIDES` slides, or if it would be outside `LOWEST` to `HIGHEST`.

    Args:
        prob: Probabilities of validation slides, (N, C).
        label: Their true classes, (N,).
        chosen_on: The slides, in words.
        date: Date of the fit, ISO 8601.
    """
    if len(label) < FEWEST_SLIDES:
        value, note = None, f"needs {FEWEST_SLIDES} validation slides, there are {len(label)}"
    else:
        logs = np.log(np.maximum(prob, _TINY))
        ahead = logs - np.take_along_axis(logs, label[:, None], axis=1)  # of the true class, whose part is exactly 0
        value, note = solve_temperature(
            lambda inverse: float((scale_probabilities(prob, 1 / inverse) * ahead).sum()),
            "the probabilities say next to nothing about the class",
            "the classes are separated without an error",
        )
    return Temperature(value=value, note=note, chosen_on=chosen_on, date=date)


def compute_nll(prob: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    """Return the mean negative log-likelihood of the true classes, nat."""
    return float(-np.log(np.maximum(prob[np.arange(len(label)), label], _TINY)).mean())


@dataclass(frozen=True)
class GradeReliability:
    """Confidence and accuracy of slides of similar confidence. All arrays are (bins,), by rising confidence.

    Attributes:
        slides: Number of slides.
        low: Lowest confidence.
        high: Highest confidence.
        confidence: Mean confidence.
        accuracy: Share of slides with the right class.
    """

    slides: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: |confidence - accuracy|, weighted by slides."""
        return float((self.slides * np.abs(self.confidence - self.accuracy)).sum() / self.slides.sum())


def assign_bins(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the bin of each slide, (N,): bins of equal numbers of slides by rising confidence.

    Bins of equal width, as in Guo and others 2017, leave most bins almost empty with few slides. Bins of equal mass
    have less bias (Roelofs and others 2022, "Mitigating bias in calibration error estimation").
    """
    count = min(MOST_BINS, max(1, len(confidence) // FEWEST_IN_BIN))
    order = np.lexsort((correct, confidence))  # the order of the slides has no influence
    member = np.empty(len(confidence), dtype=np.int64)
    member[order] = np.arange(len(confidence)) * count // max(1, len(confidence))
    return member


def measure_grade_reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> GradeReliability:
    """Compare the confidence of at least one slide with its accuracy, in the bins of `assign_bins`."""
    member = assign_bins(confidence, correct)
    parts = [member == number for number in range(int(member.max()) + 1)]
    return GradeReliability(
        slides=np.array([part.sum() for part in parts]),
        low=np.array([confidence[part].min() for part in parts]),
        high=np.array([confidence[part].max() for part in parts]),
        confidence=np.array([confidence[part].mean() for part in parts]),
        accuracy=np.array([correct[part].mean() for part in parts]),
    )


@dataclass(frozen=True)
class RiskCoverage:
    """Share of wrong classes among the most confident slides. All arrays are (n,), a row for each confidence.

    Attributes:
        confidence: Confidence of the last slides that are graded, from high to low.
        slides: Number of graded slides.
        risk: Share of them with a wrong class.
    """

    confidence: NDArray[np.float64]
    slides: NDArray[np.int64]
    risk: NDArray[np.float64]


def trace_risk(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> RiskCoverage:
    """Return the risk at each coverage (El-Yaniv and Wiener 2010). Slides of equal confidence enter together."""
    values, member = np.unique(-confidence, return_inverse=True)
    slides = np.bincount(member, minlength=len(values)).cumsum()
    wrong = np.bincount(member, weights=~correct, minlength=len(values)).cumsum()
    return RiskCoverage(-values, slides, wrong / slides)


def compute_aurc(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute the area under the risk-coverage curve: the mean risk of the n most confident slides, over all n.

    This is the AURC of Geifman, Uziel and El-Yaniv 2019. Slides of equal confidence enter in random order, so the
    result is the mean over these orders.

    Args:
        confidence: Confidence of each slide, (N,).
        correct: Whether its class is right, (N,).
        times: How often each slide counts, (…, N) whole numbers.

    Returns:
        (…); NaN if no slide counts.
    """
    order = np.argsort(-confidence, kind="stable")
    starts = np.flatnonzero(np.diff(confidence[order], prepend=np.inf))  # starts of runs of equal confidence
    slides, wrong = (np.add.reduceat(part[..., order], starts, axis=-1) for part in (times, times * ~correct))
    before, wrong_before = slides.cumsum(axis=-1) - slides, wrong.cumsum(axis=-1) - wrong
    rate = wrong / np.maximum(slides, 1)
    # The sum over j = 1 … slides of (wrong_before + j rate) / (before + j), by differences of harmonic numbers.
    most = int(times.sum(axis=-1).max(initial=0))
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, most + 1))])
    steps = harmonic[(before + slides).astype(int)] - harmonic[before.astype(int)]
    area = (slides * rate + (wrong_before - rate * before) * steps).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(area / times.sum(axis=-1))


def choose_abstention(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], risk: float, chosen_on: str, date: str
) -> AbstentionChoice:
    """Choose the confidence at which the most validation slides are graded with at most a share `risk` of errors.

    There is none with fewer than `FEWEST_SLIDES` slides, or if even the most confident ones have more errors.
    """
    value, note = None, f"needs {FEWEST_SLIDES} validation slides, there are {len(confidence)}"
    if len(confidence) >= FEWEST_SLIDES:
        curve = trace_risk(confidence, correct)
        allowed = np.flatnonzero(curve.risk <= risk + 1e-12)
        if not len(allowed):
            note = (
                f"the {curve.slides[0]} most confident of {len(confidence)} slides have a risk of {curve.risk[0]:.2g}"
            )
        elif (last := int(allowed[-1])) == len(curve.slides) - 1:
            value, note = 0.0, ""
        else:
            value, note = float(curve.confidence[last : last + 2].mean()), ""
    return AbstentionChoice(value=value, risk=risk, note=note, chosen_on=chosen_on, date=date)
