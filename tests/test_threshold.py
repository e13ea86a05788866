"""The search for a threshold, and what is written of it."""

import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panda.errors import ConfigError
from panda.tasks.metrics import BINS, pixel_histogram
from panda.tasks.threshold import ThresholdChoice, search_threshold, write_threshold_curve


def hist(cancer: list[float], other: list[float]) -> NDArray[np.int64]:
    prob = torch.tensor([*cancer, *other], dtype=torch.float64)
    target = torch.tensor([True] * len(cancer) + [False] * len(other))
    return pixel_histogram(prob, target).numpy()


def random_hists(
    seed: int, slides: int = 4
) -> tuple[dict[str, NDArray[np.int64]], list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    pixels = []
    for number in range(slides):
        target = torch.rand(300, generator=generator) < (0.0 if number == 0 else 0.2 * number)
        pixels.append((torch.sigmoid(torch.randn(300, generator=generator) + 2 * target - 2), target))
    return {f"s{i}": pixel_histogram(p, t).numpy() for i, (p, t) in enumerate(pixels)}, pixels


def dice(prob: torch.Tensor, target: torch.Tensor, k: int) -> float:
    predicted = prob.double() >= k / BINS
    return 2 * float((predicted & target).sum()) / float(predicted.sum() + target.sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_all(seed: int) -> None:
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


def test_ties_take_the_middle_of_the_longest_run() -> None:
    # Dice is 1 for 0.2 < k / 1000 <= 0.8: bins 201 … 800.
    choice = search_threshold({"a": hist([0.8, 0.9], [0.1, 0.2])})
    assert choice.value == 0.5
    assert choice.score == 1
    # Two cancer pixels at 0.6 and 0.1, one other at 0.3: 0.3 < t <= 0.6 gives 2/3; t <= 0.1 gives 4/5.
    assert search_threshold({"a": hist([0.1, 0.6], [0.3])}).value == 0.05
    # Both runs give 2/3; the one of 400 is longer than that of 101.
    twice = {"a": hist([0.1, 0.9], [0.5, 0.5])}
    assert search_threshold(twice).value == 0.7


def test_one_value_is_found_exactly() -> None:
    assert search_threshold({"a": hist([0.5], [0.4994])}).value == 0.5
    assert search_threshold({"a": hist([0.9994], [0.9984])}).value == 0.999


@pytest.mark.parametrize("criterion", ["dice_pooled", "dice_mean_slide"])
def test_false_positives_on_benign_slides(criterion: str) -> None:
    hists = {"cancer": hist([0.7] * 10, [0.1] * 10), "benign": hist([], [0.65] * 1000)}
    choice = search_threshold(hists, criterion)  # type: ignore[arg-type]
    assert (choice.value > 0.65) == (criterion == "dice_pooled")


@pytest.mark.parametrize("criterion", ["dice_pooled", "dice_mean_slide"])
@pytest.mark.parametrize("slides", [{}, {"benign": hist([], [0.2, 0.9])}])
def test_nothing_to_choose_by(criterion: str, slides: dict[str, NDArray[np.int64]], tmp_path: Path) -> None:
    choice = search_threshold(slides, criterion, "validation")  # type: ignore[arg-type]
    assert (choice.value, choice.criterion) == (0.5, "default")
    assert math.isnan(choice.score)
    assert choice.chosen_on == f"not searched: no cancer pixel among the {len(slides)} slides of validation"
    assert choice.plain()["score"] is None
    assert math.isnan(ThresholdChoice.from_plain(choice.plain()).score)
    write_threshold_curve(slides, choice, tmp_path / "curve.csv", tmp_path / "curve.png")
    assert cv2.imread(str(tmp_path / "curve.png")) is not None


def test_another_criterion() -> None:
    with pytest.raises(ConfigError, match=r"criterion=f2: .*dice_pooled, dice_mean_slide"):
        search_threshold({}, "f2")  # type: ignore[arg-type]


def test_plain_is_plain() -> None:
    choice = search_threshold(random_hists(0)[0])
    plain = json.loads(json.dumps(choice.plain()))
    assert {type(value) for value in plain.values()} <= {str, float, int, type(None)}
    assert ThresholdChoice.from_plain(plain) == choice
    assert choice.date.endswith("+00:00")


def test_table_and_picture(tmp_path: Path) -> None:
    hists, pixels = random_hists(1)
    choice = search_threshold(hists)
    table, picture = tmp_path / "deep" / "threshold_curve.csv", tmp_path / "deep" / "threshold_curve.png"
    write_threshold_curve(hists, choice, table, picture)
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
