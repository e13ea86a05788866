"""The limits of the rule from pattern areas to a Gleason score, chosen on validation slides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt

from panda.settings import Settings
from panda.stored import Kappa, Timestamp
from panda.tasks.figures import make_timestamp
from panda.tasks.grade_metrics import compute_agreement
from panda.wsi.gleason import GRADES, GleasonRule, grade_areas

FEWEST_GRADED = 20
"""Number of graded validation slides from which limits are searched: with fewer, chance decides."""
DEFAULT_LIMITS = {"min_area_mm2": 0.02, "min_percent": 2.0}
"""Limits without a search. 0.02 mm² is a disc of 160 µm, a few glands: single pixels of a map are no pattern."""
GRID = {
    "min_area_mm2": (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "min_percent": (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0),
}
"""Limits that are tried, from low to high."""
_GIVEN = "no slides: the limits were given beforehand"
_NOT_SEARCHED = "not searched: "
_AUTO = "auto is the best on validation"


class GleasonRuleSettings(Settings):
    """How the rule from pattern areas to a Gleason score is chosen, see `panda.wsi.gleason.GleasonRule`.

    Args:
        secondary: Which other pattern is secondary: the `highest` above the primary one (biopsies), or the `largest`.
        min_area_mm2: Least area of cancer, and of a pattern beside the primary one, mm²; `auto` searches it.
        min_percent: Least share of a pattern beside the primary one, % of the tumour; `auto` searches it.
        min_lower_percent: Least share of a pattern below the primary one, % of the tumour.
    """

    node: ClassVar[str] = "task.gleason_rule"

    secondary: Literal["highest", "largest"] = "highest"
    min_area_mm2: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(default="auto", description=_AUTO)
    min_percent: Annotated[float, Field(ge=0, le=100)] | Literal["auto"] = Field(default="auto", description=_AUTO)
    min_lower_percent: float = Field(default=5.0, ge=0, le=100)

    @property
    def fixed(self) -> dict[str, Any]:
        """The fields that are not searched."""
        return {key: value for key, value in self if value != "auto"}


class GleasonRuleChoice(GleasonRule, frozen=True):
    """The rule that was chosen, and its origin; checkpoint and summary have the same."""

    score: Kappa | None = Field(
        description="Quadratic kappa of rule and given grades there. Null if nothing was searched."
    )
    tied: NonNegativeInt = Field(
        description="Pairs of limits with this kappa. The smallest area, then the smallest share, was taken."
    )
    chosen_on: str = Field(description="The slides it was chosen on, or why there was no search.")
    date: Timestamp = Field(description="Date of the choice, ISO 8601, UTC.")

    @property
    def is_default(self) -> bool:
        """Whether limits that were to be searched have their default."""
        return self.chosen_on.startswith(_NOT_SEARCHED)

    @classmethod
    def from_settings(cls, settings: GleasonRuleSettings, reason: str = "") -> GleasonRuleChoice:
        """Return the rule without a search: the given limits, and default ones, which need a reason."""
        chosen_on = f"{_NOT_SEARCHED}{reason}" if set(GRID) - set(settings.fixed) else _GIVEN
        values = DEFAULT_LIMITS | settings.fixed
        return cls(**values, score=None, tied=0, chosen_on=chosen_on, date=make_timestamp())


def search_gleason_rule(
    areas: Sequence[Mapping[int, float]], grades: Sequence[int], settings: GleasonRuleSettings, where: str
) -> GleasonRuleChoice:
    """Choose the limits with the highest quadratic kappa of rule and given grades.

    Kappa has few values on few slides, so many pairs of limits are often equally good (to 1e-12). The one with the
    smallest area is taken, and of these the one with the smallest share, because it is closest to the rule without
    limits.

    Args:
        areas: Area of each Gleason pattern on each slide, mm².
        grades: ISUP grade given to each slide, 0 to 5.
        settings: The limits that are given, and those to be searched.
        where: The slides, in words: validation slides only.

    Returns:
        The choice. Limits to be searched have `DEFAULT_LIMITS` if there are fewer than `FEWEST_GRADED` slides, or
        kappa is undefined.
    """
    if not set(GRID) - set(settings.fixed):
        return GleasonRuleChoice.from_settings(settings)
    if len(areas) < FEWEST_GRADED:
        reason = f"{len(areas)} of {where} have a grade and areas, fewer than {FEWEST_GRADED}"
        return GleasonRuleChoice.from_settings(settings, reason)
    kept = settings.fixed
    tried = []
    for values in itertools.product(*([kept[key]] if key in kept else grid for key, grid in GRID.items())):
        rule = GleasonRule(**kept | dict(zip(GRID, values, strict=True)))
        tried.append((measure_kappa(grades, [grade_areas(slide, rule).isup for slide in areas]), rule))
    best = max((kappa for kappa, _ in tried if not math.isnan(kappa)), default=None)
    if best is None:
        return GleasonRuleChoice.from_settings(settings, f"{where} have one grade, given and found")
    tied = [rule for kappa, rule in tried if kappa >= best - 1e-12]
    return GleasonRuleChoice(**dict(tied[0]), score=best, tied=len(tied), chosen_on=where, date=make_timestamp())


def measure_kappa(given: Sequence[int], found: Sequence[int]) -> float:
    """Compute the quadratic kappa of two grades of each slide; NaN if all are the same one."""
    counts = np.zeros((GRADES, GRADES))
    np.add.at(counts, (np.asarray(given, int), np.asarray(found, int)), 1)
    return float(compute_agreement(counts)[0])
