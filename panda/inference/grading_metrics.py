"""Figures of graded slides, with intervals: of all, and by provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.inference.dataset_metrics import plain_interval
from panda.inference.grader import AGAINST_TILES, Grade
from panda.tasks.bootstrap import percentile_interval, resampled_sums
from panda.tasks.grade_metrics import grading_intervals, grading_scores

_NAMES = {"qwk": "qwk", "accuracy": "accuracy", "auroc": "auroc_cancer", "auroc_significant": "auroc_significant"}
"""What the figures of `grading_scores` that have an interval are called in a summary."""


@dataclass(frozen=True)
class GradedSlide:
    """What a slide was given and what was found.

    Attributes:
        record: The slide.
        label: The class that it was given.
        grade: What was found.
    """

    record: SlideRecord
    label: int
    grade: Grade

    def row(self, attention: bool) -> dict[str, Any]:
        """The slide's row in a table.

        Args:
            attention: With the figures of `AGAINST_TILES`, None where it has none.
        """
        return {
            "slide_id": self.record.slide_id,
            "provider": self.record.provider,
            "isup_grade": self.record.isup_grade,
            "label": self.label,
            "predicted": self.grade.predicted,
            "group": self.record.group,
            **{f"p{k}": p for k, p in enumerate(self.grade.probabilities)},
            **((self.grade.against_label or dict.fromkeys(AGAINST_TILES)) if attention else {}),
        }


def summarise_grades(graded: Sequence[GradedSlide], classes: int, seed: int, attention: bool) -> dict[str, Any]:
    """Figures over slides, as plain data.

    Args:
        graded: The slides.
        classes: How many there are.
        seed: Of the bootstrap.
        attention: With the figures of `AGAINST_TILES`: of slides whose masks were looked at.

    Returns:
        The figures of grading that `docs/summary.md` describes, of all slides, and the same `by_provider`. Undefined
        figures are None.
    """
    figures = _figures(graded, classes, seed, attention)
    figures["by_provider"] = {
        provider: _figures([slide for slide in graded if slide.record.provider == provider], classes, seed, attention)
        for provider in sorted({slide.record.provider for slide in graded})
    }
    return figures


def _figures(graded: Sequence[GradedSlide], classes: int, seed: int, attention: bool) -> dict[str, Any]:
    labels = np.array([slide.label for slide in graded], dtype=np.int64)
    prob = np.array([slide.grade.probabilities for slide in graded]).reshape(-1, classes)
    found = grading_scores(labels, prob)
    ends = grading_intervals(labels, prob, [slide.record.group for slide in graded], seed=seed)
    figures: dict[str, Any] = {"slides": len(graded)}
    for key, name in _NAMES.items():
        figures |= {key: found[name], f"{key}_interval": plain_interval(ends[name])}
    return figures | {"confusion": found["confusion"]} | (_attention(graded, seed) if attention else {})


def _attention(graded: Sequence[GradedSlide], seed: int) -> dict[str, Any]:
    """Whether attention lies on labelled cancer: means over the slides that have some, with intervals."""
    known = [(slide.record.group, slide.grade.against_label) for slide in graded if slide.grade.against_label]
    found: dict[str, Any] = {}
    for key in AGAINST_TILES:
        values = [(group, against[key]) for group, against in known if against[key] is not None]
        found[key] = float(np.mean([value for _, value in values])) if values else None
        sums = np.array([[value, 1.0] for _, value in values]).reshape(-1, 2)
        drawn = resampled_sums(sums, [group for group, _ in values], _mean, seed=seed)
        found[f"{key}_interval"] = plain_interval(percentile_interval(drawn)) if values else None
    return found


def _mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of (…, 2) sums and counts."""
    return np.asarray(sums[..., 0] / sums[..., 1])
