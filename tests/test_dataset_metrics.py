"""Figures of many slides against a count of every pixel, scikit-learn, and slower bootstraps."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as oracle

from panda.inference.dataset_metrics import FIGURES, summarize
from panda.inference.slide_score import CALLED_PERCENT, SlideScore
from panda.tasks.bins import BINS
from panda.tasks.bootstrap import bootstrap_interval
from panda.tasks.threshold import ThresholdChoice
from tests.drawn_scores import AREA, AT, BY_PROVIDER, SLIDES, draw, figures, make_record

MANY = [*SLIDES, *(draw(10 + k, 0.1 * (k % 2) * (k + 1), "radboud", None, f"m{k}") for k in range(8))]
"""Slides of enough groups for intervals, with and without cancer."""


@pytest.mark.parametrize("choice", [AT, BY_PROVIDER])
def test_figures_match_scikit_learn_over_all_pixels(choice: ThresholdChoice) -> None:
    found = figures(SLIDES, choice)
    called = [slide.prob >= choice.value_for(slide.score.record.provider) for slide in SLIDES]
    truth, positive = np.concatenate([slide.truth for slide in SLIDES]), np.concatenate(called)
    pooled = {
        "dice": oracle.f1_score, "iou": oracle.jaccard_score, "precision": oracle.precision_score,
        "recall": oracle.recall_score,
    }  # fmt: skip
    for name, score in pooled.items():
        assert found[name] == pytest.approx(score(truth, positive))
        each = [score(slide.truth, mask) for slide, mask in zip(SLIDES, called, strict=True) if slide.truth.any()]
        assert found[f"{name}_mean_slide"] == pytest.approx(np.mean(each))
    prob = np.concatenate([slide.prob for slide in SLIDES])
    assert found["pr_auc"] == pytest.approx(oracle.average_precision_score(truth, prob))
    assert found["pixel_auroc"] == pytest.approx(oracle.roc_auc_score(truth, prob))
    assert found["fp_mm2_benign_slides"] == pytest.approx(np.mean([mask.sum() * AREA / 1e6 for mask in called[2:4]]))
    tissue = np.concatenate([slide.tissue for slide in SLIDES])
    assert found["cancer_percent_of_tissue"] == pytest.approx(100 * truth[tissue].mean())
    assert found["called_percent_of_tissue"] == pytest.approx(100 * positive[tissue].mean())
    assert found["cancer_outside_tissue_percent"] == pytest.approx(100 * 30 / truth.sum())
    counts = {"slides": 6, "slides_with_cancer": 4, "benign_slides": 2, "groups": 5}
    assert {name: found[name] for name in counts} == counts


def test_figures_trivial_answer_has_the_same_measures() -> None:
    found = figures(SLIDES)
    truth, tissue = (np.concatenate([getattr(slide, name) for slide in SLIDES]) for name in ("truth", "tissue"))
    scores = {"dice": oracle.f1_score, "iou": oracle.jaccard_score, "precision": oracle.precision_score}
    for name, score in scores.items():
        assert found[f"all_tissue_{name}"] == pytest.approx(score(truth, tissue))
        each = [score(slide.truth, slide.tissue) for slide in SLIDES if slide.truth.any()]
        assert found[f"all_tissue_{name}_mean_slide"] == pytest.approx(np.mean(each))
    assert found["all_tissue_fp_mm2_benign_slides"] == pytest.approx(400 * AREA / 1e6)


def test_figures_pooled_and_mean_trivial_answers_disagree() -> None:
    """One slide full of cancer and a large benign one: the mean sees only the first, the pooled Dice sees both."""
    full, benign = np.zeros((2, BINS), np.int64), np.zeros((2, BINS), np.int64)
    full[0, 990], full[0, 10], benign[1, 990], benign[1, 10] = 80, 20, 100, 300
    scores = [SlideScore(make_record(n, "p", f"g{n}"), hist, AREA, 0) for n, hist in enumerate((full, benign))]
    found = summarize(scores, AT, seed=0)
    assert found.dice_mean_slide == pytest.approx(2 * 80 / 180)
    assert found.all_tissue_dice_mean_slide == 1.0
    assert found.dice == pytest.approx(2 * 80 / (100 + 180))
    assert found.all_tissue_dice == pytest.approx(2 * 100 / 600)
    assert (found.slide_sensitivity, found.slide_specificity, found.slide_auroc) == (1.0, 0.0, 1.0)


def test_figures_whole_slides_match_scikit_learn() -> None:
    found, shares = figures(SLIDES), [100 * (s.prob[s.tissue] >= 0.5).mean() for s in SLIDES]
    has_cancer = np.array([s.truth.any() for s in SLIDES])
    called = np.array(shares) > CALLED_PERCENT
    assert found["slide_auroc"] == pytest.approx(oracle.roc_auc_score(has_cancer, shares))
    assert found["slide_sensitivity"] == pytest.approx(oracle.recall_score(has_cancer, called))
    assert found["slide_specificity"] == pytest.approx(oracle.recall_score(~has_cancer, ~called, zero_division=0))


def test_figures_of_part_equal_figures_of_its_slides() -> None:
    found = figures(SLIDES, BY_PROVIDER)
    assert {name: part["slides"] for name, part in found["by_provider"].items()} == {"karolinska": 3, "radboud": 3}
    assert {name: part["slides"] for name, part in found["by_grade"].items()} == {"0": 2, "1": 1, "4": 2, "none": 1}
    alone = figures([SLIDES[0], SLIDES[4]], BY_PROVIDER)
    assert found["by_grade"]["4"] == {name: alone[name] for name in found["by_grade"]["4"]}
    assert "by_grade" not in found["by_provider"]["radboud"]


def test_figures_intervals_match_bootstrap_over_groups() -> None:
    found = figures(MANY)
    groups = [slide.score.record.group for slide in MANY]

    def pooled_dice(numbers: NDArray[Any]) -> float:
        truth = np.concatenate([MANY[k].truth for k in numbers])
        called = np.concatenate([MANY[k].prob >= 0.5 for k in numbers])
        return float(oracle.f1_score(truth, called)) if truth.any() else math.nan

    def average_precision(numbers: NDArray[Any]) -> float:
        truth = np.concatenate([MANY[k].truth for k in numbers])
        prob = np.concatenate([MANY[k].prob for k in numbers])
        return float(oracle.average_precision_score(truth, prob)) if truth.any() else math.nan

    for name, statistic in (("dice", pooled_dice), ("pr_auc", average_precision)):
        expected = bootstrap_interval(np.arange(len(MANY)), groups, seed=3, statistic=statistic)
        assert found[f"{name}_interval"] == pytest.approx(expected)
    dice = [oracle.f1_score(s.truth, s.prob >= 0.5) if s.truth.any() else math.nan for s in MANY]
    assert found["dice_mean_slide_interval"] == pytest.approx(bootstrap_interval(dice, groups, seed=3))
    area = [math.nan if s.truth.any() else (s.prob >= 0.5).sum() * AREA / 1e6 for s in MANY]
    assert found["fp_mm2_benign_slides_interval"] == pytest.approx(bootstrap_interval(area, groups, seed=3))
    assert found["no_interval"] == {}


def test_figures_few_groups_have_reason_instead_of_intervals() -> None:
    found = figures(SLIDES[:5])
    assert found["dice"] is not None
    assert all(found[f"{name}_interval"] is None for name in FIGURES)
    assert found["no_interval"]["dice"] == "an interval needs at least 5 groups of slides, there are 4"
    assert found["no_interval"]["dice_mean_slide"] == "an interval needs at least 5 groups of slides, there are 2"
    assert figures(SLIDES[4:5])["no_interval"]["dice"] == "an interval needs at least 5 groups of slides, there is 1"
    assert "fp_mm2_benign_slides" not in figures(SLIDES[:2])["no_interval"]  # there is no such figure
    five = figures(SLIDES)
    assert five["dice_interval"] is not None
    assert five["dice_mean_slide_interval"] is five["fp_mm2_benign_slides_interval"] is None
    assert set(five["no_interval"]) == {
        "dice_mean_slide", "iou_mean_slide", "precision_mean_slide", "recall_mean_slide", "fp_mm2_benign_slides",
        "slide_sensitivity", "slide_specificity", "slide_auroc",
    }  # fmt: skip


def test_figures_slides_without_cancer_have_area_and_no_dice() -> None:
    found = figures(SLIDES[2:4])
    for name in ("dice", "iou", "precision", "recall", "dice_mean_slide", "pr_auc", "pixel_auroc", "all_tissue_dice"):
        assert found[name] is found.get(f"{name}_interval") is None, name
    assert found["fp_mm2_benign_slides"] > 0
    many = figures([slide for slide in MANY if not slide.truth.any()])
    assert many["fp_mm2_benign_slides_interval"] is not None


def test_figures_all_cancer_has_no_auroc() -> None:
    found = figures([SLIDES[4]])
    assert (found["precision"], found["pr_auc"], found["pixel_auroc"]) == (1, 1, None)
    assert found["all_tissue_dice"] == 1


def test_figures_unknown_pixel_area_gives_no_area() -> None:
    blank = draw(7, 0.0, "radboud", 0, "f", area=None)
    found = figures([*SLIDES, blank])
    assert found["fp_mm2_benign_slides"] is found["fp_mm2_benign_slides_interval"] is None
    assert found["dice_interval"] is not None


def test_figures_no_slides_are_none() -> None:
    found = figures([])
    assert all(found[name] is found[f"{name}_interval"] is None for name in FIGURES)
    assert (found["slides"], found["by_provider"], found["by_grade"]) == (0, {}, {})
