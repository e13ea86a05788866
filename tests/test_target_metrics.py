"""Scores of classes, numbers and risks against scikit-learn, SciPy and loops over all pairs."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)

from panda.models.grade_losses import CoxLoss
from panda.tasks.target_metrics import (
    Statistics,
    average_aurocs,
    compute_concordance,
    list_class_statistics,
    list_number_statistics,
)

RNG = np.random.default_rng(5)
COUNTS = RNG.integers(0, 4, size=(3, 60))
"""How often each of 60 slides counts, in three draws."""


def repeat(values: np.ndarray, draw: int) -> np.ndarray:
    return np.repeat(values, COUNTS[draw])


def compute(statistics: Statistics, name: str) -> list[float]:
    found: list[float] = statistics[name](COUNTS.astype(np.float64)).tolist()
    return found


def test_class_statistics_match_sklearn_on_repeated_slides() -> None:
    truth, predicted = RNG.integers(0, 4, size=(2, 60))
    found = list_class_statistics(truth, predicted, 4)
    for draw in range(3):
        pair = repeat(truth, draw), repeat(predicted, draw)
        assert compute(found, "accuracy")[draw] == pytest.approx((pair[0] == pair[1]).mean())
        assert compute(found, "balanced_accuracy")[draw] == pytest.approx(balanced_accuracy_score(*pair))
        assert compute(found, "kappa")[draw] == pytest.approx(cohen_kappa_score(*pair))
        assert compute(found, "qwk")[draw] == pytest.approx(cohen_kappa_score(*pair, weights="quadratic"))


def test_class_statistics_of_many_classes_fit_into_memory() -> None:
    truth, predicted = np.arange(60) * 30, np.arange(60) * 30 + (np.arange(60) % 2)
    assert list_class_statistics(truth, predicted, 1800)["accuracy"](np.ones(60)) == pytest.approx(0.5)


def test_average_aurocs_match_sklearn_one_against_rest() -> None:
    truth, prob = RNG.integers(0, 3, size=60), RNG.dirichlet(np.ones(3), size=60).round(1)
    prob /= prob.sum(axis=1, keepdims=True)
    found = average_aurocs(truth, prob, COUNTS.astype(np.float64))
    for draw in range(3):
        labels = repeat(truth, draw)
        expected = np.mean(
            [roc_auc_score(labels == k, np.repeat(prob[:, k].round(12), COUNTS[draw])) for k in range(3)]
        )
        assert found[draw] == pytest.approx(expected)
    two = np.stack([1 - prob[:, 1], prob[:, 1]], axis=1).round(12)
    once = np.ones(60)
    assert average_aurocs((truth > 0).astype(int), two, once) == pytest.approx(roc_auc_score(truth > 0, two[:, 1]))
    assert math.isnan(average_aurocs(np.zeros(60, int), prob, once))


def test_number_statistics_match_sklearn_and_scipy() -> None:
    given = RNG.normal(100, 5, size=60).round()
    predicted = (given + RNG.normal(0, 4, size=60)).round()
    found = list_number_statistics(given, predicted)
    for draw in range(3):
        pair = repeat(given, draw), repeat(predicted, draw)
        assert compute(found, "mae")[draw] == pytest.approx(mean_absolute_error(*pair))
        assert compute(found, "r2")[draw] == pytest.approx(r2_score(*pair))
        assert compute(found, "pearson")[draw] == pytest.approx(pearsonr(*pair).statistic)
        assert compute(found, "spearman")[draw] == pytest.approx(spearmanr(*pair).statistic)


def test_number_statistics_of_constants_are_undefined() -> None:
    once = np.ones(5)
    constant = list_number_statistics(np.full(5, 0.1), np.arange(5.0))
    assert all(math.isnan(constant[name](once)) for name in ("r2", "pearson", "spearman"))
    assert constant["mae"](once) == pytest.approx(np.abs(np.arange(5) - 0.1).mean())


def test_number_statistics_of_large_numbers_match_those_of_small() -> None:
    given = RNG.normal(size=60)
    pair = given, given + RNG.normal(size=60)
    small, large = (list_number_statistics(*(1e3 * side + start for side in pair)) for start in (0.0, 1e9))
    for name in small:
        assert compute(large, name) == pytest.approx(compute(small, name), rel=1e-4)


def count_pairs(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Compute Harrell's index by a loop over all pairs."""
    right = pairs = 0.0
    for i, j in product(range(len(time)), repeat=2):
        if event[i] == 1 and (time[i] < time[j] or (time[i] == time[j] and event[j] == 0)):
            pairs += 1
            right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return right / pairs if pairs else math.nan


def test_concordance_matches_loop_with_ties_and_repeats() -> None:
    time, event, risk = RNG.integers(1, 12, size=60), RNG.integers(0, 2, size=60), RNG.integers(0, 9, size=60)
    sides = [side.astype(np.float64) for side in (time, event, risk, COUNTS)]
    found = compute_concordance(sides[0], sides[1], sides[2], sides[3])
    for draw in range(3):
        expected = count_pairs(repeat(time, draw), repeat(event, draw), repeat(risk, draw))
        assert found[draw] == pytest.approx(expected)


def test_concordance_known_orders() -> None:
    time, once = np.arange(1.0, 6.0), np.ones(5)
    event = np.ones(5)
    assert compute_concordance(time, event, -time, once) == 1
    assert compute_concordance(time, event, time, once) == 0
    assert compute_concordance(time, event, np.zeros(5), once) == 0.5
    assert math.isnan(compute_concordance(time, np.zeros(5), time, once))


def test_concordance_of_many_slides_is_computed_in_parts() -> None:
    time, risk = RNG.permutation(1200).astype(np.float64), RNG.normal(size=1200)
    found = compute_concordance(time, np.ones(1200), risk, np.ones(1200))
    later = time[:, None] < time[None, :]
    assert found == pytest.approx((risk[:, None] > risk[None, :])[later].mean())


def compute_breslow(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Compute the loss by a loop over the events."""
    terms = [
        np.log(sum(np.exp(risk[j]) for j in range(len(time)) if time[j] >= time[i])) - risk[i]
        for i in range(len(time))
        if event[i]
    ]
    return float(np.mean(terms))


def test_cox_loss_matches_loop_with_equal_times() -> None:
    risk, time = RNG.normal(size=20), RNG.integers(1, 6, size=20).astype(np.float64)
    event = RNG.integers(0, 2, size=20)
    label = torch.tensor(np.stack([time, event], axis=1), dtype=torch.float32)
    found = CoxLoss()(torch.tensor(risk, dtype=torch.float32), label)
    assert found.item() == pytest.approx(compute_breslow(risk, time, event), rel=1e-5)


def compute_efron(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Compute the loss by a loop over the times of events, with the likelihood as a product (Efron 1977)."""
    likelihood = 1.0
    for moment in {*time[event == 1].tolist()}:
        died = [np.exp(r) for r, t, e in zip(risk, time, event, strict=True) if t == moment and e]
        exposed = sum(np.exp(r) for r, t in zip(risk, time, strict=True) if t >= moment)
        for number, own in enumerate(died):
            likelihood *= own / (exposed - number * sum(died) / len(died))
    return float(-np.log(likelihood) / event.sum())


@pytest.mark.parametrize("latest", [2, 6, 400])
def test_cox_loss_by_efron_matches_loop(latest: int) -> None:
    """With different times both rules agree."""
    rng = np.random.default_rng(latest)
    risk, time, event = rng.normal(size=20), rng.integers(1, latest, size=20), rng.integers(0, 2, size=20)
    label = torch.tensor(np.stack([time, event], axis=1), dtype=torch.float32)
    logits = torch.tensor(risk, dtype=torch.float32)
    found = CoxLoss("efron")(logits, label).item()
    assert found == pytest.approx(compute_efron(risk, time, event), rel=1e-5)
    assert (found == pytest.approx(CoxLoss()(logits, label).item(), rel=1e-6)) == (
        len({*time[event == 1]}) == event.sum()
    )


def test_cox_loss_by_efron_of_large_risks_has_a_gradient() -> None:
    risk = torch.tensor([500.0, -500.0, 400.0], requires_grad=True)
    CoxLoss("efron")(risk, torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])).backward()
    assert risk.grad is not None
    assert risk.grad.isfinite().all()
    with pytest.raises(ValueError, match="ties is 'exact'; give breslow or efron"):
        CoxLoss("exact")  # type: ignore[arg-type]


def test_cox_loss_without_event_is_zero_with_gradient() -> None:
    risk = torch.tensor([500.0, -500.0], requires_grad=True)
    loss = CoxLoss()(risk, torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    loss.backward()
    assert loss.item() == 0
    assert risk.grad is not None
    assert risk.grad.tolist() == [0, 0]


def test_cox_loss_finds_the_hazard_that_made_the_times() -> None:
    """Exponential times of hazard exp(2 x) give a coefficient near 2."""
    torch.manual_seed(0)
    x = torch.randn(2000)
    time = torch.empty(2000).exponential_() / torch.exp(2 * x)
    label = torch.stack([time, (time < 2).float()], dim=1)
    label[:, 0].clamp_(max=2)
    beta = torch.zeros((), requires_grad=True)
    optim = torch.optim.LBFGS([beta], max_iter=50)

    def closure() -> torch.Tensor:
        optim.zero_grad()
        loss: torch.Tensor = CoxLoss()(beta * x, label)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optim.step(closure)  # type: ignore[no-untyped-call]
    assert beta.item() == pytest.approx(2, abs=0.1)
