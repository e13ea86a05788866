"""Figures of the classes of cancer, and of the grades that follow from their areas, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from panda.data.manifest import SlideRecord
from panda.inference.grade import RuleGrade
from panda.inference.slide_score import SlideScore
from panda.stored import Kappa, Plain, Share, ShareEnds
from panda.tasks.bootstrap import (
    compute_percentile_interval,
    count_groups,
    drop_undefined,
    explain_no_interval,
    resample_sums,
)
from panda.tasks.class_counts import find_row, measure_class_dice
from panda.tasks.figures import Figures, Interval, KappaInterval, split_slides
from panda.tasks.grade_metrics import compute_agreement
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.classes import ClassSet
from panda.wsi.gleason import GRADES

UNNAMED = "cancer, class not labelled"
"""Row of the confusion for cancer whose label names no class."""
_UNKNOWN_AREA = "Null if µm/px of such a slide is unknown."


class ClassFigures(Figures, frozen=True):
    """Scores of one class of cancer, over the pixels whose label names their class."""

    slides: NonNegativeInt = Field(description="Slides with this class in tissue.")
    dice: Share | None = Field(
        description="2 TP / (2 TP + FP + FN) of this class over the pixels of all slides. Null if no label names it."
    )
    dice_interval: ShareEnds | None = Field(
        description="Bootstrap 95 % interval of `dice`. Null if fewer than five groups of slides have this class."
    )
    labelled_mm2: NonNegativeFloat | None = Field(description=f"Labelled area, mm². {_UNKNOWN_AREA}")
    predicted_mm2: NonNegativeFloat | None = Field(description=f"Area called this class there, mm². {_UNKNOWN_AREA}")


class ClassConfusion(Plain, frozen=True):
    """Labelled and predicted classes of the tissue, as areas.

    Pixels without a label count nowhere.
    """

    labels: list[str] = Field(description="One for each row: the classes, and cancer whose label names no class.")
    predicted: list[str] = Field(description="One for each column: the classes.")
    mm2: list[list[NonNegativeFloat]] | None = Field(description=f"Areas, mm². {_UNKNOWN_AREA}")


class ClassPartFigures(Plain, frozen=True):
    """Scores of the classes on some slides."""

    slides: NonNegativeInt = Field(description="Slides whose labels name classes of cancer.")
    groups: NonNegativeInt = Field(description="Their patients or near-duplicate groups.")
    by_class: dict[str, ClassFigures] = Field(
        description="Class of cancer to its scores. Empty if no label map has patterns."
    )
    confusion: ClassConfusion = Field(description="Labelled and predicted classes.")


class ClassSplitFigures(ClassPartFigures, frozen=True):
    """Scores of the classes on all slides of a split, and on those of each provider."""

    by_provider: dict[str, ClassPartFigures] = Field(description="Provider to the scores of its slides.")


class RuleGradeFigures(Figures, frozen=True):
    """How the grades that follow from the areas of the patterns agree with the given ISUP grades."""

    slides: NonNegativeInt = Field(description="Slides with a given grade and a Gleason score.")
    without_score: NonNegativeInt = Field(description="Slides with a given grade and no Gleason score.")
    qwk: Kappa | None = Field(
        description="Cohen's kappa with quadratic weights. Null if all given and found grades are the same one."
    )
    qwk_interval: KappaInterval
    accuracy: Share | None = Field(description="Share of slides with the given grade. Null without slides.")
    accuracy_interval: Interval
    within_band: Share | None = Field(
        description="Share of slides whose given grade is in the interval of the threshold band. Null without slides."
    )
    within_band_interval: Interval
    confusion: list[list[NonNegativeInt]] = Field(
        description="Slides: one row for each given grade, one column for each grade by the rule."
    )


class RuleGradeSplitFigures(RuleGradeFigures, frozen=True):
    """The agreement on all slides of a split, and on those of each provider."""

    by_provider: dict[str, RuleGradeFigures] = Field(description="Provider to the agreement on its slides.")


def summarize_classes(
    scores: Sequence[SlideScore], choice: ThresholdChoice, classes: ClassSet, seed: int
) -> ClassSplitFigures:
    """Compute the scores of the classes, for slides that were scored by class."""

    def compute(part: Sequence[SlideScore]) -> dict[str, Any]:
        return _score_classes(part, choice, classes, seed)

    by_provider = split_slides(scores, lambda score: score.record.provider)
    parts = {name: ClassPartFigures(**compute(part)) for name, part in by_provider.items()}
    return ClassSplitFigures(**compute(scores), by_provider=parts)


def _score_classes(
    scores: Sequence[SlideScore], choice: ThresholdChoice, classes: ClassSet, seed: int
) -> dict[str, Any]:
    """Compute the fields of `ClassPartFigures`."""
    size = len(classes.names)
    found = [score.confuse_classes(choice.value_for(score.record.provider)) for score in scores]
    areas = [score.pixel_area_um2 for score in scores]
    known = [matrix[:size].any() for matrix in found]
    named = [(s, m, area) for s, m, area, has in zip(scores, found, areas, known, strict=True) if has]
    matrices = np.array([matrix for _, matrix, _ in named]).reshape(-1, size + 3, size)
    groups = [score.record.group for score, *_ in named]
    by_class = {}
    if named:
        dice = measure_class_dice(matrices.sum(axis=0))
        drawn = resample_sums(matrices, groups, measure_class_dice, seed=seed)
        mm2 = _sum_areas([m for _, m, _ in named], [area for *_, area in named])
        for number, name in enumerate(classes.cancer_names, start=1):
            value, has_class = dice[number - 1], matrices[:, number].any(axis=1)
            ends = None
            if not explain_no_interval(count_groups(groups, np.asarray(has_class))):
                ends = drop_undefined(compute_percentile_interval(drawn[:, number - 1]))
            by_class[name] = ClassFigures(
                slides=int(has_class.sum()),
                dice=None if np.isnan(value) else float(value),
                dice_interval=ends,
                labelled_mm2=None if mm2 is None else float(mm2[number].sum()),
                predicted_mm2=None if mm2 is None else float(mm2[:size, number].sum()),
            )
    return {
        "slides": len(named),
        "groups": len(set(groups)),
        "by_class": by_class,
        "confusion": _lay_out_confusion(_sum_areas(found, areas), found, classes),
    }


def _sum_areas(matrices: Sequence[NDArray[np.int64]], areas: Sequence[float | None]) -> NDArray[np.float64] | None:
    """Add up confusion matrices in mm²; None if the area of a pixel is unknown."""
    parts = [matrix * area / 1e6 for matrix, area in zip(matrices, areas, strict=True) if area is not None]
    return np.sum(parts, axis=0) if parts and len(parts) == len(matrices) else None


def _lay_out_confusion(
    mm2: NDArray[np.float64] | None, matrices: Sequence[NDArray[np.int64]], classes: ClassSet
) -> ClassConfusion:
    """Leave out rows that hold nothing: classes that no label map names, and cancer without a pattern."""
    size = len(classes.names)
    any_cancer, benign = find_row("any_cancer", size), find_row("no_patterns", size)
    pixels = np.sum(matrices, axis=0) if matrices else np.zeros((size + 3, size))
    rows = [0, *(row for row in (*range(1, size), any_cancer) if pixels[row].any())]
    shown = None
    if mm2 is not None:
        mm2 = mm2.copy()
        mm2[0] += mm2[benign]
        shown = mm2[rows].tolist()
    names = {**dict(enumerate(classes.names)), any_cancer: UNNAMED}
    return ClassConfusion(labels=[names[row] for row in rows], predicted=list(classes.names), mm2=shown)


@dataclass(frozen=True)
class RuleGradedSlide:
    """A slide and its grade by the rule."""

    record: SlideRecord
    grade: RuleGrade


def summarize_rule_grades(slides: Sequence[RuleGradedSlide], seed: int) -> RuleGradeSplitFigures:
    """Compare the grades by the rule with the given ones; slides without a given grade are left out."""
    slides = [slide for slide in slides if slide.record.isup_grade is not None]
    by_provider = split_slides(slides, lambda slide: slide.record.provider)
    parts = {name: RuleGradeFigures(**_compare_grades(part, seed)) for name, part in by_provider.items()}
    return RuleGradeSplitFigures(**_compare_grades(slides, seed), by_provider=parts)


def _compare_grades(slides: Sequence[RuleGradedSlide], seed: int) -> dict[str, Any]:
    """Compute the fields of `RuleGradeFigures`."""
    rows, groups = [], []
    for slide in slides:
        given, found, band = slide.record.isup_grade, slide.grade.isup, slide.grade.isup_interval
        if given is not None and found is not None and band is not None:
            one_hot = np.zeros((GRADES, GRADES))
            one_hot[given, found] = 1
            rows.append([*one_hot.ravel(), float(band[0] <= given <= band[1])])
            groups.append(slide.record.group)
    sums = np.array(rows).reshape(-1, GRADES**2 + 1)
    drawn = resample_sums(sums, groups, _measure_agreement, seed=seed)
    values = _measure_agreement(sums.sum(axis=0)) if rows else np.full(3, np.nan)
    found_figures: dict[str, Any] = {}
    for column, name in enumerate(("qwk", "accuracy", "within_band")):
        value = values[column]
        ends = drop_undefined(compute_percentile_interval(drawn[:, column])) if not np.isnan(value) else None
        found_figures |= {name: None if np.isnan(value) else float(value), f"{name}_interval": ends}
    return found_figures | {
        "slides": len(rows),
        "without_score": len(slides) - len(rows),
        "confusion": sums[:, :-1].sum(axis=0).reshape(GRADES, GRADES).astype(int).tolist(),
    }


def _measure_agreement(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute kappa, accuracy and the share within the band, (…, 3), from sums of the rows of slides."""
    counts = sums[..., :-1].reshape(*sums.shape[:-1], GRADES, GRADES)
    total = counts.sum(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        within = sums[..., -1] / total
    return np.concatenate([compute_agreement(counts), within[..., None]], axis=-1)
