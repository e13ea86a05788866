"""The confidence of a grading run: temperature and abstention, chosen on validation slides and frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.data.patients import BagUnit
from panda.inference.grading_metrics import GradedSlide
from panda.report.confidence_tables import write_confidence_tables
from panda.tasks.calibration import Temperature
from panda.tasks.checkpoint import update_metadata
from panda.tasks.figures import make_timestamp
from panda.tasks.grade_calibration import (
    AbstentionChoice,
    GradeCalibration,
    GradeCalibrationErrors,
    choose_abstention,
    compute_nll,
    fit_grade_temperature,
    measure_grade_reliability,
)
from panda.tasks.metadata import GradingMetadata

UNCALIBRATED = {"calibration": None, "abstain_below": None}
"""Metadata of a grader before the choice. A run that is resumed after its end finds a checkpoint with older choices."""


@dataclass(frozen=True)
class FrozenConfidence:
    """What was chosen on validation and is in the best checkpoint.

    Attributes:
        temperature: The temperature.
        abstention: The least confidence of a graded slide, None if none was asked for.
        validated: The validation slides with their calibrated grades.
    """

    temperature: Temperature
    abstention: AbstentionChoice | None
    validated: list[GradedSlide]


def freeze_confidence(
    best: Path, graded: Sequence[GradedSlide], risk: float | None, unit: BagUnit = "slide"
) -> FrozenConfidence:
    """Choose temperature and abstention on validation slides and write them into the best checkpoint.

    Args:
        best: The checkpoint.
        graded: The validation slides with the grades of the network, see `UNCALIBRATED`.
        risk: Largest share of wrong classes among graded slides; None if every slide is graded.
        unit: Whose grades they are.
    """
    chosen_on, date = f"{len(graded)} validation {unit}s", make_timestamp()
    prob, label = _stack(graded)
    temperature = fit_grade_temperature(prob, label, chosen_on, date)
    validated = _calibrate(graded, temperature.value, None)
    abstention = None
    if risk is not None:
        abstention = choose_abstention(*_split_confidence(validated), risk, chosen_on, date)
        validated = _calibrate(validated, None, abstention.value)
    update_metadata(best, GradingMetadata, calibration=temperature, abstain_below=abstention)
    return FrozenConfidence(temperature, abstention, validated)


def measure_calibration(
    folder: Path, frozen: FrozenConfidence, splits: Mapping[str, Sequence[GradedSlide]]
) -> GradeCalibration:
    """Measure the calibration of graded slides on `validation` and `test`, and write its tables."""
    known = {name: graded for name, graded in splits.items() if graded}
    inverse = None if frozen.temperature.value is None else 1 / frozen.temperature.value
    raw = {name: _calibrate(graded, inverse, None) for name, graded in known.items()}
    confidences = {(name, False): _split_confidence(graded) for name, graded in raw.items()}
    if inverse is not None:
        confidences |= {(name, True): _split_confidence(graded) for name, graded in known.items()}
    write_confidence_tables(confidences, folder)
    errors = {}
    for name, graded in known.items():
        found = measure_grade_reliability(*confidences[name, False])
        errors[name] = GradeCalibrationErrors(
            bins=len(found.slides),
            ece=found.ece,
            nll=compute_nll(*_stack(raw[name])),
            ece_scaled=measure_grade_reliability(*confidences[name, True]).ece if inverse else None,
            nll_scaled=compute_nll(*_stack(graded)) if inverse else None,
        )
    none = GradeCalibrationErrors(bins=0, ece=None, nll=None, ece_scaled=None, nll_scaled=None)
    return GradeCalibration(
        **frozen.temperature.model_dump(),
        abstention=frozen.abstention,
        val=errors.get("validation", none),
        test=errors.get("test"),
    )


def _calibrate(
    graded: Sequence[GradedSlide], temperature: float | None, abstain_below: float | None
) -> list[GradedSlide]:
    return [replace(slide, grade=slide.grade.calibrate(temperature, abstain_below)) for slide in graded]


def _stack(graded: Sequence[GradedSlide]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities (N, C) and true classes (N,)."""
    prob = np.array([slide.grade.probabilities for slide in graded], dtype=np.float64)
    return prob, np.array([slide.label for slide in graded], dtype=np.int64)


def _split_confidence(graded: Sequence[GradedSlide]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the confidence of each slide, (N,), and whether its class is right, (N,)."""
    confidence = np.array([slide.grade.confidence for slide in graded])
    return confidence, np.array([slide.grade.predicted == slide.label for slide in graded], dtype=np.bool_)
