"""Segmentation figures of many slides at a frozen threshold, with intervals: of all, by provider and by grade."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from panda.inference.class_figures import (
    ClassSplitFigures,
    RuleGradedSlide,
    RuleGradeSplitFigures,
    summarize_classes,
    summarize_rule_grades,
)
from panda.inference.evaluate import SCORES, SlideScore
from panda.stored import Percent, Share
from panda.tasks.bins import BINS
from panda.tasks.bootstrap import compute_percentile_interval, drop_undefined, resample_sums
from panda.tasks.figures import AmountInterval, Figures, Interval, split_slides
from panda.tasks.metrics import compute_areas, divide, score_threshold
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.classes import BINARY, ClassSet

_MEANS = (*(f"{name}_mean_slide" for name in SCORES), "fp_mm2_benign_slides")
_AREAS = ("pr_auc", "pixel_auroc")
FIGURES = (*SCORES, *_MEANS, *_AREAS)
"""Figures that have an interval."""

_NO_CANCER = "Null if no labelled cancer is in tissue"
_MEAN = "Mean `{}` of the slides with labelled cancer in tissue. Null if no slide has one."


class SegmentationFigures(Figures, frozen=True):
    """Scores over the tissue pixels of blended canvases, at the chosen threshold.

    A slide without labelled cancer has no Dice; its false-positive area is given instead.
    """

    slides: NonNegativeInt = Field(description="Slides that were scored.")
    slides_with_cancer: NonNegativeInt = Field(description="Slides with labelled cancer in tissue.")
    benign_slides: NonNegativeInt = Field(
        description="Slides without any labelled cancer and without a grade of 1 or more."
    )
    groups: NonNegativeInt = Field(description="Patients or near-duplicate groups, which the bootstrap draws.")
    dice: Share | None = Field(
        description=f"2 TP / (2 TP + FP + FN) over the pixels of all slides, equal to their F1. {_NO_CANCER}."
    )
    dice_interval: Interval
    iou: Share | None = Field(description=f"TP / (TP + FP + FN) over the same pixels. {_NO_CANCER}.")
    iou_interval: Interval
    precision: Share | None = Field(
        description=f"TP / (TP + FP) over the same pixels. {_NO_CANCER}, or nothing was predicted."
    )
    precision_interval: Interval
    recall: Share | None = Field(description=f"TP / (TP + FN) over the same pixels. {_NO_CANCER}.")
    recall_interval: Interval
    dice_mean_slide: Share | None = Field(description=_MEAN.format("dice"))
    dice_mean_slide_interval: Interval
    iou_mean_slide: Share | None = Field(description=_MEAN.format("iou"))
    iou_mean_slide_interval: Interval
    precision_mean_slide: Share | None = Field(
        description=f"{_MEAN.format('precision')} A slide on which nothing was predicted has none."
    )
    precision_mean_slide_interval: Interval
    recall_mean_slide: Share | None = Field(description=_MEAN.format("recall"))
    recall_mean_slide_interval: Interval
    fp_mm2_benign_slides: NonNegativeFloat | None = Field(
        description="Mean area called cancer on benign slides, before the clean-up, mm². Null if there is none, or "
        "µm/px of one is unknown."
    )
    fp_mm2_benign_slides_interval: AmountInterval
    pr_auc: Share | None = Field(
        description=f"Average precision: area under the precision-recall curve of pixels. {_NO_CANCER}."
    )
    pr_auc_interval: Interval
    pixel_auroc: Share | None = Field(
        description=f"Area under the ROC curve of pixels. {_NO_CANCER}, or no other tissue."
    )
    pixel_auroc_interval: Interval
    no_interval: dict[str, str] = Field(description="Figure to the reason why it has no interval.")
    cancer_percent_of_tissue: Percent | None = Field(
        description="Labelled cancer, % of tissue: `pr_auc` of a random map. Null if there is no tissue."
    )
    all_tissue_dice: Share | None = Field(description=f"`dice` if all tissue were called cancer. {_NO_CANCER}.")
    cancer_outside_tissue_px: NonNegativeInt = Field(
        description="Labelled cancer outside the tissue found, px of the map. It enters no score."
    )
    cancer_outside_tissue_mm2: NonNegativeFloat | None = Field(
        description="Area of that cancer, mm². Null if µm/px of such a slide is unknown."
    )
    cancer_outside_tissue_percent: Percent | None = Field(
        description="Its share, % of the labelled cancer. Null if there is none."
    )


class SegmentationSplitFigures(SegmentationFigures, frozen=True):
    """Scores of all slides of a split, and of parts of them."""

    contradicting_slides: NonNegativeInt = Field(
        default=0,
        description="Slides with a grade of 1 or more whose mask labels no cancer. They are neither scored nor benign.",
    )
    by_provider: dict[str, SegmentationFigures] = Field(description="Provider to the scores of its slides.")
    by_grade: dict[str, SegmentationFigures] = Field(
        description='ISUP grade, "0" to "5" or "none", to its slides\' scores.'
    )
    classes: ClassSplitFigures | None = Field(
        default=None,
        description="Scores of several classes of cancer. Absent with one class.",
        exclude_if=lambda figures: figures is None,
    )
    rule_grade: RuleGradeSplitFigures | None = Field(
        default=None,
        description="Agreement of the grades that follow from the areas of patterns with the given grades. Absent with "
        "one class of cancer. Validation has areas before the clean-up, test after it.",
        exclude_if=lambda figures: figures is None,
    )

    @property
    def numbers(self) -> dict[str, float | None]:
        """See the base class; the Dice of each class and the agreement of the grades by the rule are figures too."""
        own = {key: value for key, value in super().numbers.items() if key not in ("classes", "rule_grade")}
        return own | {key: part.numbers[name] for key, (part, name) in self._list_parts().items()}

    def find_interval(self, key: str) -> tuple[float, float] | None:
        """See the base class."""
        part, name = self._list_parts().get(key, (None, key))
        return part.find_interval(name) if part else super().find_interval(key)

    def _list_parts(self) -> dict[str, tuple[Figures, str]]:
        """Return the figures of the classes and of the rule by their keys, each with its key in a part."""
        by_class = self.classes.by_class if self.classes else {}
        parts: dict[str, tuple[Figures, str]] = {f"dice_{name}": (part, "dice") for name, part in by_class.items()}
        if self.rule_grade:
            parts |= {f"rule_{name}": (self.rule_grade, name) for name in ("qwk", "accuracy")}
        return parts


def summarize(
    scores: Sequence[SlideScore],
    choice: ThresholdChoice,
    seed: int,
    classes: ClassSet = BINARY,
    rule_grades: Sequence[RuleGradedSlide] = (),
) -> SegmentationSplitFigures:
    """Compute figures of all slides, of each provider and of each grade; an undefined figure is None.

    A slide whose provider has its own threshold is scored at that. Slides that contradict their grade are only counted.

    Args:
        scores: The scores of the slides.
        choice: The thresholds.
        seed: Seed of the bootstrap.
        classes: The classes that were scored.
        rule_grades: The slides with their grade by the rule.
    """
    found = len(scores)
    scores = [score for score in scores if not score.contradicts_grade]

    def summarize_parts(name_part: Callable[[SlideScore], str]) -> dict[str, SegmentationFigures]:
        parts = split_slides(scores, name_part)
        return {name: SegmentationFigures(**_compute_figures(part, choice, seed)) for name, part in parts.items()}

    return SegmentationSplitFigures(
        **_compute_figures(scores, choice, seed),
        contradicting_slides=found - len(scores),
        by_provider=summarize_parts(lambda score: score.record.provider),
        by_grade=summarize_parts(
            lambda score: "none" if score.record.isup_grade is None else str(score.record.isup_grade)
        ),
        classes=None if classes.is_binary else summarize_classes(scores, choice, classes, seed),
        rule_grade=None if classes.is_binary else summarize_rule_grades(rule_grades, seed),
    )


def _compute_figures(scores: Sequence[SlideScore], choice: ThresholdChoice, seed: int) -> dict[str, Any]:
    """Compute the fields of `SegmentationFigures`."""
    groups = [score.record.group for score in scores]
    sums = np.array([_list_terms(score, choice) for score in scores]).reshape(-1, 3 + 2 * len(_MEANS))
    hists = np.array([score.histogram for score in scores], dtype=np.int64).reshape(-1, 2, BINS)
    everything = hists.sum(axis=0)
    values = dict(zip(FIGURES, (*_divide_sums(sums.sum(axis=0)), *_compute_pixel_areas(everything)), strict=True))
    parts = (
        resample_sums(sums, groups, _divide_sums, seed=seed),
        resample_sums(hists, groups, _compute_pixel_areas, seed=seed),
    )
    drawn = np.column_stack(parts)
    found: dict[str, Any] = {}
    notes = {}
    for column, (name, value) in enumerate(values.items()):
        has = sums[:, 3 + len(_MEANS) + _MEANS.index(name)] > 0 if name in _MEANS else np.ones(len(scores), bool)
        count = len(set(np.asarray(groups)[has]))
        ends = drop_undefined(compute_percentile_interval(drawn[:, column])) if count > 1 else None
        found |= {name: None if math.isnan(value) else float(value), f"{name}_interval": ends}
        if not math.isnan(value) and ends is None:
            notes[name] = f"an interval needs at least two groups of slides, there is {count}"
    outside, labelled = sum(score.outside_px for score in scores), sum(score.labelled_px for score in scores)
    outside_mm2 = [score.compute_mm2(score.outside_px) for score in scores if score.outside_px]
    return found | {
        "slides": len(scores),
        "slides_with_cancer": sum(bool(score.histogram[0].any()) for score in scores),
        "benign_slides": sum(not score.labelled_px for score in scores),
        "groups": len(set(groups)),
        "no_interval": notes,
        "cancer_percent_of_tissue": 100 * float(everything[0].sum() / everything.sum()) if everything.any() else None,
        "all_tissue_dice": score_threshold(everything, 0.0).dice if everything[0].any() else None,
        "cancer_outside_tissue_px": outside,
        "cancer_outside_tissue_mm2": None if None in outside_mm2 else sum((area for area in outside_mm2 if area), 0.0),
        "cancer_outside_tissue_percent": 100 * outside / labelled if labelled else None,
    }


def _list_terms(score: SlideScore, choice: ThresholdChoice) -> list[float]:
    """Return the terms of a slide that add up: tp, fp, fn; its `_MEANS`, 0 if undefined; and 1 for each defined one.

    An unknown area is NaN and makes the mean NaN, because a mean over the remaining slides would be biased.
    """
    threshold = choice.value_for(score.record.provider)
    metrics = score.compute_metrics(threshold)
    counts = [count or 0 for count in (metrics.tp_px, metrics.fp_px, metrics.fn_px)]  # None only if contradicting
    parts: list[float | None] = [getattr(metrics, name) for name in SCORES]
    area = math.nan if metrics.fp_mm2 is None else metrics.fp_mm2
    parts.append(None if score.labelled_px else area)
    return [*counts, *(part or 0.0 for part in parts), *(float(part is not None) for part in parts)]


def _divide_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute `SCORES` and `_MEANS` (…, 9) from sums (…, 13) of `_list_terms`; NaN if there is nothing to score.

    Slides without any cancer have no Dice, because it would be 0 however small the error.
    """
    tp, fp, fn = np.moveaxis(sums[..., :3], -1, 0)
    above = np.stack([2 * tp, tp, tp, tp], axis=-1)
    below = np.stack([2 * tp + fp + fn, tp + fp + fn, tp + fp, tp + fn], axis=-1) * (tp + fn > 0)[..., None]
    above = np.concatenate([above, sums[..., 3 : 3 + len(_MEANS)]], axis=-1)
    below = np.concatenate([below, sums[..., 3 + len(_MEANS) :]], axis=-1)
    return divide(above, below)


def _compute_pixel_areas(hists: NDArray[Any]) -> NDArray[np.float64]:
    """Compute `_AREAS` (…, 2) from histograms (…, 2, BINS)."""
    return np.stack(compute_areas(hists), axis=-1)
