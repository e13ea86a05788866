"""Figures of slides whose target is a column of the table: classes, numbers or survival, of all and by provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from panda.data.targets import TargetSpec
from panda.inference.confidence_metrics import ConfidenceFigures, compute_confidence_scores
from panda.inference.grading_metrics import GradedSlide
from panda.stored import Kappa, NumberEnds, Share
from panda.tasks.bootstrap import (
    compute_percentile_interval,
    count_groups,
    drop_undefined,
    explain_no_interval,
    resample_counts,
)
from panda.tasks.figures import INTERVAL, AmountInterval, Figures, Interval, KappaInterval, split_slides
from panda.tasks.target_metrics import (
    average_aurocs,
    compute_concordance,
    list_class_statistics,
    list_number_statistics,
)

NumberInterval = Annotated[NumberEnds | None, Field(description=INTERVAL)]

_CONSTANT = "Null if one of both is the same on all slides."


class CategoryFigures(ConfidenceFigures, frozen=True):
    """Scores of slides with the classes of a column, each with its most probable class."""

    slides: NonNegativeInt = Field(description="Slides that were graded.")
    auroc_macro: Share | None = Field(
        description="AUROC of the probability of a class against all others, mean over the classes that occur. Null if "
        "only one occurs."
    )
    auroc_macro_interval: Interval
    balanced_accuracy: Share | None = Field(
        description="Share of the slides of a class with the right class, mean over the classes that occur."
    )
    balanced_accuracy_interval: Interval
    accuracy: Share | None = Field(description="Share of slides with the right class. Null if no slide was graded.")
    accuracy_interval: Interval
    kappa: Kappa | None = Field(description="Cohen's kappa. Null if truth and prediction are of one class.")
    kappa_interval: KappaInterval
    qwk: Kappa | None = Field(
        description="Cohen's kappa with quadratic weights. Null if classes have no order, or there is only one."
    )
    qwk_interval: KappaInterval
    confusion: list[list[NonNegativeInt]] = Field(
        description="Slides: one row for each true class, one column for each predicted one."
    )


class CategorySplitFigures(CategoryFigures, frozen=True):
    """Scores of all slides of a split, and of parts of them."""

    by_provider: dict[str, CategoryFigures] = Field(description="Provider to the scores of its slides.")


class RegressionFigures(Figures, frozen=True):
    """Scores of predicted numbers."""

    slides: NonNegativeInt = Field(description="Slides with a prediction.")
    r2: float | None = Field(
        description="R²: 1 less the squared error over that of the mean of the slides; below 0 if the mean is better. "
        "Null if all given numbers are equal."
    )
    r2_interval: NumberInterval
    mae: NonNegativeFloat | None = Field(description="Mean absolute error, in the unit of the column.")
    mae_interval: AmountInterval
    median_mae: NonNegativeFloat | None = Field(
        description="`mae` if the median of the given numbers were predicted for each slide. Null without slides."
    )
    pearson: Kappa | None = Field(description=f"Pearson's correlation of given and predicted. {_CONSTANT}")
    pearson_interval: KappaInterval
    spearman: Kappa | None = Field(description=f"Spearman's correlation of given and predicted. {_CONSTANT}")
    spearman_interval: KappaInterval


class RegressionSplitFigures(RegressionFigures, frozen=True):
    """Scores of the numbers of all slides of a split, and of parts of them."""

    by_provider: dict[str, RegressionFigures] = Field(description="Provider to the scores of its slides.")


class SurvivalFigures(Figures, frozen=True):
    """Scores of predicted risks."""

    slides: NonNegativeInt = Field(description="Slides with a prediction.")
    events: NonNegativeInt = Field(description="Slides with an event; the others are censored.")
    concordance: Share | None = Field(
        description="Harrell's concordance index: how often, of two slides, the one with the earlier event has the "
        "higher risk. 0.5 is chance. Null without such pairs."
    )
    concordance_interval: Interval


class SurvivalSplitFigures(SurvivalFigures, frozen=True):
    """Scores of the risks of all slides of a split, and of parts of them."""

    by_provider: dict[str, SurvivalFigures] = Field(description="Provider to the scores of its slides.")


TargetSplitFigures = CategorySplitFigures | RegressionSplitFigures | SurvivalSplitFigures
_MODELS: Mapping[str, tuple[type[Any], type[Any]]] = {
    "classes": (CategoryFigures, CategorySplitFigures),
    "ordinal": (CategoryFigures, CategorySplitFigures),
    "regression": (RegressionFigures, RegressionSplitFigures),
    "survival": (SurvivalFigures, SurvivalSplitFigures),
}


def summarize_target(graded: Sequence[GradedSlide], target: TargetSpec, seed: int) -> TargetSplitFigures:
    """Compute figures of all slides and of each provider, with intervals over groups; an undefined figure is None."""
    part, split = _MODELS[target.kind]
    by_provider = split_slides(graded, lambda slide: slide.record.provider)
    parts = {name: part(**_compute_figures(slides, target, seed)) for name, slides in by_provider.items()}
    whole: TargetSplitFigures = split(**_compute_figures(graded, target, seed), by_provider=parts)
    return whole


def _compute_figures(graded: Sequence[GradedSlide], target: TargetSpec, seed: int) -> dict[str, Any]:
    """Compute the fields of the figures of a kind."""
    found: dict[str, Any] = {"slides": len(graded)}
    groups = [slide.record.group for slide in graded]
    values = np.array([slide.values for slide in graded], dtype=np.float64).reshape(-1, len(target.columns))
    predicted = np.array([slide.grade.predicted for slide in graded], dtype=np.float64)
    deciding: dict[str, list[NDArray[np.bool_]]] = {}  # slides that a figure needs besides others
    if target.has_classes:
        prob = np.array([slide.grade.probabilities for slide in graded]).reshape(-1, target.outputs)
        truth, classes = values.reshape(-1).astype(np.int64), target.outputs
        confusion = np.bincount(truth * classes + predicted.astype(np.int64), minlength=classes**2)
        statistics = list_class_statistics(truth, predicted.astype(np.int64), classes)
        statistics["auroc_macro"] = partial(average_aurocs, truth, prob)
        deciding["auroc_macro"] = [truth == number for number in np.unique(truth)]
        found |= {"confusion": confusion.reshape(classes, classes).tolist(), "qwk": None, "qwk_interval": None}
        found |= compute_confidence_scores([slide.grade for slide in graded], truth.tolist(), groups, seed)
        if target.kind == "classes":
            del statistics["qwk"]
    elif target.kind == "regression":
        given = values.reshape(-1)
        statistics = list_number_statistics(given, predicted)
        found["median_mae"] = float(np.abs(given - np.median(given)).mean()) if graded else None
    else:
        time, event = values.reshape(-1, 2).T
        statistics = {"concordance": partial(compute_concordance, time, event, predicted)}
        found["events"] = int(event.sum())
        deciding["concordance"] = [event > 0]
    for name, statistic in statistics.items():
        value = float(statistic(np.ones(len(graded)))) if graded else np.nan
        parts = deciding.get(name, [np.ones(len(graded), bool)])
        is_drawn = not np.isnan(value) and not explain_no_interval(count_groups(groups, *parts))
        drawn = resample_counts(groups, statistic, seed=seed) if is_drawn else np.empty(0)
        found[name] = None if np.isnan(value) else value
        found[f"{name}_interval"] = drop_undefined(compute_percentile_interval(drawn))
    return found
