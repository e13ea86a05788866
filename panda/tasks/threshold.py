"""The probability from which a pixel counts as cancer: the criteria, the search, and the result as it is stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from panda.errors import ConfigError
from panda.stored import Plain, ShareEnds, Timestamp
from panda.tasks.bins import BINS
from panda.tasks.bootstrap import compute_percentile_interval, explain_no_interval, resample_sums
from panda.tasks.figures import make_timestamp
from panda.tasks.metrics import compute_curve, divide, pool_histograms

DEFAULT_THRESHOLD = 0.5
"""Threshold if there is nothing to choose by."""
_BAND = 0.1
"""Half the width of the band around a threshold that has no interval."""

Histograms = Mapping[str, ArrayLike]
Array = NDArray[np.float64]


def _count_positives(hist: ArrayLike) -> Array:
    found = compute_curve(hist)
    return np.stack([found.tp, found.fp]).astype(np.float64)


def _measure_dice(hist: ArrayLike) -> Array:
    found = compute_curve(hist)
    if not found.tp[0]:
        return np.zeros((2, BINS))
    return np.stack([found.dice, np.ones(BINS)])


def _score_pooled_dice(tp: Array, fp: Array, _: float) -> Array:
    cancer = tp[..., :1]  # at threshold 0 every pixel is positive
    return np.asarray(np.where(cancer > 0, divide(2 * tp, tp + fp + cancer), np.nan))


def _score_youden(tp: Array, fp: Array, _: float) -> Array:
    return divide(tp, tp[..., :1]) - divide(fp, fp[..., :1])


def _score_cost(tp: Array, fp: Array, ratio: float) -> Array:
    cancer, other = tp[..., :1], fp[..., :1]
    share = divide(ratio * (cancer - tp) + fp, ratio * cancer + other)
    return np.asarray(np.where(cancer > 0, share, np.nan))


@dataclass(frozen=True)
class Criterion:
    """A rule that says which threshold is best.

    Attributes:
        label: Name in reports and charts.
        description: The formula or rule, for the documentation.
        score: Takes both rows of the summed terms, each (…, BINS), and the cost ratio. Returns (…, BINS), NaN if
            undefined.
        terms: Takes the (2, BINS) histogram of a slide. Returns (2, BINS) terms that add up over slides; by default
            true and false positives at each threshold.
        takes_cost_ratio: Whether `cost_ratio` must be given.
        lowest_is_best: Whether the lowest score is best.
        equal_to: Name of a criterion with the same scores, which is charted instead.
    """

    label: str
    description: str
    score: Callable[[Array, Array, float], Array]
    terms: Callable[[ArrayLike], Array] = _count_positives
    takes_cost_ratio: bool = False
    lowest_is_best: bool = False
    equal_to: str | None = None

    def rank(self, sums: Array, cost_ratio: float | None) -> Array:
        """Score summed terms (…, 2, BINS) so that the highest of (…, BINS) is best."""
        scores = self.score(sums[..., 0, :], sums[..., 1, :], cost_ratio or 1.0)
        return -scores if self.lowest_is_best else scores


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "dice_pooled": Criterion(
            "pooled Dice",
            "2 TP / (2 TP + FP + FN) over the pixels of all slides together. Large tumours weigh most, and false "
            "positives on benign slides count.",
            _score_pooled_dice,
        ),
        "dice_mean_slide": Criterion(
            "mean Dice per slide",
            "Mean Dice of the slides with cancer, each with the same weight. Slides without cancer do not count.",
            lambda dice, slides, _: divide(dice, slides),
            terms=_measure_dice,
        ),
        "f1": Criterion(
            "F1 over pixels (pooled Dice)",
            "Harmonic mean of precision and recall over pixels. It equals `dice_pooled`.",
            _score_pooled_dice,
            equal_to="dice_pooled",
        ),
        "youden": Criterion(
            "Youden's J",
            "Recall minus false-positive rate over pixels: TP / (TP + FN) - FP / (FP + TN).",
            _score_youden,
        ),
        "cost": Criterion(
            "cost",
            "(r FN + FP) / (r (TP + FN) + FP + TN) over pixels, with r = `cost_ratio`. It is 0 if all pixels are right "
            "and 1 if all are wrong; the lowest is best.",
            _score_cost,
            takes_cost_ratio=True,
            lowest_is_best=True,
        ),
    }
)
"""All threshold criteria. Configuration checks, reports and charts read them from here."""


_UNSEARCHED = ("default", "given", "all_providers")


def _check_name(criterion: str) -> str:
    if criterion not in (names := (*CRITERIA, *_UNSEARCHED)):
        raise PydanticCustomError("criterion", "must be one of {names}", {"names": ", ".join(names)})
    return criterion


class Threshold(Plain, frozen=True):
    """A threshold and its origin."""

    value: float = Field(ge=0, lt=1, description="A pixel is cancer if its probability is at least this; 0 to below 1.")
    criterion: Annotated[str, AfterValidator(_check_name)] = Field(
        description=f"What was best there: {', '.join(CRITERIA)}. `default` or `given` if nothing was searched, "
        "`all_providers` if a provider takes the threshold of all."
    )
    score: float | None = Field(description="Value of the criterion. Null if nothing was searched.")
    chosen_on: str = Field(description="The slides it was chosen on, or why there was no search.")
    date: Timestamp = Field(description="Date of the choice, ISO 8601, UTC.")
    cost_ratio: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="False-positive pixels that one missed cancer pixel is worth. Null if it was not used.",
    )
    interval: ShareEnds | None = Field(
        default=None, description="Bootstrap 95 % interval of the value. Null for the reason in `interval_note`."
    )
    interval_note: str = Field(default="", description="Why there is no interval, otherwise empty.")

    @classmethod
    def from_default(cls, reason: str) -> Self:
        """Return the default threshold, with the reason why nothing was searched as `chosen_on`."""
        return cls._make_unsearched(DEFAULT_THRESHOLD, "default", reason)

    @classmethod
    def from_user(cls, value: float) -> Self:
        """Return a threshold that the user set."""
        return cls._make_unsearched(value, "given", "no slides: it was given beforehand")

    @classmethod
    def _make_unsearched(cls, value: float, criterion: str, reason: str) -> Self:
        note = "nothing was searched"
        return cls(
            value=value, criterion=criterion, score=None, chosen_on=reason, date=make_timestamp(), interval_note=note
        )


class ThresholdChoice(Threshold, frozen=True):
    """The threshold that was chosen on all validation slides; checkpoint and summary have the same."""

    by_provider: dict[str, Threshold] = Field(
        default_factory=dict, description="Provider to its own threshold; empty without `threshold_per_provider=true`."
    )

    def value_for(self, provider: str | None) -> float:
        """Return the threshold for slides of a provider: its own if it has one, otherwise the common one."""
        return self.by_provider.get(provider or "", self).value

    def find_band(self, provider: str | None) -> tuple[float, float]:
        """Return the thresholds between which the choice for a provider could be, low and high, in steps of 0.001.

        They are the ends of the interval, or 0.1 below and above the threshold if it has none.
        """
        own = self.by_provider.get(provider or "", self)
        low, high = own.interval or (own.value - _BAND, own.value + _BAND)
        low, high = max(min(low, own.value), 0.0), min(max(high, own.value), 1 - 1 / BINS)
        return round(low * BINS) / BINS, round(high * BINS) / BINS


def find_criterion(name: str) -> Criterion:
    """Return a criterion by name, or raise a `ConfigError`."""
    if name not in CRITERIA:
        raise ConfigError(f"criterion={name} is unknown: use one of {', '.join(CRITERIA)}")
    return CRITERIA[name]


def check_criterion(name: str, cost_ratio: float | None) -> None:
    """Raise a `ConfigError` if a criterion is unknown, or its cost ratio is missing, out of range or not used."""
    if not find_criterion(name).takes_cost_ratio:
        if cost_ratio is not None:
            raise ConfigError(f"cost_ratio is not used with criterion={name}: remove it")
    elif cost_ratio is None:
        raise ConfigError(
            f"criterion={name} needs cost_ratio=…: how many false-positive pixels one missed cancer pixel is worth"
        )
    elif not 0 < cost_ratio < math.inf:
        raise ConfigError(f"cost_ratio={cost_ratio} must be a number above 0")


def search_threshold(
    slide_histograms: Histograms,
    criterion: str = "dice_pooled",
    chosen_on: str = "validation",
    *,
    cost_ratio: float | None = None,
    groups: Mapping[str, str] | None = None,
    providers: Mapping[str, str] | None = None,
    seed: int = 0,
) -> ThresholdChoice:
    """Choose the best threshold among 0, 0.001, … 0.999.

    If several thresholds are equally good (to 1e-12), the middle of their longest unbroken run is chosen, because it
    is farthest from any fall of the score. If runs have equal length, the lowest counts.

    Args:
        slide_histograms: Slide to (2, BINS), of validation slides only.
        criterion: A name of `CRITERIA`.
        chosen_on: The slides, in words.
        cost_ratio: How many false-positive pixels one missed cancer pixel is worth, if the criterion takes it.
        groups: Slide to group. Gives the choice an interval, by searches on groups that are drawn with replacement.
        providers: Slide to provider. Gives each provider a threshold from its own slides.
        seed: Seed of the drawing.

    Returns:
        The choice. If the criterion is undefined (no slide has a cancer pixel), 0.5 with the criterion "default" and
        the reason.
    """
    check_criterion(criterion, cost_ratio)

    def choose(hists: Histograms, where: str) -> Threshold:
        return _choose(hists, criterion, where, cost_ratio=cost_ratio, groups=groups, seed=seed)

    common = choose(slide_histograms, chosen_on)
    own = {}
    if providers is not None and common.criterion != "default":
        for provider in sorted({providers[slide] for slide in slide_histograms}):
            hists = {slide: hist for slide, hist in slide_histograms.items() if providers[slide] == provider}
            found = choose(hists, f"{provider}, {len(hists)} of {chosen_on}")
            if found.criterion == "default":
                reason = f"{found.chosen_on}; the threshold of all providers is taken"
                changes = {"value": common.value, "criterion": "all_providers", "chosen_on": reason}
                found = found.model_copy(update=changes)
            own[provider] = found
    return ThresholdChoice(**common.model_dump(), by_provider=own)


def score_by_criterion(slide_histograms: Histograms, criterion: str, cost_ratio: float | None = None) -> Array:
    """Score every threshold by a criterion of `CRITERIA`, (BINS,); NaN if undefined."""
    rule = find_criterion(criterion)
    first, second = _stack_terms(slide_histograms, rule).sum(axis=0)
    return rule.score(first, second, cost_ratio or 1.0)


def _stack_terms(slide_histograms: Histograms, rule: Criterion) -> Array:
    """Return the terms of each slide, (slides, 2, BINS)."""
    return np.array([rule.terms(hist) for hist in slide_histograms.values()]).reshape(-1, 2, BINS)


def _choose(
    hists: Histograms,
    criterion: str,
    chosen_on: str,
    *,
    cost_ratio: float | None,
    groups: Mapping[str, str] | None,
    seed: int,
) -> Threshold:
    rule = CRITERIA[criterion]
    terms = _stack_terms(hists, rule)
    ranked = rule.rank(terms.sum(axis=0), cost_ratio)
    k = _find_best_bin(ranked)
    if k is None:
        lacking = "cancer pixel" if not pool_histograms(hists)[0].any() else "pixel without cancer"
        return Threshold.from_default(f"not searched: no {lacking} among the {len(hists)} slides of {chosen_on}")

    def search(sums: Array) -> Array:
        bins = map(_find_best_bin, rule.rank(sums, cost_ratio))
        return np.array([math.nan if found is None else found / BINS for found in bins])

    slide_groups = [] if groups is None else [groups[slide] for slide in hists]
    interval, note = None, ""
    if groups is None:
        note = "the groups of the slides were not given"
    elif not (note := explain_no_interval(len(set(slide_groups)))):
        interval = compute_percentile_interval(resample_sums(terms, slide_groups, search, seed=seed))
    return Threshold(
        value=k / BINS,
        criterion=criterion,
        score=float(-ranked[k] if rule.lowest_is_best else ranked[k]),
        chosen_on=chosen_on,
        date=make_timestamp(),
        cost_ratio=cost_ratio,
        interval=interval,
        interval_note=note,
    )


def _find_best_bin(ranked: Array) -> int | None:
    """Return the middle of the longest run of highest scores; None if all scores are NaN."""
    if np.isnan(ranked).all():
        return None
    # Equal sums of fractions differ by rounding; different ones differ by more.
    best = np.flatnonzero(ranked >= np.nanmax(ranked) - 1e-12)
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[(len(longest) - 1) // 2])
