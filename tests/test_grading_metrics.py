"""Figures of graded slides against those of their parts, and against slower bootstraps."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from panda.inference.grade import ATTENTION_SCORES
from panda.inference.grading_metrics import summarize_grades, summarize_test_grades
from panda.tasks.bootstrap import bootstrap_interval
from tests.drawn_scores import draw_graded_slide

GRADED = [draw_graded_slide(number) for number in range(60)]


def test_summarize_test_grades_match_bootstrap_over_groups() -> None:
    found = summarize_test_grades(GRADED, 6, seed=3).model_dump()
    label = np.array([slide.label for slide in GRADED])
    prob = np.array([slide.grade.probabilities for slide in GRADED])
    groups = [slide.record.group for slide in GRADED]

    def area(least: int) -> Any:
        def statistic(numbers: NDArray[Any]) -> float:
            above, score = label[numbers] >= least, prob[numbers, least:].sum(axis=1).round(9)
            ahead = score[above][:, None] - score[~above][None, :]
            return float((ahead > 0).mean() + (ahead == 0).mean() / 2) if ahead.size else math.nan

        return statistic

    assert found["slides"] == 60
    assert np.sum(found["confusion"]) == 60
    for name, least in (("auroc", 1), ("auroc_significant", 2)):
        numbers = np.arange(60)
        assert found[name] == pytest.approx(area(least)(numbers))
        expected = bootstrap_interval(numbers, groups, seed=3, statistic=area(least), n=2000)
        assert found[f"{name}_interval"] == pytest.approx(expected)
    for name in ("qwk", "accuracy"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high


def test_summarize_test_grades_of_part_equal_its_slides() -> None:
    found = summarize_test_grades(GRADED, 6, seed=3).model_dump()
    alone = summarize_test_grades(GRADED[1::2], 6, seed=3).model_dump()
    del alone["by_provider"]
    assert found["by_provider"]["radboud"] == alone
    assert set(found["by_provider"]) == {"karolinska", "radboud"}


def test_summarize_test_grades_attention_is_mean_over_scored_slides() -> None:
    found = summarize_test_grades(GRADED, 6, seed=3).model_dump()
    for name, held in (("attention_auroc", GRADED[3::3]), ("cancer_attended", GRADED[::3])):
        values = np.array([getattr(slide.grade.against_label, name) for slide in held], dtype=np.float64)
        assert found[name] == pytest.approx(values.mean())
        expected = bootstrap_interval(values, [slide.record.group for slide in held], seed=3)
        assert found[f"{name}_interval"] == pytest.approx(expected)
    without = summarize_grades(GRADED, 6, seed=3).model_dump()
    assert without == {key: without[key] for key in found if key.removesuffix("_interval") not in ATTENTION_SCORES}
    assert not set(ATTENTION_SCORES) & without["by_provider"]["radboud"].keys()


def test_summarize_test_grades_undefined_is_none() -> None:
    none = summarize_test_grades([], 6, seed=0).model_dump()
    assert {key for key, value in none.items() if value is not None} == {"slides", "confusion", "by_provider"}
    one = summarize_test_grades(GRADED[:1], 6, seed=0).model_dump()
    assert one["accuracy"] in (0, 1)
    assert [one[key] for key in one if key.endswith("_interval")] == [None] * 11
    benign = [slide for slide in (draw_graded_slide(number, 2) for number in range(30)) if slide.label == 0]
    found = summarize_test_grades(benign, 2, seed=0).model_dump()
    assert (found["auroc"], found["auroc_interval"]) == (None, None)
    assert (found["auroc_significant"], found["auroc_significant_interval"]) == (None, None)
    assert found["accuracy_interval"] is not None
