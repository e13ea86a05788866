"""Gleason scores and ISUP grade groups: from the areas of the patterns, from text, and their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, NonNegativeFloat

from panda.stored import Percent, Plain

GRADES = 6
"""Number of ISUP grades, 0 (no cancer) included."""
NEGATIVE_SCORES = ("negative", "0+0")
"""Gleason scores of a slide without cancer, as Radboud and Karolinska write them."""
GRADED_PATTERNS = (3, 4, 5)
"""Patterns that today's scores are made of (Epstein et al., Am J Surg Pathol 40:244-252, 2016)."""
_SCORE = re.compile(r"([1-5])\+([1-5])")


class GleasonRule(Plain, frozen=True):
    """How the areas of patterns become a Gleason score.

    The pattern with the largest area is the primary one. Each other pattern counts if it reaches the limits below.
    `secondary` says which of them is the secondary one; if none counts, the primary pattern counts twice.

    `highest` is the rule for biopsies: the highest pattern above the primary one is secondary however small it is,
    otherwise the largest lower one. A lower pattern of less than 5 % is ignored. See Epstein et al. 2005 (Am J Surg
    Pathol 29:1228-1242), kept by the ISUP conferences of 2014 (40:244-252, 2016) and 2019 (van Leenders et al.,
    44:e87-e99, 2020). `largest` takes the pattern with the second largest area.
    """

    secondary: Literal["highest", "largest"] = Field(
        default="highest",
        description="Which other pattern is secondary: the highest above the primary, or the largest.",
    )
    min_area_mm2: NonNegativeFloat = Field(
        default=0.0,
        description="Least tumour of a slide with cancer, and least area of a pattern beside the primary one, mm².",
    )
    min_percent: Percent = Field(
        default=0.0, description="Least share of a pattern beside the primary one, % of the tumour."
    )
    min_lower_percent: Percent = Field(
        default=5.0, description="Least share of a pattern that is lower than the primary one, % of the tumour."
    )


@dataclass(frozen=True)
class GleasonScore:
    """A Gleason score; both patterns are None without cancer."""

    primary: int | None = None
    secondary: int | None = None

    @property
    def text(self) -> str:
        """The score as it is written, `3+4`; `0+0` without cancer."""
        return f"{self.primary or 0}+{self.secondary or 0}"

    @property
    def isup(self) -> int:
        """The ISUP grade group, 0 without cancer."""
        return 0 if self.primary is None or self.secondary is None else isup_grade(self.primary, self.secondary)


def grade_areas(areas: Mapping[int, float], rule: GleasonRule) -> GleasonScore:
    """Return the Gleason score of a slide.

    Of two equal areas the higher pattern counts as the larger.

    Args:
        areas: Area of each Gleason pattern, mm²; any unit if `rule.min_area_mm2` is 0.
        rule: Limits, and the choice of the secondary pattern.
    """
    total = sum(areas.values())
    if total <= 0 or total < rule.min_area_mm2:
        return GleasonScore()
    primary, *others = sorted(areas, key=lambda pattern: (areas[pattern], pattern), reverse=True)
    counted = []
    for pattern in others:
        lower_percent = rule.min_lower_percent if pattern < primary else 0.0
        percent = max(rule.min_percent, lower_percent)
        if 0 < areas[pattern] >= rule.min_area_mm2 and 100 * areas[pattern] >= percent * total:
            counted.append(pattern)
    higher = [pattern for pattern in counted if pattern > primary]
    if rule.secondary == "highest" and higher:
        return GleasonScore(primary, max(higher))
    return GleasonScore(primary, counted[0] if counted else primary)


def explain_no_score(patterns: Mapping[str, tuple[int, ...]]) -> str:
    """Say why classes give no Gleason score; an empty text if they give one.

    A score needs a class of its own for each of the patterns 3, 4 and 5. A class that holds several patterns does not
    say which of them it is.

    Args:
        patterns: Gleason patterns of each class of cancer.
    """
    if merged := [name for name, held in patterns.items() if len(held) > 1]:
        held = "; ".join(f"{name} holds {' and '.join(map(str, patterns[name]))}" for name in merged)
        return f"the classes do not separate the patterns ({held}), so there is no Gleason score"
    lacking = set(GRADED_PATTERNS) - {pattern for held in patterns.values() for pattern in held}
    if lacking:
        return f"no class holds pattern {', '.join(map(str, sorted(lacking)))}, so there is no Gleason score"
    return ""


def isup_grade(primary: int, secondary: int) -> int:
    """Return the ISUP grade group of a Gleason score.

    Scores up to 6 are grade 1, 3+4 is 2, 4+3 is 3, 8 is 4, 9 and 10 are 5 (Epstein et al., Am J Surg Pathol
    40:244-252, 2016).

    Args:
        primary: The most common Gleason pattern, 1 to 5.
        secondary: The second most common pattern, or the same again, 1 to 5.

    Raises:
        ValueError: If a pattern is outside 1 to 5.
    """
    if not (1 <= primary <= 5 and 1 <= secondary <= 5):
        raise ValueError(f"Gleason {primary}+{secondary}: patterns are 1 to 5")
    score = primary + secondary
    if score == 7:  # pathologists no longer give 5+2 and 2+5: the larger part decides
        return 2 if primary < secondary else 3
    return 1 if score <= 6 else 4 if score == 8 else 5


def isup_grade_from_score(score: str) -> int:
    """Return the ISUP grade group of a score such as `"3+4"`; 0 for `"negative"` and `"0+0"`.

    Raises:
        ValueError: If the text is no Gleason score.
    """
    if score in NEGATIVE_SCORES:
        return 0
    if (parts := _SCORE.fullmatch(score)) is None:
        raise ValueError(f"gleason_score {score!r} is no score such as 3+4, nor {' nor '.join(NEGATIVE_SCORES)}")
    return isup_grade(int(parts[1]), int(parts[2]))


def list_class_names(target: str, count: int) -> list[str]:
    """Return the names of the classes of a grading target: `isup` by grade, `cancer` by word."""
    if target == "cancer" or count == 2:
        return ["no cancer", "cancer"]
    return ["benign (0)" if k == 0 else f"ISUP {k}" for k in range(count)]
