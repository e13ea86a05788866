"""Segmentation figures of many slides at a frozen threshold, with intervals: of all, by provider and by grade."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panda.inference.class_figures import RuleGradedSlide, summarize_classes, summarize_rule_grades
from panda.inference.segmentation_figures import SegmentationFigures, SegmentationSplitFigures
from panda.inference.slide_score import CALLED_PERCENT, SCORES, SlideScore
from panda.tasks.bins import BINS
from panda.tasks.bootstrap import (
    average_known,
    compute_percentile_interval,
    count_groups,
    drop_undefined,
    explain_no_interval,
    resample_counts,
    resample_sums,
)
from panda.tasks.figures import split_slides
from panda.tasks.grade_metrics import compute_auroc
from panda.tasks.metrics import compute_areas, divide, score_threshold
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.classes import BINARY, ClassSet

_MEANS = (*(f"{name}_mean_slide" for name in SCORES), "fp_mm2_benign_slides", "slide_sensitivity", "slide_specificity")
_AREAS = ("pr_auc", "pixel_auroc")
FIGURES = (*SCORES, *_MEANS, *_AREAS, "slide_auroc")
"""Figures that have an interval."""


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
    hists = np.array([score.full_histogram for score in scores], dtype=np.int64).reshape(-1, 2, BINS)
    slides = _list_slide_calls(scores, choice)
    parts = (
        resample_sums(sums, groups, _divide_sums, seed=seed),
        resample_sums(hists, groups, _compute_pixel_areas, seed=seed),
        resample_counts(groups, lambda times: compute_auroc(*slides, times)[..., None], seed=seed),
    )
    whole = (
        *_divide_sums(sums.sum(axis=0)),
        *_compute_pixel_areas(hists.sum(axis=0)),
        compute_auroc(*slides, np.ones(len(scores))),
    )
    drawn = np.column_stack(parts)
    found: dict[str, Any] = {}
    notes = {}
    for column, (name, value) in enumerate(zip(FIGURES, whole, strict=True)):
        deciding: tuple[NDArray[np.bool_], ...] = (np.ones(len(scores), bool),)
        if name in _MEANS:
            deciding = (sums[:, 3 + len(_MEANS) + _MEANS.index(name)] > 0,)
        elif name == "slide_auroc":
            deciding = (slides[1], ~slides[1])
        count = count_groups(groups, *deciding)
        too_few = explain_no_interval(count)
        ends = None if too_few else drop_undefined(compute_percentile_interval(drawn[:, column]))
        found |= {name: None if math.isnan(value) else float(value), f"{name}_interval": ends}
        if too_few and not math.isnan(value):
            notes[name] = too_few
    outside, labelled = sum(score.outside_px for score in scores), sum(score.labelled_px for score in scores)
    outside_mm2 = [score.compute_mm2(score.outside_px) for score in scores if score.outside_px]
    tissue = sum(score.tissue_px for score in scores)
    called = float(sums[:, :2].sum())
    return (
        found
        | _call_all_tissue(scores)
        | {
            "slides": len(scores),
            "slides_with_cancer": sum(bool(score.labelled_px) for score in scores),
            "benign_slides": sum(not score.labelled_px for score in scores),
            "groups": len(set(groups)),
            "no_interval": notes,
            "cancer_percent_of_tissue": 100 * (labelled - outside) / tissue if tissue else None,
            "called_percent_of_tissue": 100 * called / tissue if tissue else None,
            "cancer_outside_tissue_px": outside,
            "cancer_outside_tissue_mm2": None
            if None in outside_mm2
            else sum((area for area in outside_mm2 if area), 0.0),
            "cancer_outside_tissue_percent": 100 * outside / labelled if labelled else None,
        }
    )


def _call_all_tissue(scores: Sequence[SlideScore]) -> dict[str, float | None]:
    """Compute the figures of the trivial answer, which calls all tissue cancer."""
    pooled = sum((score.histogram for score in scores), start=np.zeros((2, BINS), np.int64))
    outside = sum(score.outside_px for score in scores)
    everything = score_threshold(pooled, 0.0, outside)
    each = [score_threshold(score.histogram, 0.0, score.outside_px) for score in scores if score.labelled_px]
    benign = [score.compute_mm2(score.tissue_px) for score in scores if not score.labelled_px]
    known = [area for area in benign if area is not None]
    found: dict[str, float | None] = {}
    for name in ("dice", "iou", "precision"):
        mean = average_known(np.array([getattr(one, name) for one in each], dtype=np.float64))
        found[f"all_tissue_{name}"] = getattr(everything, name) if each else None
        found[f"all_tissue_{name}_mean_slide"] = mean if each else None
    area = sum(known) / len(known) if known and len(known) == len(benign) else None
    return found | {"all_tissue_fp_mm2_benign_slides": area}


def _list_slide_calls(
    scores: Sequence[SlideScore], choice: ThresholdChoice
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the share of the tissue of each slide that is called cancer, %, and whether cancer is labelled on it."""
    metrics = [score.compute_metrics(choice.value_for(score.record.provider)) for score in scores]
    called = np.array([one.called_percent_of_tissue or 0.0 for one in metrics], dtype=np.float64)
    return called, np.array([bool(score.labelled_px) for score in scores], dtype=bool)


def _list_terms(score: SlideScore, choice: ThresholdChoice) -> list[float]:
    """Return the terms of a slide that add up: tp, fp, fn; its `_MEANS`, 0 if undefined; and 1 for each defined one.

    An unknown area is NaN and makes the mean NaN, because a mean over the remaining slides would be biased.
    """
    threshold = choice.value_for(score.record.provider)
    metrics = score.compute_metrics(threshold)
    counts = [count or 0 for count in (metrics.tp_px, metrics.fp_px, metrics.fn_px)]  # None only if contradicting
    parts: list[float | None] = [getattr(metrics, name) for name in SCORES]
    area = math.nan if metrics.fp_mm2 is None else metrics.fp_mm2
    is_called = (metrics.called_percent_of_tissue or 0.0) > CALLED_PERCENT
    parts += [None, float(is_called), None] if score.labelled_px else [area, None, float(not is_called)]
    return [*counts, *(part or 0.0 for part in parts), *(float(part is not None) for part in parts)]


def _divide_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute `SCORES` and `_MEANS` (…, 11) from sums (…, 17) of `_list_terms`; NaN if there is nothing to score.

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
