"""Figures beside their trivial answers, and what must not be overlooked."""

from __future__ import annotations

from typing import Any

import pytest

from panda.inference.grading_metrics import summarize_grades
from panda.report.interpretation import explain_figures, find_alarms, make_cards
from panda.report.trivial_answers import find_trivial_answer, list_alarms
from tests.drawn_scores import draw_graded_slide
from tests.summaries import make_summary

GOOD = {
    "dice": 0.7, "all_tissue_dice": 0.52, "dice_mean_slide": 0.85, "all_tissue_dice_mean_slide": 0.81,
    "slides": 20, "slides_with_cancer": 10, "benign_slides": 10, "slide_specificity": 0.9,
    "called_percent_of_tissue": 30.0, "cancer_percent_of_tissue": 35.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"dice_mean_slide": 0.80}, ["No better than a trivial answer (all tissue): Dice, mean over slides 0.800"]),
        ({"dice": 0.52}, ["No better than a trivial answer (all tissue): Dice, all pixels pooled 0.520"]),
        ({"slide_specificity": 0.7}, ["False alarms: 3 of 10 cancer-free slides are called cancer (more than 1 %"]),
        ({"slide_specificity": 0.75}, []),
        ({"called_percent_of_tissue": 97.0}, ["Nearly all tissue is called cancer: 97.0 % of it, of which 35.0 %"]),
        ({"called_percent_of_tissue": 97.0, "cancer_percent_of_tissue": 96.0}, []),
    ],
)
def test_find_alarms_names_what_is_trivial(changes: dict[str, Any], said: list[str]) -> None:
    summary = make_summary({"test": GOOD | changes})
    found = find_alarms(summary)
    assert len(found) == len(said)
    for text, part in zip(found, said, strict=True):
        assert text.startswith(f"On the test slides: {part}")


def test_explain_figures_gives_baseline_in_same_measure() -> None:
    summary = make_summary({"test": GOOD})
    text = " ".join(explain_figures(summary))
    assert "a Dice of 0.70 over the pixels of all slides; calling all tissue tumour would give 0.52." in text
    assert "The mean Dice of the slides with cancer is 0.85; calling all tissue tumour would give 0.81." in text
    under = {card.label: card.under for card in make_cards(summary)}
    assert under["Dice, all pixels pooled"].endswith("all tissue: 0.52")
    assert under["Dice, mean over slides"].endswith("all tissue: 0.81")


def test_find_trivial_answer_of_grades_is_commonest_class() -> None:
    scores = summarize_grades([draw_graded_slide(n) for n in range(30)], 6, seed=0)
    given = [sum(row) for row in scores.confusion]
    trivial = {key: find_trivial_answer(scores, key) for key in ("accuracy", "qwk", "auroc", "ece")}
    values = {key: answer and answer.value for key, answer in trivial.items()}
    assert values == {"accuracy": max(given) / 30, "qwk": 0.0, "auroc": 0.5, "ece": None}


def test_list_alarms_grades_of_benign_slides_called_cancer() -> None:
    confusion = [[2, 2, 0, 0, 0, 0], [0, 9, 0, 0, 0, 0], *([[0] * 6] * 4)]
    test = {"qwk": 0.8, "accuracy": 11 / 13, "confusion": confusion, "slides": 13}
    summary = make_summary({"task": "grading", "val": test, "test": test})
    assert summary.test is not None
    (alarm,) = list_alarms(summary.test)
    assert alarm.text.startswith("False alarms: 2 of 4 cancer-free slides are called cancer (by their grade)")
