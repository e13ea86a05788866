"""ISUP grade groups of Gleason scores, and their names."""

from __future__ import annotations

import re

NEGATIVE_SCORES = ("negative", "0+0")
"""Gleason scores of a slide without cancer, as Radboud and Karolinska write them."""
_SCORE = re.compile(r"([1-5])\+([1-5])")


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
