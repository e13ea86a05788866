"""Losses of several classes with partial labels, against sums written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from panda.models.losses import (
    BCEBoundaryLoss,
    BCEDiceLoss,
    BCELoss,
    DiceLoss,
    FocalLoss,
    LovaszLoss,
    TverskyLoss,
    measure_cross_entropy,
)
from panda.models.partial_labels import ANY_CANCER, IGNORED, merge_target

Array = NDArray[Any]
Region = Callable[[Array, Array, Array], float]

ALL: dict[str, Callable[[], nn.Module]] = {
    "bce": partial(BCELoss, positive_weight=2.0),
    "focal": partial(FocalLoss, alpha=0.3, gamma=2.0),
    "dice": DiceLoss,
    "tversky": partial(TverskyLoss, gamma=0.75),
    "bce_dice": BCEDiceLoss,
    "lovasz": LovaszLoss,
    "bce_boundary": BCEBoundaryLoss,
}
VALUES = {"mixed": (0, 1, 2, 3, -1, -2), "karolinska": (0, -2, -1), "benign": (0, -1), "one": (3,), "ignored": (-1,)}


def batch(values: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 4, 12, 10, generator=generator)
    blocks = torch.randint(0, len(values), (2, 1, 6, 5), generator=generator)
    target = torch.tensor(values, dtype=torch.float32)[blocks].repeat_interleave(2, 2).repeat_interleave(2, 3)
    return logits, target


def softmax(logits: Tensor) -> Array:
    exact = np.exp(logits.double().numpy())
    return np.asarray(exact / exact.sum(1, keepdims=True))


def label_probability(p: Array, t: Array) -> tuple[Array, Array]:
    """Probability that each label allows, and whether it is cancer, of the pixels that count."""
    found = []
    for n, y, x in np.ndindex(t.shape):
        if t[n, y, x] == IGNORED:
            continue
        of_label = p[n, 1:, y, x].sum() if t[n, y, x] == ANY_CANCER else p[n, int(t[n, y, x]), y, x]
        found.append((of_label, t[n, y, x] != 0))
    table = np.array(found).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def regions(p: Array, t: Array, loss: Region) -> float:
    """Mean of a loss over cancer and each class of cancer that occurs; pixels that do not say are left out."""
    found = [loss(p[:, 1:].sum(1), t != 0, t != IGNORED)]
    found += [loss(p[:, k], t == k, t >= 0) for k in range(1, p.shape[1]) if (t == k).any()]
    return float(np.mean(found))


def mean(values: Array) -> float:
    return float(values.mean()) if values.size else 0.0


def tversky(p: Array, t: Array, counts: Array, *, fp: float, fn: float, gamma: float, smooth: float) -> float:
    p, t = p[counts], t[counts]
    right, wrong, missed = mean(p * t), mean(p * ~t), mean((1 - p) * t)
    index = (right + smooth) / (right + fp * wrong + fn * missed + smooth)
    return float((1 - index) ** gamma)


def lovasz(p: Array, t: Array, counts: Array) -> float:
    """Berman et al. 2018: errors from large to small, times the rise of the Jaccard loss that each adds."""
    p, t = p[counts], t[counts]
    errors = 1 - np.log(p / (1 - p)) * np.where(t, 1, -1)
    order = np.argsort(-errors, kind="stable")
    t = t[order]
    jaccard = [1 - (t.sum() - t[:k].sum()) / max(t.sum() + (~t[:k]).sum(), 1) for k in range(len(t) + 1)]
    if len(t) and not t.any():
        jaccard[0] = 0.0
    rises = np.diff(jaccard)
    return float(np.maximum(errors[order], 0) @ rises) if len(t) else 0.0


def boundary(p: Array, t: Array, counts: Array) -> float:
    distance = np.zeros(p.shape)
    for n in range(len(p)):
        inside, outside = t[n] & counts[n], counts[n] & ~t[n]
        if inside.any() and outside.any():
            to_inside, to_outside = distance_transform_edt(~inside), distance_transform_edt(~outside)
            distance[n] = np.where(inside, -np.maximum(to_outside - 1, 0), to_inside) / np.hypot(*p.shape[1:])
    return mean((p * distance)[counts])


def oracle(name: str, logits: Tensor, target: Tensor) -> float:
    p, t = softmax(logits), target[:, 0].numpy()
    of_label, cancer = label_probability(p, t)
    entropy = mean(-np.log(of_label))
    dice = regions(p, t, partial(tversky, fp=0.5, fn=0.5, gamma=1.0, smooth=0.005))
    if name == "bce":
        return mean(-np.log(of_label) * np.where(cancer, 2, 1))
    if name == "focal":
        return mean(-np.where(cancer, 0.3, 0.7) * (1 - of_label) ** 2 * np.log(of_label))
    if name == "tversky":
        return regions(p, t, partial(tversky, fp=0.3, fn=0.7, gamma=0.75, smooth=0.01))
    if name == "lovasz":
        return regions(p, t, lovasz) + 0.5 * entropy
    return {"dice": dice, "bce_dice": entropy + dice, "bce_boundary": entropy + regions(p, t, boundary)}[name]


@pytest.mark.parametrize("labels", VALUES)
@pytest.mark.parametrize("name", ALL)
def test_loss_of_classes_equals_oracle(name: str, labels: str) -> None:
    for seed in range(3):
        logits, target = batch(VALUES[labels], seed)
        expected = oracle(name, logits, target)
        assert float(ALL[name]()(logits, target)) == pytest.approx(expected, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_loss_of_classes_order_changes_nothing(name: str) -> None:
    logits, target = batch(VALUES["mixed"])
    expected = ALL[name]()(logits, target)
    for order in permutations((1, 2, 3)):
        renumbered = target.clone()
        for new, old in enumerate(order, 1):
            renumbered[target == old] = new
        found = ALL[name]()(logits[:, [0, *order]], renumbered)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", ["karolinska", "benign", "ignored"])
@pytest.mark.parametrize("name", ALL)
def test_loss_of_classes_labels_without_pattern_are_binary(name: str, labels: str) -> None:
    logits, target = batch(VALUES[labels])
    one = logits.double()
    one = (one[:, 1:].logsumexp(1, keepdim=True) - one[:, :1]).float()
    binary = ALL[name]()(one, merge_target(target))
    torch.testing.assert_close(ALL[name]()(logits, target), binary, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", VALUES)
@pytest.mark.parametrize("name", ALL)
def test_loss_of_classes_ignored_pixels_have_no_gradient(name: str, labels: str) -> None:
    logits, target = batch(VALUES[labels])
    logits.requires_grad_()
    ALL[name]()(logits, target).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[(target == IGNORED).expand_as(logits)].any()


@pytest.mark.parametrize("name", ALL)
def test_loss_of_classes_any_cancer_leaves_patterns_open(name: str) -> None:
    logits, target = batch(VALUES["karolinska"])
    with torch.no_grad():
        logits[:, 1:] = logits[:, 1:2]
    logits.requires_grad_()
    ALL[name]()(logits, target).backward()
    assert logits.grad is not None
    for number in (2, 3):
        torch.testing.assert_close(logits.grad[:, number], logits.grad[:, 1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_loss_of_classes_learns_patterns(name: str) -> None:
    _, target = batch((0, 1, 2, 3, -2))
    logits = torch.zeros(2, 4, 12, 10, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        ALL[name]()(logits, target).backward()
        optimizer.step()
    predicted = logits.argmax(1)[:, None]
    known = target >= 0
    assert (predicted[known] == target[known]).all()
    assert (predicted[~known] > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_loss_of_classes_half_precision_is_float32(name: str) -> None:
    logits, target = batch(VALUES["mixed"])
    rounded = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = ALL[name]()(rounded, target)
    torch.testing.assert_close(found, ALL[name]()(rounded.float(), target))


def test_measure_cross_entropy_of_pixels() -> None:
    logits, target = batch(VALUES["mixed"])
    found, counts = measure_cross_entropy(logits, target), target != IGNORED
    expected = -np.log(label_probability(softmax(logits), target[:, 0].numpy())[0])
    np.testing.assert_allclose(found[counts], expected, rtol=1e-5, atol=1e-6)


def test_merge_target_of_cancer_or_not_is_the_target() -> None:
    target = torch.tensor([0.0, 1.0, -1.0, 0.25])
    assert torch.equal(merge_target(target), target)
    assert merge_target(torch.tensor([0.0, 1.0, 2.0, 3.0, -1.0, -2.0])).tolist() == [0, 1, 1, 1, -1, 1]
