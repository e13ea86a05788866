"""Grading figures of many slides, with intervals: of all, and by provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt

from panda.data.manifest import SlideRecord
from panda.inference.confidence_metrics import ConfidenceFigures, compute_confidence_scores
from panda.inference.grade import ATTENTION_SCORES, AttentionScores, GradeRecord
from panda.inference.slide_result import TableRow
from panda.stored import Kappa, Share
from panda.tasks.bootstrap import compute_percentile_interval, drop_undefined, resample_sums
from panda.tasks.figures import Interval, KappaInterval, split_slides
from panda.tasks.grade_metrics import compute_grade_intervals, score_grades
from panda.tasks.metrics import divide

_NAMES = {"qwk": "qwk", "accuracy": "accuracy", "auroc": "auroc_cancer", "auroc_significant": "auroc_significant"}
"""Figure with an interval to its name in `score_grades`."""


_ONE_SIDE = "Null if all slides are on one side"


class GradingFigures(ConfidenceFigures, frozen=True):
    """Scores of whole slides, each with its most probable class."""

    slides: NonNegativeInt = Field(description="Slides that were graded.")
    qwk: Kappa | None = Field(
        description="Cohen's kappa with quadratic weights. Null if truth and prediction are of one class, or no "
        "slide was graded."
    )
    qwk_interval: KappaInterval
    accuracy: Share | None = Field(description="Share of slides with the right class. Null if no slide was graded.")
    accuracy_interval: Interval
    auroc: Share | None = Field(description=f"AUROC, cancer against none. {_ONE_SIDE}.")
    auroc_interval: Interval
    auroc_significant: Share | None = Field(description=f"AUROC, ISUP 2 and above. {_ONE_SIDE}, or `target` is cancer.")
    auroc_significant_interval: Interval
    confusion: list[list[NonNegativeInt]] = Field(
        description="Slides: one row for each true class, one column for each predicted one."
    )


class GradingSplitFigures(GradingFigures, frozen=True):
    """Scores of all graded slides of a split, and of parts of them."""

    by_provider: dict[str, GradingFigures] = Field(description="Provider to the scores of its slides.")


class AttentionFigures(GradingFigures, frozen=True):
    """Scores of test slides, whose attention is compared with their label masks."""

    attention_auroc: Share | None = Field(
        description="AUROC of a tile's attention for tiles with at least 10 % labelled cancer, mean over slides. "
        "Null if no slide has a mask with both kinds of tiles."
    )
    attention_auroc_interval: Interval
    cancer_attended: Share | None = Field(
        description="Labelled cancer in the tiles, weighted by attention, mean over slides whose tiles have some. "
        "Null if no slide has a mask with cancer."
    )
    cancer_attended_interval: Interval
    cancer_of_tiles: Share | None = Field(
        description="The same with equal weights. Null if no slide has a mask with cancer."
    )
    cancer_of_tiles_interval: Interval


class AttentionSplitFigures(AttentionFigures, frozen=True):
    """Scores of all test slides, and of parts of them."""

    by_provider: dict[str, AttentionFigures] = Field(description="Provider to the scores of its slides.")


@dataclass(frozen=True)
class GradedSlide:
    """A slide with its label, see `TargetSpec.read_values`, and its predicted grade."""

    record: SlideRecord
    values: tuple[float, ...]
    grade: GradeRecord

    @property
    def label(self) -> int:
        """The true class."""
        return int(self.values[0])

    def to_row(self, attention: bool) -> TableRow:
        """Return the slide's row of a table; with `attention`, `ATTENTION_SCORES` too, None if the slide has none."""
        target = self.grade.target
        label: TableRow = {"label": self.values[0]}
        if target.kind == "survival":
            label = dict(zip(("time", "event"), self.values, strict=True))
        elif not target.is_grade and target.has_classes:
            label |= {"given_class": target.describe(self.values[0]), "predicted_class": self.grade.describe()}
        return {
            "slide_id": self.record.slide_id,
            "provider": self.record.provider,
            **({"isup_grade": self.record.isup_grade} if target.is_grade else {}),
            **label,
            "predicted": self.grade.predicted,
            "group": self.record.group,
            **{f"p{k}": p for k, p in enumerate(self.grade.probabilities)},
            **self.grade.list_confidence(),
            **(dict(self.grade.against_label or AttentionScores()) if attention and target.is_grade else {}),
        }


def summarize_grades(graded: Sequence[GradedSlide], classes: int, seed: int) -> GradingSplitFigures:
    """Compute figures of all graded slides and of each provider; an undefined figure is None."""
    by_provider = split_slides(graded, lambda slide: slide.record.provider)
    parts = {name: GradingFigures(**_compute_scores(part, classes, seed)) for name, part in by_provider.items()}
    return GradingSplitFigures(**_compute_scores(graded, classes, seed), by_provider=parts)


def summarize_test_grades(graded: Sequence[GradedSlide], classes: int, seed: int) -> AttentionSplitFigures:
    """Compute figures as `summarize_grades` does, with those of attention against the label masks."""

    def compute(slides: Sequence[GradedSlide]) -> dict[str, Any]:
        return _compute_scores(slides, classes, seed) | _compute_attention(slides, seed)

    by_provider = split_slides(graded, lambda slide: slide.record.provider)
    parts = {name: AttentionFigures(**compute(part)) for name, part in by_provider.items()}
    return AttentionSplitFigures(**compute(graded), by_provider=parts)


def _compute_scores(graded: Sequence[GradedSlide], classes: int, seed: int) -> dict[str, Any]:
    """Compute the fields of `GradingFigures`."""
    labels = np.array([slide.label for slide in graded], dtype=np.int64)
    prob = np.array([slide.grade.probabilities for slide in graded]).reshape(-1, classes)
    found = score_grades(labels, prob)
    groups = [slide.record.group for slide in graded]
    ends = compute_grade_intervals(labels, prob, groups, seed=seed)
    figures: dict[str, Any] = {"slides": len(graded), "confusion": found.confusion}
    figures |= compute_confidence_scores([slide.grade for slide in graded], labels.tolist(), groups, seed)
    for key, name in _NAMES.items():
        figures |= {key: getattr(found, name), f"{key}_interval": drop_undefined(ends[name])}
    return figures


def _compute_attention(graded: Sequence[GradedSlide], seed: int) -> dict[str, Any]:
    """Compute `ATTENTION_SCORES` with intervals: means over the slides that have them."""
    known = [(slide.record.group, slide.grade.against_label) for slide in graded if slide.grade.against_label]
    found: dict[str, Any] = {}
    for key in ATTENTION_SCORES:
        values = [(group, value) for group, scores in known if (value := getattr(scores, key)) is not None]
        found[key] = float(np.mean([value for _, value in values])) if values else None
        sums = np.array([[value, 1.0] for _, value in values]).reshape(-1, 2)
        drawn = resample_sums(
            sums, [group for group, _ in values], lambda pair: divide(pair[..., 0], pair[..., 1]), seed=seed
        )
        found[f"{key}_interval"] = drop_undefined(compute_percentile_interval(drawn)) if values else None
    return found
