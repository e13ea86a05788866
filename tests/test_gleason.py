"""Gleason scores from areas: cases of the ISUP rules, and properties that every rule must have."""

from itertools import permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from panda.wsi.gleason import GleasonRule, GleasonScore, explain_no_score, grade_areas, isup_grade_from_score

PATTERNS = (3, 4, 5)
BIOPSY = GleasonRule()
LARGEST = GleasonRule(secondary="largest")
area = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)
areas = st.fixed_dictionaries(dict.fromkeys(PATTERNS, area))
rules = st.builds(
    GleasonRule,
    secondary=st.sampled_from(["highest", "largest"]),
    min_area_mm2=area,
    min_percent=st.floats(0, 100),
    min_lower_percent=st.floats(0, 100),
)
Areas = dict[int, float]


@pytest.mark.parametrize(
    ("three", "four", "five", "biopsy", "largest"),
    [
        (0, 0, 0, "0+0", "0+0"),
        (10, 0, 0, "3+3", "3+3"),
        (99, 1, 0, "3+4", "3+4"),  # a higher pattern counts however small it is
        (1, 99, 0, "4+4", "4+4"),  # a lower pattern of less than 5 % does not
        (5, 95, 0, "4+3", "4+3"),
        (50, 50, 0, "4+3", "4+3"),
        (60, 35, 5, "3+5", "3+4"),  # three patterns: the primary and the highest one
        (35, 60, 5, "4+5", "4+3"),
        (3, 60, 37, "4+5", "4+5"),
        (30, 10, 60, "5+3", "5+3"),
        (4, 3, 93, "5+5", "5+5"),
    ],
)
def test_grade_areas_rules(three: float, four: float, five: float, biopsy: str, largest: str) -> None:
    found = [grade_areas({3: three, 4: four, 5: five}, rule) for rule in (BIOPSY, LARGEST)]
    assert [score.text for score in found] == [biopsy, largest]
    assert [score.isup for score in found] == [isup_grade_from_score(biopsy), isup_grade_from_score(largest)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (GleasonRule(min_area_mm2=1.0), "4+5"),
        (GleasonRule(min_area_mm2=1.01), "4+3"),
        (GleasonRule(min_percent=10.0), "4+5"),
        (GleasonRule(min_percent=10.01), "4+3"),
        (GleasonRule(min_percent=10.01, min_lower_percent=20.0), "4+3"),
        (GleasonRule(min_percent=10.01, min_lower_percent=20.01), "4+4"),
        (GleasonRule(min_area_mm2=10.0), "4+4"),
        (GleasonRule(min_area_mm2=10.01), "0+0"),
    ],
)
def test_grade_areas_limits_are_inclusive(rule: GleasonRule, expected: str) -> None:
    assert grade_areas({3: 2.0, 4: 7.0, 5: 1.0}, rule).text == expected


@given(areas, rules)
def test_grade_areas_order_of_classes_does_not_matter(drawn: Areas, rule: GleasonRule) -> None:
    found = {grade_areas({pattern: drawn[pattern] for pattern in order}, rule) for order in permutations(PATTERNS)}
    assert len(found) == 1


@given(st.sampled_from(PATTERNS), area.filter(bool), rules)
def test_grade_areas_one_pattern_gives_it_twice(pattern: int, size: float, rule: GleasonRule) -> None:
    expected = GleasonScore(pattern, pattern) if size >= rule.min_area_mm2 else GleasonScore()
    assert grade_areas({pattern: size}, rule) == expected
    assert grade_areas(dict.fromkeys(PATTERNS, 0.0) | {pattern: size}, rule) == expected


@given(areas, rules)
def test_grade_areas_cancer_depends_on_merged_area(drawn: Areas, rule: GleasonRule) -> None:
    total = sum(drawn.values())
    assert (grade_areas(drawn, rule).isup > 0) == (grade_areas({3: total}, rule).isup > 0)


@given(areas, rules)
def test_grade_areas_patterns_of_score_have_area(drawn: Areas, rule: GleasonRule) -> None:
    score = grade_areas(drawn, rule)
    if score.primary is not None and score.secondary is not None:
        assert drawn[score.primary] == max(drawn.values())
        assert drawn[score.secondary] > 0
        assert score.isup == isup_grade_from_score(score.text)


@given(areas, area, area, st.floats(0, 100))
def test_grade_areas_growth_of_highest_never_lowers(drawn: Areas, more: float, least: float, lower: float) -> None:
    rule = GleasonRule(min_area_mm2=least, min_lower_percent=lower)
    grown = drawn | {5: drawn[5] + more}
    assert grade_areas(grown, rule).isup >= grade_areas(drawn, rule).isup


@given(areas, st.sampled_from([4, 5]), st.floats(0, 1), area, st.floats(0, 100))
def test_grade_areas_shift_from_pattern_3_never_lowers(
    drawn: Areas, higher: int, share: float, least: float, lower: float
) -> None:
    # From 4 to 5 it can: 5+4 becomes 5+3 if no 4 is left, and a score of 8 is a lower grade than 9.
    # So it can if the largest pattern is below the limit: 5+5 becomes 4+4 if 4 is now the largest and 5 is not counted.
    assume(max(drawn.values()) >= least)
    rule = GleasonRule(min_area_mm2=least, min_lower_percent=lower)
    moved = drawn[3] * share
    shifted = drawn | {3: drawn[3] - moved, higher: drawn[higher] + moved}
    assert grade_areas(shifted, rule).isup >= grade_areas(drawn, rule).isup


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        ({"G3": (3,), "G4": (4,), "G5": (5,)}, ""),
        ({"low": (1,), "G3": (3,), "G4": (4,), "G5": (5,)}, ""),
        ({"G3": (3,), "high": (4, 5)}, "high holds 4 and 5"),
        ({"cancer": (1, 2, 3, 4, 5)}, "cancer holds 1 and 2 and 3 and 4 and 5"),
        ({"G4": (4,), "G5": (5,)}, "no class holds pattern 3"),
    ],
)
def test_explain_no_score_names_the_class(patterns: dict[str, tuple[int, ...]], reason: str) -> None:
    found = explain_no_score(patterns)
    assert reason in found
    assert bool(found) == bool(reason)
