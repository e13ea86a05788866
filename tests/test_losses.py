"""Losses, on masks with and without cancer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panda.errors import ConfigError
from panda.models.losses import (
    BCEBoundaryLoss,
    BCEDiceLoss,
    BCELoss,
    DiceLoss,
    FocalLoss,
    LovaszLoss,
    TverskyLoss,
    boundary_loss,
    lovasz_hinge,
)

ALL: list[Callable[[], nn.Module]] = [
    BCELoss,
    DiceLoss,
    BCEDiceLoss,
    FocalLoss,
    TverskyLoss,
    partial(TverskyLoss, gamma=0.75),
    LovaszLoss,
    BCEBoundaryLoss,
]


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 1, 16, 16, generator=generator)
    return logits, (torch.rand(3, 1, 16, 16, generator=generator) < 0.3).float()


def test_bce_loss_equals_torch() -> None:
    logits, target = batch()
    torch.testing.assert_close(BCELoss()(logits, target), F.binary_cross_entropy_with_logits(logits, target))
    heavy = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(4.0))
    torch.testing.assert_close(BCELoss(positive_weight=4)(logits, target), heavy)


def test_dice_loss_matches_hand_computed() -> None:
    logits, target = batch()
    p, t = torch.sigmoid(logits).double().flatten(), target.double().flatten()
    pixels = len(p)
    expected = 1 - (2 * (p * t).sum() + 0.05 * pixels) / (p.sum() + t.sum() + 0.05 * pixels)
    torch.testing.assert_close(DiceLoss(smooth=0.05)(logits, target).double(), expected, rtol=1e-5, atol=0)


def test_dice_loss_right_is_0_and_wrong_is_1() -> None:
    _, target = batch()
    assert float(DiceLoss()(100 * (2 * target - 1), target)) < 1e-6
    assert float(DiceLoss()(-100 * (2 * target - 1), target)) > 0.97


def test_bce_dice_loss_is_sum() -> None:
    logits, target = batch()
    both = BCEDiceLoss(bce_weight=0.5, dice_weight=2, positive_weight=3, smooth=0.1)(logits, target)
    expected = 0.5 * BCELoss(3)(logits, target) + 2 * DiceLoss(0.1)(logits, target)
    torch.testing.assert_close(both, expected)


def by_pixel(seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Tensor, Tensor]:
    """Probability and truth of each pixel in float64, for sums written out by hand."""
    logits, target = batch(seed)
    return 1 / (1 + np.exp(-logits.double().numpy().ravel())), target.numpy().ravel(), logits, target


def test_focal_loss_matches_hand_computed() -> None:
    p, t, logits, target = by_pixel()
    p_t, alpha_t = np.where(t == 1, p, 1 - p), np.where(t == 1, 0.3, 0.7)
    expected = np.mean(-alpha_t * (1 - p_t) ** 1.5 * np.log(p_t))
    assert float(FocalLoss(alpha=0.3, gamma=1.5)(logits, target)) == pytest.approx(expected, rel=1e-5)
    half = FocalLoss(alpha=0.5, gamma=0)(logits, target)
    torch.testing.assert_close(2 * half, BCELoss()(logits, target))


@pytest.mark.parametrize("gamma", [1.0, 0.75])
def test_tversky_loss_matches_hand_computed(gamma: float) -> None:
    p, t, logits, target = by_pixel()
    tp, fp, fn, part = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum(), 0.02 * p.size
    expected = (1 - (tp + part) / (tp + 0.2 * fp + 0.9 * fn + part)) ** gamma
    loss = TverskyLoss(false_positive=0.2, false_negative=0.9, gamma=gamma, smooth=0.02)(logits, target)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(TverskyLoss(0.5, 0.5, 1, 0.005)(logits, target), DiceLoss(0.01)(logits, target))


def test_lovasz_loss_of_hard_decisions_is_jaccard_loss() -> None:
    """With hinge errors of 0 or 2 alone the extension takes 2 × (1 - Jaccard index) of the wrong pixels."""
    rng = np.random.default_rng(0)
    truth, called = rng.random((4, 1, 16, 16)) < 0.3, rng.random((4, 1, 16, 16)) < 0.4
    logits = torch.from_numpy(np.where(called, 1.0, -1.0)).float()
    loss = LovaszLoss(bce_weight=0)(logits, torch.from_numpy(truth).float())
    # Each missed cancer pixel leaves the intersection, each false one joins the union.
    jaccard = (truth & called).sum() / (truth | called).sum()
    assert float(loss) == pytest.approx(2 * (1 - jaccard), rel=1e-5)


def test_lovasz_hinge_equals_jaccard_loss_over_prefixes() -> None:
    """As the paper defines it: errors by falling size, times how much each next wrong pixel adds to the loss."""
    rng = np.random.default_rng(3)
    for share in (0.0, 0.3, 1.0):
        logits, truth = rng.normal(size=60), rng.random(60) < share
        errors = 1 - logits * np.where(truth, 1, -1)
        order = np.argsort(-errors)
        before = total = 0.0
        for count in range(1, 61):
            wrong = np.zeros(60, bool)
            wrong[order[:count]] = True
            called = truth ^ wrong
            loss = 1 - (truth & called).sum() / (truth | called).sum()
            total += max(errors[order[count - 1]], 0) * (loss - before)
            before = loss
        args = [torch.from_numpy(values).float().view(1, 1, 6, 10) for values in (logits, truth)]
        assert float(lovasz_hinge(*args)) == pytest.approx(total, rel=1e-5)


def test_lovasz_hinge_million_pixels_keep_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 1024, 1024, generator=generator)
    target = (torch.rand(1, 1, 1024, 1024, generator=generator) < 0.15).float()
    single = logits.clone().requires_grad_()
    lovasz_hinge(single, target).backward()  # type: ignore[no-untyped-call]
    assert single.grad is not None
    wrong = 1 - logits * (2 * target - 1) > 0
    assert bool((single.grad[wrong] != 0).all())


def test_boundary_loss_outline_skips_ignored_pixels() -> None:
    target = torch.zeros(1, 1, 8, 20)
    target[..., 5:15] = 1
    target[..., 15:] = -1
    logits = torch.zeros_like(target, requires_grad=True)
    boundary_loss(logits, target).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    row = logits.grad[0, 0, 4]
    assert row[5] == 0
    assert bool((row[6:15].diff() < 0).all())  # the farther from the one outline, the more
    assert not row[15:].any()


def test_boundary_loss_matches_brute_force() -> None:
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(3, 1, 9, 14))).float()
    target = torch.zeros(3, 1, 9, 14)
    target[0, 0, 2:7, 3:9] = 1
    target[1] = torch.from_numpy(rng.random((1, 9, 14)) < 0.4).float()  # the third has no cancer
    pixels = np.argwhere(np.ones((9, 14)))
    far = np.linalg.norm(pixels[:, None] - pixels[None], axis=-1)
    total = 0.0
    for logit, mask in zip(logits.double().numpy(), target.numpy() == 1, strict=True):
        inside = mask.ravel()
        if not inside.any():
            continue
        out, into = far[:, inside].min(axis=1), far[:, ~inside].min(axis=1)
        distance = np.where(inside, 1 - into, out) / np.hypot(9, 14)
        total += (distance / (1 + np.exp(-logit.ravel()))).sum()
    assert float(boundary_loss(logits, target)) == pytest.approx(total / logits.numel(), rel=1e-5)
    assert float(boundary_loss(logits[2:], target[2:])) == 0
    assert float(boundary_loss(logits[:1], torch.ones_like(target[:1]))) == 0


@pytest.mark.parametrize("make", ALL)
def test_losses_ignored_pixels_change_nothing(make: Callable[[], nn.Module]) -> None:
    """Neither the loss nor any gradient; what they hold is of no matter."""
    logits, target = batch()
    target[:, :, :, 10:] = -1
    first = logits.clone().requires_grad_()
    second = torch.where(target < 0, torch.full_like(logits, 7.0), logits).requires_grad_()
    losses = [make()(one, target) for one in (first, second)]
    torch.testing.assert_close(losses[0], losses[1])
    for one, loss in zip((first, second), losses, strict=True):
        loss.backward()
        assert one.grad is not None
        assert not one.grad[target < 0].any()
        assert one.grad[target >= 0].any()
    torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize(
    "make", [m for m in ALL if m is not BCEBoundaryLoss]
)  # the outline moves where part is cut off
def test_losses_ignored_pixels_equal_removed_pixels(make: Callable[[], nn.Module]) -> None:
    logits, target = batch()
    target[:, :, :, 10:] = -1
    torch.testing.assert_close(make()(logits, target), make()(logits[..., :10], target[..., :10]))


@pytest.mark.parametrize("make", ALL)
def test_losses_all_ignored_batch_has_zero_gradient(make: Callable[[], nn.Module]) -> None:
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    loss = make()(logits, torch.full((2, 1, 8, 8), -1.0))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("cancer", ["some", "none", "all"])
def test_losses_gradients_match_finite_differences(make: Callable[[], nn.Module], cancer: str) -> None:
    logits, target = batch(2)
    logits, target = logits[:2, :, :4, :4].clone(), target[:2, :, :4, :4].clone()
    target = target if cancer == "some" else torch.full_like(target, float(cancer == "all"))
    loss = make()
    logits.requires_grad_()
    loss(logits, target).backward()
    assert logits.grad is not None
    step = 1e-2
    for index in ((0, 0, 1, 2), (1, 0, 3, 0), (1, 0, 0, 0)):
        ends = []
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[index] += sign * step
            ends.append(float(loss(moved, target)))
        assert float(logits.grad[index]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=2e-4)


@pytest.mark.parametrize("make", ALL)
def test_losses_all_cancer_raises_probabilities(make: Callable[[], nn.Module]) -> None:
    logits = torch.zeros(2, 1, 64, 64, requires_grad=True)
    make()(logits, torch.ones_like(logits)).backward()
    assert logits.grad is not None
    assert bool((logits.grad < 0).all())


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("start", [-4.0, 0.0, 4.0])
def test_losses_all_benign_lowers_probabilities(make: Callable[[], nn.Module], start: float) -> None:
    logits = torch.full((4, 1, 256, 256), start, requires_grad=True)
    loss = make()(logits, torch.zeros(4, 1, 256, 256))
    loss.backward()
    assert logits.grad is not None
    assert bool((logits.grad > 0).all())
    assert float(loss.detach()) > 0
    # Of the order of one part a pixel, as cross-entropy's, and not of its square.
    assert float(logits.grad.sum()) > 1e-6


def test_dice_loss_all_benign_converges() -> None:
    logits = torch.zeros(2, 1, 64, 64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = DiceLoss()(logits, torch.zeros_like(logits))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.95
    assert losses[-1] < 0.1
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", [0.0, 1.0])
def test_losses_half_precision_does_not_overflow(
    make: Callable[[], nn.Module], dtype: torch.dtype, part: float
) -> None:
    """Sums over 1,000,000 pixels: far past the 65,504 that float16 holds."""
    logits = torch.full((4, 1, 512, 512), 20.0, dtype=dtype, requires_grad=True)
    target = torch.full((4, 1, 512, 512), part)
    with torch.autocast("cpu", dtype=dtype):
        loss = make()(logits, target)
    assert loss.dtype == torch.float32
    (loss * 1024).backward()
    assert bool(torch.isfinite(loss.detach()))
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("make", ALL)
def test_losses_other_target_shape_raises(make: Callable[[], nn.Module]) -> None:
    logits, target = batch()
    with pytest.raises(ValueError, match="target is"):
        make()(logits, target[:, 0])


@pytest.mark.parametrize(
    ("make", "options", "word"),
    [
        (BCELoss, {"positive_weight": 0}, "positive_weight=0"),
        (DiceLoss, {"smooth": 0}, "smooth=0"),
        (BCEDiceLoss, {"bce_weight": -1}, "bce_weight=-1"),
        (BCEDiceLoss, {"bce_weight": 0, "dice_weight": 0}, "may both be 0"),
        (FocalLoss, {"alpha": 1}, "alpha=1"),
        (FocalLoss, {"gamma": -1}, "gamma=-1"),
        (FocalLoss, {"gamma": 0.5}, r"gamma=0\.5"),
        (TverskyLoss, {"false_positive": -0.1}, r"false_positive=-0\.1"),
        (TverskyLoss, {"gamma": 0}, "gamma=0"),
        (TverskyLoss, {"smooth": 0}, "smooth=0"),
        (LovaszLoss, {"lovasz_weight": 0, "bce_weight": 0}, "may both be 0"),
        (BCEBoundaryLoss, {"boundary_weight": 0}, "boundary_weight=0"),
    ],
)
def test_losses_invalid_options_raise(make: Callable[..., nn.Module], options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make(**options)
