"""Figures of the confidence of grades, with intervals: calibration error, risk and coverage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeFloat

from panda.inference.grade import GradeRecord
from panda.stored import Share
from panda.tasks.bootstrap import (
    compute_percentile_interval,
    count_groups,
    drop_undefined,
    explain_no_interval,
    resample_counts,
    resample_sums,
)
from panda.tasks.figures import Figures, Interval
from panda.tasks.grade_calibration import assign_bins, compute_aurc, compute_nll, measure_grade_reliability
from panda.tasks.metrics import divide

_OLDER = "Null without slides, and in older runs."
_UNUSED = "Null without `abstention` of the calibration."


class ConfidenceFigures(Figures, frozen=True):
    """How far the confidence of grades can be trusted. A confidence is the probability of the predicted class."""

    nll: NonNegativeFloat | None = Field(
        default=None, description=f"Mean negative log-likelihood of the true class, nat. {_OLDER}"
    )
    ece: Share | None = Field(
        default=None,
        description="Calibration error: mean distance of confidence and accuracy, over bins of equal numbers of slides "
        f"(10 bins; with fewer than 100 slides, bins of 10 or more). {_OLDER}",
    )
    ece_interval: Interval = None
    aurc: Share | None = Field(
        default=None,
        description="Area under the risk-coverage curve: the share of wrong classes among the n most confident slides, "
        f"mean over all n. {_OLDER}",
    )
    aurc_interval: Interval = None
    coverage: Share | None = Field(
        default=None, description=f"Share of slides that are certain enough to grade. {_UNUSED}"
    )
    coverage_interval: Interval = None
    selective_risk: Share | None = Field(
        default=None, description=f"Share of wrong classes among these. {_UNUSED} Null too if there are none."
    )
    selective_risk_interval: Interval = None


def compute_confidence_scores(
    grades: Sequence[GradeRecord], label: Sequence[int], groups: Sequence[str], seed: int
) -> dict[str, Any]:
    """Compute the fields of `ConfidenceFigures` for slides with their true classes and groups; none without slides."""
    if not grades:
        return {}
    confidence = np.array([grade.confidence for grade in grades])
    truth = np.array(label, dtype=np.int64)
    correct = np.array([grade.predicted for grade in grades]) == truth
    prob = np.array([grade.probabilities for grade in grades])
    area = partial(compute_aurc, confidence, correct)
    figures: dict[str, Any] = {
        "nll": compute_nll(prob, truth),
        "ece": measure_grade_reliability(confidence, correct).ece,
        "aurc": float(area(np.ones(len(correct)))),
    }
    # The bins of the slides are those of all slides in each draw.
    bins = assign_bins(confidence, correct)
    gaps = np.eye(bins.max() + 1)[bins] * (confidence - correct)[:, None]
    rows = np.column_stack([gaps, np.ones(len(grades))])
    drawn = {
        "ece": resample_sums(rows, groups, lambda s: divide(np.abs(s[..., :-1]).sum(-1), s[..., -1]), seed=seed),
        "aurc": resample_counts(groups, area, seed=seed),
    }
    if grades[0].abstain_below is not None:
        certain = np.array([not grade.mark for grade in grades])
        for key, part, of in (
            ("coverage", certain, np.ones(len(certain))),
            ("selective_risk", certain & ~correct, certain),
        ):
            figures[key] = float(part.sum() / of.sum()) if of.any() else None
            pair = np.column_stack([part, of])
            if not explain_no_interval(count_groups(groups, of > 0)):
                drawn[key] = resample_sums(pair, groups, lambda s: divide(s[..., 0], s[..., 1]), seed=seed)
    ends = {key: drop_undefined(compute_percentile_interval(values)) for key, values in drawn.items()}
    return figures | {f"{key}_interval": pair for key, pair in ends.items()}
