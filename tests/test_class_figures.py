"""Figures of classes and of grades by rule against scikit-learn over all pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as oracle

from panda.inference.class_figures import RuleGradedSlide, summarize_classes, summarize_rule_grades
from panda.inference.grade import RuleGrade
from panda.inference.slide_score import SlideScore
from panda.tasks.bins import BINS
from panda.tasks.bootstrap import bootstrap_interval
from panda.tasks.class_counts import confuse_classes, count_class_pixels, find_row, shape_counts
from panda.tasks.pixel_histogram import count_probabilities
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.classes import ANY_CANCER, IGNORED, ClassSet
from tests.drawn_scores import AREA, AT, BY_PROVIDER, make_record

CLASSES = ClassSet(names=("benign", "G3", "G4", "G5"), patterns={"G3": (3,), "G4": (4,), "G5": (5,)})


@dataclass(frozen=True)
class Drawn:
    score: SlideScore
    target: NDArray[np.uint8]
    prob: NDArray[np.float32]
    chosen: NDArray[np.uint8]

    def predict(self, choice: ThresholdChoice) -> NDArray[np.uint8]:
        at = choice.value_for(self.score.record.provider)
        return np.where(self.prob.astype(np.float64) >= at, self.chosen, 0).astype(np.uint8)


def draw(number: int, provider: str, group: str, area: float | None = AREA) -> Drawn:
    rng = np.random.default_rng(number)
    prob = (rng.integers(0, BINS, (30, 40)) / BINS).astype(np.float32)
    chosen = rng.integers(1, 4, prob.shape).astype(np.uint8)
    chosen[prob == 0] = 0
    has_patterns = provider == "radboud"
    codes = [0, 1, 2, 3, IGNORED] if has_patterns else [0, ANY_CANCER, IGNORED]
    target = rng.choice(codes, prob.shape).astype(np.uint8)
    tissue = rng.random(prob.shape) < 0.8
    truth = (target != 0) & (target != IGNORED)
    histogram = count_probabilities(*map(torch.from_numpy, (prob, truth, tissue))).numpy()
    by_class = count_class_pixels(prob, chosen, target, tissue, 4, has_patterns=has_patterns)
    score = SlideScore(make_record(number, provider, group), histogram, area, 0, by_class)
    return Drawn(score, target[tissue], prob[tissue], chosen[tissue])


SLIDES = [
    draw(number, "karolinska" if group == "b" else "radboud", group) for number, group in enumerate("abccdef", start=1)
]
NAMED = [SLIDES[0], *SLIDES[2:]]


def summarize(slides: list[Drawn], choice: ThresholdChoice = AT) -> dict[str, Any]:
    return summarize_classes([slide.score for slide in slides], choice, CLASSES, seed=3).model_dump()


@pytest.mark.parametrize("choice", [AT, BY_PROVIDER])
def test_class_dice_matches_scikit_learn_over_labelled_pixels(choice: ThresholdChoice) -> None:
    found = summarize(SLIDES, choice)
    assert (found["slides"], found["groups"]) == (6, 5)
    target, predicted = (
        np.concatenate(parts) for parts in zip(*((s.target, s.predict(choice)) for s in NAMED), strict=True)
    )
    known = target != IGNORED
    for number, name in enumerate(CLASSES.cancer_names, start=1):
        one = found["by_class"][name]
        assert one["dice"] == pytest.approx(oracle.f1_score(target[known] == number, predicted[known] == number))
        assert one["labelled_mm2"] == pytest.approx((target == number).sum() * AREA / 1e6)
        assert one["predicted_mm2"] == pytest.approx((predicted[known] == number).sum() * AREA / 1e6)


def test_class_dice_interval_matches_bootstrap_over_groups() -> None:
    pairs = [(s.target[s.target != IGNORED], s.predict(AT)[s.target != IGNORED]) for s in NAMED]

    def dice(numbers: NDArray[Any]) -> float:
        truth, called = (np.concatenate([pairs[k][side] for k in numbers]) for side in (0, 1))
        return float(oracle.f1_score(truth == 2, called == 2))

    groups = [slide.score.record.group for slide in NAMED]
    expected = bootstrap_interval(np.arange(6), groups, seed=3, statistic=dice)
    assert summarize(SLIDES)["by_class"]["G4"]["dice_interval"] == pytest.approx(expected)
    alone = summarize(SLIDES[2:])["by_class"]["G4"]  # of four groups
    assert alone["dice"] is not None
    assert alone["dice_interval"] is None


def test_class_confusion_counts_what_labels_say() -> None:
    found = summarize(SLIDES)["confusion"]
    assert found["labels"] == ["benign", "G3", "G4", "G5", "cancer, class not labelled"]
    assert found["predicted"] == ["benign", "G3", "G4", "G5"]
    target = np.concatenate([slide.target for slide in SLIDES])
    called = np.concatenate([slide.predict(AT) for slide in SLIDES])
    expected = [
        [((target == row) & (called == column)).sum() for column in range(4)] for row in (0, 1, 2, 3, ANY_CANCER)
    ]
    np.testing.assert_allclose(found["mm2"], np.array(expected) * AREA / 1e6)


def test_class_figures_by_provider_give_what_labels_say() -> None:
    karolinska = summarize(SLIDES)["by_provider"]["karolinska"]
    assert (karolinska["slides"], karolinska["by_class"]) == (0, {})
    assert karolinska["confusion"]["labels"] == ["benign", "cancer, class not labelled"]
    assert summarize(SLIDES)["by_provider"]["radboud"]["by_class"] == summarize(NAMED)["by_class"]


def test_class_figures_unknown_area_is_null() -> None:
    found = summarize([*SLIDES, draw(5, "radboud", "e", area=None)])
    assert found["confusion"]["mm2"] is None
    assert found["by_class"]["G3"]["labelled_mm2"] is None
    assert found["by_class"]["G3"]["dice"] is not None


def test_class_figures_absent_class_has_no_dice() -> None:
    slide = draw(9, "radboud", "a")
    counts = slide.score.by_class
    assert counts is not None
    counts[3] = 0
    found = summarize([slide])["by_class"]["G5"]
    both = summarize([slide, *SLIDES[2:]])["by_class"]
    assert both["G5"]["dice"] is not None
    assert both["G5"]["dice_interval"] is None  # four groups have this class
    assert both["G4"]["dice_interval"] is not None
    assert (found["slides"], found["dice"], found["dice_interval"]) == (0, None, None)
    assert found["predicted_mm2"] > 0


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.999])
def test_class_counts_merged_are_the_binary_counts(threshold: float) -> None:
    for slide in SLIDES:
        confusion, at = slide.score.confuse_classes(threshold), slide.score.compute_metrics(threshold)
        cancer = [1, 2, 3, find_row("any_cancer", 4)]
        other = [0, find_row("no_patterns", 4), find_row("ignored", 4)]
        unscored = np.count_nonzero(slide.chosen == 0) if threshold == 0 else 0
        assert confusion[:, 1:].sum() + unscored == (at.tp_px or 0) + (at.fp_px or 0)
        if threshold:
            assert (confusion[cancer, 1:].sum(), confusion[other, 1:].sum()) == (at.tp_px, at.fp_px)
            assert confusion[cancer, 0].sum() == at.fn_px


def test_class_counts_order_of_classes_does_not_matter() -> None:
    order = np.array([0, 3, 1, 2], np.uint8)  # the new number of each class
    slide = SLIDES[0]
    renumber = np.arange(256, dtype=np.uint8)
    renumber[:4] = order
    where = np.ones(slide.prob.shape, bool)

    def count(chosen: NDArray[np.uint8], target: NDArray[np.uint8]) -> NDArray[np.int64]:
        return confuse_classes(count_class_pixels(slide.prob, chosen, target, where, 4, has_patterns=True), 0.5)

    before, after = count(slide.chosen, slide.target), count(renumber[slide.chosen], renumber[slide.target])
    rows = [*order, 4, 5, 6]
    np.testing.assert_array_equal(after[np.ix_(rows, order)], before)


def grade_slide(number: int, given: int | None, found: int | None, band: tuple[int, int] | None) -> RuleGradedSlide:
    score = None if found is None else ("0+0", "3+3", "3+4", "4+3", "4+4", "5+5")[found]
    note = "" if score else "µm/px of the slide is unknown"
    grade = RuleGrade(score=score, isup=found, isup_interval=band, band=(0.4, 0.6), note=note)
    return RuleGradedSlide(make_record(number, "ab"[number % 2], f"g{number % 5}", given), grade)


def test_rule_grade_figures_match_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    given, found = rng.integers(0, 6, (2, 40)).tolist()
    slides = [grade_slide(k, a, b, (max(b - 1, 0), b)) for k, (a, b) in enumerate(zip(given, found, strict=True))]
    slides += [grade_slide(40, None, 3, (3, 3)), grade_slide(41, 2, None, None)]
    result = summarize_rule_grades(slides, seed=3)
    assert (result.slides, result.without_score) == (40, 1)
    assert result.qwk == pytest.approx(oracle.cohen_kappa_score(given, found, weights="quadratic"))
    assert result.accuracy == pytest.approx(oracle.accuracy_score(given, found))
    assert result.within_band == pytest.approx(np.mean([b - 1 <= a <= b for a, b in zip(given, found, strict=True)]))
    np.testing.assert_array_equal(result.confusion, oracle.confusion_matrix(given, found, labels=range(6)))
    hits = np.equal(given, found).astype(float)
    expected = bootstrap_interval(hits, [f"g{k % 5}" for k in range(40)], seed=3)
    assert result.accuracy_interval == pytest.approx(expected)
    assert result.by_provider["a"].slides == 20
    empty = summarize_rule_grades([], seed=3)
    assert (empty.slides, empty.qwk, empty.accuracy) == (0, None, None)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"isup": 2}, "not the grade of 3\\+3"),
        ({"isup_interval": (2, 3)}, "outside of isup_interval"),
        ({"note": "none"}, "all given, or null with a note"),
        ({"score": None}, "all given, or null with a note"),
    ],
)
def test_rule_grade_contradiction_is_refused(changes: dict[str, Any], fault: str) -> None:
    sound: dict[str, Any] = {"score": "3+3", "isup": 1, "isup_interval": (0, 2), "band": (0.4, 0.6), "note": ""}
    assert RuleGrade(**sound).isup == 1
    with pytest.raises(ValueError, match=fault):
        RuleGrade(**sound | changes)


def test_class_columns_of_contradicting_slide_are_none() -> None:
    histogram, by_class = np.zeros((2, BINS), np.int64), np.zeros(shape_counts(4), np.int64)
    histogram[1, 900] = by_class[0, 1, 900] = 50
    benign, graded = (SlideScore(make_record(1, "radboud", "a", g), histogram, AREA, 0, by_class) for g in (0, 5))
    assert benign.list_class_columns(0.5, CLASSES)["fp_px_G3"] == 50
    assert set(graded.list_class_columns(0.5, CLASSES).values()) == {None}
