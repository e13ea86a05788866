"""The limits of the Gleason rule: search on drawn slides, ties, too few slides and given limits."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from panda.tasks.gleason_search import (
    DEFAULT_LIMITS,
    FEWEST_GRADED,
    GRID,
    GleasonRuleChoice,
    GleasonRuleSettings,
    measure_kappa,
    search_gleason_rule,
)
from panda.wsi.gleason import GleasonRule, grade_areas

AUTO = GleasonRuleSettings()
Areas = dict[int, float]


def draw_areas(rule: GleasonRule, count: int, seed: int = 0) -> tuple[list[Areas], list[int]]:
    """Return areas of slides with false specks, and the grades that the rule gives them."""
    rng = np.random.default_rng(seed)
    drawn = [dict(zip((3, 4, 5), rng.choice([0.0, 0.004, 0.03, 0.3, 4.0], 3), strict=True)) for _ in range(count)]
    return drawn, [grade_areas(areas, rule).isup for areas in drawn]


def score(areas: Sequence[Areas], grades: Sequence[int], rule: GleasonRule) -> float:
    return float(cohen_kappa_score(grades, [grade_areas(slide, rule).isup for slide in areas], weights="quadratic"))


def test_search_finds_rule_that_made_the_grades() -> None:
    areas, grades = draw_areas(GleasonRule(min_area_mm2=0.01, min_percent=2.0), 200)
    found = search_gleason_rule(areas, grades, AUTO, "200 validation slides")
    assert (found.score, found.chosen_on) == (1.0, "200 validation slides")
    assert 0.004 < found.min_area_mm2 <= 0.03
    assert [grade_areas(slide, found).isup for slide in areas] == grades


def test_search_takes_best_kappa_and_smallest_tied_limits() -> None:
    areas, grades = draw_areas(GleasonRule(min_area_mm2=0.01), 60)
    rng = np.random.default_rng(1)
    grades = [int(grade) if rng.random() < 0.7 else int(rng.integers(6)) for grade in grades]
    found = search_gleason_rule(areas, grades, AUTO, "slides")
    pairs = list(itertools.product(*GRID.values()))
    scores = [score(areas, grades, GleasonRule(min_area_mm2=area, min_percent=share)) for area, share in pairs]
    best = [pair for pair, kappa in zip(pairs, scores, strict=True) if kappa > max(scores) - 1e-12]
    assert (found.min_area_mm2, found.min_percent) == min(best)
    assert found.tied == len(best)
    assert found.score == pytest.approx(max(scores))
    assert len(best) > 1


def test_search_keeps_given_limits() -> None:
    areas, grades = draw_areas(GleasonRule(secondary="largest", min_area_mm2=0.01), 60)
    settings = GleasonRuleSettings(secondary="largest", min_area_mm2=0.5, min_lower_percent=1.0)
    found = search_gleason_rule(areas, grades, settings, "slides")
    assert (found.secondary, found.min_area_mm2, found.min_lower_percent) == ("largest", 0.5, 1.0)
    assert found.score is not None
    given = search_gleason_rule(areas, grades, GleasonRuleSettings(min_area_mm2=0.5, min_percent=1), "slides")
    assert (given.min_area_mm2, given.min_percent, given.score) == (0.5, 1.0, None)
    assert given.chosen_on == "no slides: the limits were given beforehand"


def test_search_too_few_graded_slides_takes_default() -> None:
    areas, grades = draw_areas(GleasonRule(), FEWEST_GRADED - 1)
    found = search_gleason_rule(areas, grades, AUTO, "30 validation slides")
    assert {key: getattr(found, key) for key in DEFAULT_LIMITS} == DEFAULT_LIMITS
    assert found.chosen_on == "not searched: 19 of 30 validation slides have a grade and areas, fewer than 20"
    assert found.score is None
    assert GleasonRuleChoice.model_validate_json(found.model_dump_json()) == found


def test_search_one_grade_takes_default() -> None:
    found = search_gleason_rule([{3: 0.0}] * 30, [0] * 30, AUTO, "30 slides")
    assert (found.min_area_mm2, found.score) == (0.02, None)
    assert "have one grade" in found.chosen_on


def test_measure_kappa_matches_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    given, found = rng.integers(0, 6, (2, 50)).tolist()
    assert measure_kappa(given, found) == pytest.approx(cohen_kappa_score(given, found, weights="quadratic"))
    assert np.isnan(measure_kappa([1, 1], [1, 1]))
