"""The search for a threshold, and its table and picture."""

import csv
import json
import math
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.errors import ConfigError
from panda.report.curves import write_threshold_curve
from panda.tasks.bins import BINS
from panda.tasks.pixel_histogram import count_probabilities
from panda.tasks.threshold import CRITERIA, ThresholdChoice, score_by_criterion, search_threshold

DATE = "2026-01-01T00:00:00Z"


def hist(cancer: list[float], other: list[float]) -> NDArray[np.int64]:
    prob = torch.tensor([*cancer, *other], dtype=torch.float64)
    target = torch.tensor([True] * len(cancer) + [False] * len(other))
    return count_probabilities(prob, target).numpy()


def random_hists(
    seed: int, slides: int = 4
) -> tuple[dict[str, NDArray[np.int64]], list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    pixels = []
    for number in range(slides):
        target = torch.rand(300, generator=generator) < (0.0 if number == 0 else 0.2 * number)
        pixels.append((torch.sigmoid(torch.randn(300, generator=generator) + 2 * target - 2), target))
    return {f"s{i}": count_probabilities(p, t).numpy() for i, (p, t) in enumerate(pixels)}, pixels


def dice(prob: torch.Tensor, target: torch.Tensor, k: int) -> float:
    predicted = prob.double() >= k / BINS
    return 2 * float((predicted & target).sum()) / float(predicted.sum() + target.sum())


@pytest.mark.parametrize("seed", range(3))
def test_search_threshold_finds_global_best(seed: int) -> None:
    hists, pixels = random_hists(seed)
    prob, target = torch.cat([p for p, _ in pixels]), torch.cat([t for _, t in pixels])
    best = max(dice(prob, target, k) for k in range(BINS))
    choice = search_threshold(hists, "dice_pooled", "fold 2")
    assert choice.score == pytest.approx(best)
    assert dice(prob, target, round(choice.value * BINS)) == pytest.approx(best)
    assert (choice.criterion, choice.chosen_on) == ("dice_pooled", "fold 2")

    with_cancer = [(p, t) for p, t in pixels if t.any()]
    best = max(float(np.mean([dice(p, t, k) for p, t in with_cancer])) for k in range(BINS))
    choice = search_threshold(hists, "dice_mean_slide")
    assert choice.score == pytest.approx(best)


def test_search_threshold_ties_take_middle_of_longest_run() -> None:
    # Dice is 1 for 0.2 < k / 1000 <= 0.8: bins 201 … 800.
    choice = search_threshold({"a": hist([0.8, 0.9], [0.1, 0.2])})
    assert choice.value == 0.5
    assert choice.score == 1
    # Two cancer pixels at 0.6 and 0.1, one other at 0.3: 0.3 < t <= 0.6 gives 2/3; t <= 0.1 gives 4/5.
    assert search_threshold({"a": hist([0.1, 0.6], [0.3])}).value == 0.05
    # Both runs give 2/3; the one of 400 is longer than that of 101.
    twice = {"a": hist([0.1, 0.9], [0.5, 0.5])}
    assert search_threshold(twice).value == 0.7


def test_search_threshold_one_value_is_found_exactly() -> None:
    assert search_threshold({"a": hist([0.5], [0.4994])}).value == 0.5
    assert search_threshold({"a": hist([0.9994], [0.9984])}).value == 0.999


@pytest.mark.parametrize("criterion", ["dice_pooled", "dice_mean_slide"])
def test_search_threshold_false_positives_on_benign_slides_count(criterion: str) -> None:
    hists = {"cancer": hist([0.7] * 10, [0.1] * 10), "benign": hist([], [0.65] * 1000)}
    choice = search_threshold(hists, criterion)
    assert (choice.value > 0.65) == (criterion == "dice_pooled")


@pytest.mark.parametrize("criterion", ["dice_pooled", "dice_mean_slide"])
@pytest.mark.parametrize("slides", [{}, {"benign": hist([], [0.2, 0.9])}])
def test_search_threshold_nothing_to_choose_by_is_default(
    criterion: str, slides: dict[str, NDArray[np.int64]], tmp_path: Path
) -> None:
    choice = search_threshold(slides, criterion, "validation")
    assert (choice.value, choice.criterion) == (0.5, "default")
    assert choice.score is None
    assert choice.chosen_on == f"not searched: no cancer pixel among the {len(slides)} slides of validation"
    assert ThresholdChoice.model_validate(choice.model_dump(mode="json")) == choice
    write_threshold_curve(slides, choice, tmp_path)
    assert cv2.imread(str(tmp_path / "threshold_curve.png")) is not None


def test_docs_list_every_criterion() -> None:
    page = (Path(__file__).parents[1] / "docs" / "design.md").read_text(encoding="utf-8")
    for name, rule in CRITERIA.items():
        assert f"| `{name}` | {rule.description} |" in page


def test_search_threshold_unknown_criterion_raises() -> None:
    with pytest.raises(ConfigError, match=r"criterion=f2 is unknown: .*dice_pooled, dice_mean_slide, f1, youden, cost"):
        search_threshold({}, "f2")


@pytest.mark.parametrize("ratio", [0, -1, math.inf, math.nan])
def test_search_threshold_cost_needs_cost_ratio_others_refuse_it(ratio: float) -> None:
    with pytest.raises(ConfigError, match="criterion=cost needs cost_ratio="):
        search_threshold({}, "cost")
    with pytest.raises(ConfigError, match="cost_ratio is not used with criterion=f1: remove it"):
        search_threshold({}, "f1", cost_ratio=2)
    with pytest.raises(ConfigError, match="above 0"):
        search_threshold({}, "cost", cost_ratio=ratio)


COST = Fraction(7, 2)

# Probabilities on the thresholds, just beside them, and anywhere; few of them, so that ties are common.
AT = st.integers(0, BINS - 1).map(lambda k: k / BINS)
PROBABILITY = st.one_of(
    AT, AT.map(lambda p: float(np.nextafter(p, 0))), st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.6, 1.0])
)
SLIDES = st.lists(st.lists(st.tuples(PROBABILITY, st.booleans()), max_size=8), max_size=4)


def search_by_brute_force(slides: list[list[tuple[float, bool]]], criterion: str) -> list[Fraction | None]:
    """Compute the criterion at every threshold, from every pixel and in whole numbers; the greatest is best."""

    def counts(pixels: list[tuple[float, bool]], k: int) -> tuple[int, int, int, int]:
        called = [(prob >= k / BINS, cancer) for prob, cancer in pixels]
        return (
            called.count((True, True)), called.count((True, False)), called.count((False, True)),
            called.count((False, False)),
        )  # fmt: skip

    def score(k: int) -> Fraction | None:
        if criterion == "dice_mean_slide":
            each = [counts(pixels, k) for pixels in slides if any(cancer for _, cancer in pixels)]
            dice = [Fraction(2 * tp, 2 * tp + fp + fn) for tp, fp, fn, _ in each]
            return sum(dice, Fraction()) / len(dice) if dice else None
        tp, fp, fn, tn = counts([pixel for pixels in slides for pixel in pixels], k)
        if tp + fn == 0 or (criterion == "youden" and fp + tn == 0):
            return None
        if criterion == "youden":
            return Fraction(tp, tp + fn) - Fraction(fp, fp + tn)
        if criterion == "cost":
            return -(COST * fn + fp) / (COST * (tp + fn) + fp + tn)
        if criterion == "f1":
            precision, recall = Fraction(tp, max(1, tp + fp)), Fraction(tp, tp + fn)
            return 2 * precision * recall / (precision + recall) if tp else Fraction(0)
        return Fraction(2 * tp, 2 * tp + fp + fn)

    return [score(k) for k in range(BINS)]


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(max_examples=40, deadline=None)
@given(slides=SLIDES)
def test_search_threshold_equals_search_over_all_pixels(criterion: str, slides: list[list[tuple[float, bool]]]) -> None:
    hists = {
        str(number): hist([p for p, cancer in pixels if cancer], [p for p, cancer in pixels if not cancer])
        for number, pixels in enumerate(slides)
    }
    ratio = float(COST) if criterion == "cost" else None
    choice = search_threshold(hists, criterion, cost_ratio=ratio)
    scores = search_by_brute_force(slides, criterion)
    if None in scores:
        assert (choice.value, choice.criterion) == (0.5, "default")
        return
    best = max(score for score in scores if score is not None)
    is_best = "".join("#" if score == best else "." for score in scores)
    longest = max(is_best.split("."), key=len)
    middle = is_best.index(longest) + (len(longest) - 1) // 2
    assert round(choice.value * BINS) == middle
    sign = -1 if criterion == "cost" else 1
    assert choice.score == pytest.approx(sign * float(best), abs=1e-12)
    drawn = score_by_criterion(hists, criterion, ratio)
    np.testing.assert_allclose(drawn, [sign * float(score) for score in scores if score is not None], atol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_search_threshold_interval_equals_searches_on_drawn_groups(criterion: str) -> None:
    hists, _ = random_hists(3, slides=6)
    groups = dict(zip(hists, "abbcde", strict=True))
    ratio = 2.0 if criterion == "cost" else None
    choice = search_threshold(hists, criterion, cost_ratio=ratio, groups=groups, seed=11)
    of_group = [[hist for slide, hist in hists.items() if groups[slide] == group] for group in "abcde"]
    rng, found = np.random.default_rng(11), []
    for _ in range(2000):
        picked = [hist for group in rng.integers(5, size=5) for hist in of_group[group]]
        again = search_threshold({str(i): hist for i, hist in enumerate(picked)}, criterion, cost_ratio=ratio)
        found += [again.value] if again.criterion == criterion else []
    assert choice.interval == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])))
    assert choice.interval is not None
    assert choice.interval[0] <= choice.value <= choice.interval[1]


@pytest.mark.parametrize(("groups", "count"), [("aaaaaa", "is 1"), ("abcdab", "are 4")])
def test_search_threshold_few_groups_have_reason_instead_of_interval(groups: str, count: str) -> None:
    hists, _ = random_hists(0, slides=6)
    choice = search_threshold(hists, groups=dict(zip(hists, groups, strict=True)))
    reason = f"an interval needs at least 5 groups of slides, there {count}"
    assert (choice.interval, choice.interval_note) == (None, reason)
    assert "not given" in search_threshold(hists).interval_note


def test_search_threshold_per_provider_uses_its_own_slides() -> None:
    hists = {"a": hist([0.9], [0.8]), "b": hist([0.4], [0.3]), "c": hist([], [0.95]), "d": hist([0.5], [0.3])}
    hists |= dict.fromkeys("efg", hists["d"])
    providers = {"a": "x", "b": "y", "c": "z", **dict.fromkeys("defg", "y")}
    choice = search_threshold(hists, providers=providers, groups={slide: slide for slide in hists})
    own = {name: search_threshold({s: h for s, h in hists.items() if providers[s] == name}) for name in "xy"}
    for name, alone in own.items():
        assert choice.value_for(name) == choice.by_provider[name].value == alone.value
    assert len(set(map(choice.value_for, "xy"))) == 2
    assert choice.by_provider["y"].interval is not None
    assert choice.by_provider["y"].chosen_on == "y, 5 of validation"
    lone = choice.by_provider["z"]
    assert (lone.value, lone.criterion) == (choice.value, "all_providers")
    assert "no cancer pixel among the 1 slides of z" in lone.chosen_on
    assert choice.value_for("another") == choice.value_for(None) == choice.value
    again = ThresholdChoice.model_validate(json.loads(choice.model_dump_json()))
    assert {name: again.by_provider[name] for name in "xy"} == {name: choice.by_provider[name] for name in "xy"}
    assert again.by_provider["z"] == lone
    assert not search_threshold({"c": hists["c"]}, providers=providers).by_provider


def test_threshold_choice_without_interval_is_read() -> None:
    plain = {
        "value": 0.4,
        "criterion": "dice_pooled",
        "score": 0.7,
        "chosen_on": "here",
        "date": "2026-01-01T00:00:00Z",
    }
    choice = ThresholdChoice.model_validate(plain)
    assert (choice.value_for("radboud"), choice.interval, dict(choice.by_provider)) == (0.4, None, {})


def test_threshold_choice_survives_plain_data() -> None:
    choice = search_threshold(random_hists(0)[0])
    plain = json.loads(json.dumps(choice.model_dump(mode="json")))
    assert {type(value) for value in plain.values()} <= {str, float, int, type(None), dict}
    assert ThresholdChoice.model_validate(plain) == choice
    assert choice.date.endswith("+00:00")


def test_write_threshold_curve_writes_table_and_picture(tmp_path: Path) -> None:
    hists, pixels = random_hists(1)
    choice = search_threshold(hists)
    table, picture = tmp_path / "deep" / "threshold_curve.csv", tmp_path / "deep" / "threshold_curve.png"
    write_threshold_curve(hists, choice, tmp_path / "deep")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == BINS
    row = rows[round(choice.value * BINS)]
    assert float(row["threshold"]) == choice.value
    assert float(row["dice_pooled"]) == choice.score
    prob, target = torch.cat([p for p, _ in pixels]), torch.cat([t for _, t in pixels])
    assert int(row["tp"]) == int(((prob.double() >= choice.value) & target).sum())
    assert rows[-1]["precision"] == ""  # nothing is predicted there: 0 / 0
    image = cv2.imread(str(picture))
    assert image is not None
    assert image.shape[1] > 900
    assert sorted(path.name for path in table.parent.iterdir()) == ["threshold_curve.csv", "threshold_curve.png"]


def test_write_threshold_curve_table_has_criterion_column(tmp_path: Path) -> None:
    hists, _ = random_hists(2, slides=6)
    providers = dict(zip(hists, "ababab", strict=True))
    groups = {slide: slide for slide in hists}
    choice = search_threshold(hists, "cost", cost_ratio=3, providers=providers, groups=groups)
    table = tmp_path / "threshold_curve.csv"
    write_threshold_curve(hists, choice, tmp_path, providers)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "threshold", "dice_pooled", "dice_mean_slide", "youden", "cost", "iou", "precision", "recall", "tp", "fp", "fn",
        "cost_a", "cost_b",
    ]  # fmt: skip
    assert min(float(row["cost"]) for row in rows) == pytest.approx(choice.score)
    for name, own in choice.by_provider.items():
        assert float(rows[round(own.value * BINS)][f"cost_{name}"]) == pytest.approx(own.score)
    row = rows[300]
    total = np.sum(list(hists.values()), axis=0)
    tpr, fpr = (total[k, 300:].sum() / total[k].sum() for k in (0, 1))
    assert float(row["youden"]) == pytest.approx(tpr - fpr)


@pytest.mark.parametrize(("banded", "by_provider"), [(False, False), (True, False), (True, True)])
def test_write_threshold_curve_picture_shows_interval_and_providers(
    tmp_path: Path, banded: bool, by_provider: bool
) -> None:
    hists, _ = random_hists(2, slides=6)
    providers = dict(zip(hists, "ababab", strict=True))
    choice = search_threshold(
        hists,
        groups={slide: slide for slide in hists} if banded else None,
        providers=providers if by_provider else None,
    )
    write_threshold_curve(hists, choice, tmp_path, providers)
    image = cv2.imread(str(tmp_path / "threshold_curve.png"))
    assert image is not None
    band = np.abs(image.astype(int) - [194, 230, 241]).sum(axis=2) < 12  # BGR of the band over white
    assert (band.sum() > 2000) == banded
    orange = np.abs(image.astype(int) - [0, 94, 213]).sum(axis=2) < 30
    assert (orange.sum() > 200) == by_provider
