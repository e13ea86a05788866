"""The probability above which a pixel is called cancer: how it is chosen and kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from panda.errors import ConfigError
from panda.tasks.bootstrap import percentile_interval, resampled_sums
from panda.tasks.metrics import BINS, curve, pooled

Criterion = Literal["dice_pooled", "dice_mean_slide", "f1", "youden", "cost"]
DEFAULT_THRESHOLD = 0.5
"""What is taken where there is nothing to choose by."""

Histograms = Mapping[str, ArrayLike | Tensor]


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and where it comes from.

    Attributes:
        value: A pixel is cancer where its probability is at least this.
        criterion: What was best there, a `Criterion`; "default" where nothing was searched, "given" where it was
            set beforehand, "all_providers" where a provider takes the threshold of all.
        score: The criterion's value there; nan where nothing was searched.
        chosen_on: The slides it was chosen on, in words; for "default", why there was no search.
        date: ISO 8601, UTC, of the choice.
        cost_ratio: Of the criterion "cost"; else None.
        interval: 95 % bootstrap interval of the value over groups of slides, or None; and
        interval_note: Why there is none, else empty.
        by_provider: Each provider's own threshold, where they were asked for.
    """

    value: float
    criterion: str
    score: float
    chosen_on: str
    date: str
    cost_ratio: float | None = None
    interval: tuple[float, float] | None = None
    interval_note: str = ""
    by_provider: Mapping[str, ThresholdChoice] = field(default_factory=dict)

    @classmethod
    def given(cls, value: float) -> Self:
        """A threshold that the user set beforehand: nothing was searched."""
        return cls(value, "given", math.nan, "no slides: it was given beforehand", _now(), interval_note=_UNSEARCHED)

    def of(self, provider: str | None) -> float:
        """The threshold for a provider's slides: its own where it has one, else that of all."""
        own = self.by_provider.get(provider) if provider is not None else None
        return self.value if own is None else own.value

    def plain(self) -> dict[str, Any]:
        """Give strings, numbers, lists, mappings and None only: fit for a checkpoint or JSON."""
        own = {name: choice.plain() for name, choice in self.by_provider.items()}
        for plain in own.values():
            del plain["by_provider"]
        return {
            "value": self.value,
            "criterion": self.criterion,
            "score": None if math.isnan(self.score) else self.score,
            "chosen_on": self.chosen_on,
            "date": self.date,
            "cost_ratio": self.cost_ratio,
            "interval": None if self.interval is None else list(self.interval),
            "interval_note": self.interval_note,
            "by_provider": own,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild what `plain` gave, in this version or in one that kept no more than where it was chosen.

        Args:
            plain: Its keys and values.

        Returns:
            The choice.

        Raises:
            KeyError: A key is missing.
        """
        score, interval = plain["score"], plain.get("interval")
        return cls(
            value=float(plain["value"]),
            criterion=str(plain["criterion"]),
            score=math.nan if score is None else float(score),
            chosen_on=str(plain["chosen_on"]),
            date=str(plain["date"]),
            cost_ratio=plain.get("cost_ratio"),
            interval=None if interval is None else (float(interval[0]), float(interval[1])),
            interval_note=str(plain.get("interval_note", "")),
            by_provider={name: cls.from_plain(own) for name, own in plain.get("by_provider", {}).items()},
        )


_UNSEARCHED = "nothing was searched"


def search_threshold(
    slide_histograms: Histograms,
    criterion: Criterion = "dice_pooled",
    chosen_on: str = "validation",
    *,
    cost_ratio: float | None = None,
    groups: Mapping[str, str] | None = None,
    providers: Mapping[str, str] | None = None,
    seed: int = 0,
) -> ThresholdChoice:
    """Choose the best threshold among 0, 0.001, … 0.999.

    Of thresholds that are equally good (to 1e-12) the middle one of the longest unbroken run is taken (of runs as long
    the lowest): it is farthest from where the score falls.

    Args:
        slide_histograms: Slide to (2, BINS), of validation slides only.
        criterion: What is best, see `criterion_scores`.
        chosen_on: The slides, in words.
        cost_ratio: For "cost" only: how many false-positive pixels one missed cancer pixel is worth, above 0.
        groups: Slide to group: gives the choice an interval, by choosing anew on groups drawn anew.
        providers: Slide to provider: each provider gets a threshold of its own too, from its slides alone.
        seed: Of the drawing.

    Returns:
        The choice; where the criterion is undefined (no slide has a cancer pixel), 0.5 by the criterion
        "default", with the reason.

    Raises:
        ConfigError: Another criterion, or a cost ratio without its criterion or the reverse.
    """
    check_criterion(criterion, cost_ratio)
    choice = _choose(slide_histograms, criterion, chosen_on, cost_ratio=cost_ratio, groups=groups, seed=seed)
    if providers is None or choice.criterion == "default":
        return choice
    own = {}
    for provider in sorted({providers[slide] for slide in slide_histograms}):
        hists = {slide: hist for slide, hist in slide_histograms.items() if providers[slide] == provider}
        where = f"{provider}, {len(hists)} of {chosen_on}"
        found = _choose(hists, criterion, where, cost_ratio=cost_ratio, groups=groups, seed=seed)
        if found.criterion == "default":
            reason = f"{found.chosen_on}; the threshold of all providers is taken"
            found = replace(found, value=choice.value, criterion="all_providers", chosen_on=reason)
        own[provider] = found
    return replace(choice, by_provider=own)


def check_criterion(criterion: str, cost_ratio: float | None) -> None:
    """Refuse a criterion that there is not, or one whose cost ratio is missing or idle.

    Raises:
        ConfigError: Naming the key, the value and the remedy.
    """
    if criterion not in get_args(Criterion):
        raise ConfigError(f"criterion={criterion}: must be one of {', '.join(get_args(Criterion))}")
    if criterion != "cost":
        if cost_ratio is not None:
            raise ConfigError(f"cost_ratio={cost_ratio}: no part in criterion={criterion}; leave out")
    elif cost_ratio is None:
        raise ConfigError(
            "criterion=cost needs cost_ratio=…: how many false-positive pixels one missed cancer pixel is worth"
        )
    elif not 0 < cost_ratio < math.inf:
        raise ConfigError(f"cost_ratio={cost_ratio} must be a number above 0")


def criterion_scores(
    slide_histograms: Histograms, criterion: Criterion, cost_ratio: float | None = None
) -> NDArray[np.float64]:
    """Give a criterion at every threshold.

    With TP, FP, FN and TN counted over the pixels of all slides together:

    - "dice_pooled" is 2 TP / (2 TP + FP + FN): large tumours weigh most, false positives on benign slides count.
    - "f1", the harmonic mean of precision and recall over pixels, is the same number by definition.
    - "dice_mean_slide" is the mean Dice over slides with cancer, each weighing the same; slides without have no
      Dice and no say.
    - "youden" is recall less false-positive rate, TP / (TP + FN) - FP / (FP + TN).
    - "cost" is (r FN + FP) / (r (TP + FN) + FP + TN): 0 where all is right, 1 where all is wrong; the least is
      best. r is the cost ratio.

    Args:
        slide_histograms: Slide to (2, BINS).
        criterion: Which.
        cost_ratio: R, for "cost".

    Returns:
        (BINS,); nan where it is undefined.
    """
    found = _goodness(_parts(slide_histograms, criterion).sum(axis=0), criterion, cost_ratio)
    return -found if criterion == "cost" else found


def _parts(slide_histograms: Histograms, criterion: Criterion) -> NDArray[np.float64]:
    """What of each slide adds up to the criterion: (slides, 2, BINS)."""
    parts = np.zeros((len(slide_histograms), 2, BINS))
    for row, hist in zip(parts, slide_histograms.values(), strict=True):
        at = curve(*pooled({"": hist}))
        if criterion != "dice_mean_slide":
            row[0], row[1] = at.tp, at.fp
        elif at.tp[0]:
            row[0], row[1] = at.dice, 1
    return parts


def _goodness(sums: NDArray[np.float64], criterion: Criterion, cost_ratio: float | None) -> NDArray[np.float64]:
    """The criterion (…, BINS) of sums (…, 2, BINS) of `_parts`, turned so that the greatest is best."""
    first, second = sums[..., 0, :], sums[..., 1, :]
    if criterion == "dice_mean_slide":
        return _over(first, second)
    cancer, other = first[..., :1], second[..., :1]  # at threshold 0 every pixel is positive
    if criterion == "youden":
        return _over(first, cancer) - _over(second, other)
    if criterion == "cost":
        assert cost_ratio is not None
        wrong = cost_ratio * (cancer - first) + second
        return np.asarray(np.where(cancer > 0, -_over(wrong, cost_ratio * cancer + other), np.nan))
    dice = _over(2 * first, first + second + cancer)
    return np.asarray(np.where(cancer > 0, dice, np.nan))


def _over(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    below = np.broadcast_to(below, above.shape)
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))


def _choose(
    hists: Histograms,
    criterion: Criterion,
    chosen_on: str,
    *,
    cost_ratio: float | None,
    groups: Mapping[str, str] | None,
    seed: int,
) -> ThresholdChoice:
    parts = _parts(hists, criterion)
    goodness = _goodness(parts.sum(axis=0), criterion, cost_ratio)
    k = _middle_of_best(goodness)
    if k is None:
        lacking = "cancer pixel" if not pooled(hists)[0].any() else "pixel without cancer"
        why = f"not searched: no {lacking} among the {len(hists)} slides of {chosen_on}"
        return ThresholdChoice(DEFAULT_THRESHOLD, "default", math.nan, why, _now(), interval_note=_UNSEARCHED)
    score = float(-goodness[k] if criterion == "cost" else goodness[k])
    choice = ThresholdChoice(k / BINS, criterion, score, chosen_on, _now(), cost_ratio)
    if groups is None:
        return replace(choice, interval_note="the groups of the slides were not given")
    of_slides = [groups[slide] for slide in hists]
    if len(set(of_slides)) < 2:
        return replace(choice, interval_note="all slides are of one group: an interval needs two")

    def best(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        found = (_middle_of_best(row) for row in _goodness(sums, criterion, cost_ratio))
        return np.array([math.nan if k is None else k / BINS for k in found])

    return replace(choice, interval=percentile_interval(resampled_sums(parts, of_slides, best, seed=seed)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _middle_of_best(scores: NDArray[np.float64]) -> int | None:
    """The middle of the longest run of greatest scores; None where all are nan."""
    if np.isnan(scores).all():
        return None
    # Sums of fractions that are equal differ by rounding; what differs in truth does by more.
    best = np.flatnonzero(scores >= np.nanmax(scores) - 1e-12)
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[(len(longest) - 1) // 2])
