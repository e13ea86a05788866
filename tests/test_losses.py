"""Losses, and what they do where there is no cancer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panda.errors import ConfigError
from panda.models.losses import BCEDiceLoss, BCELoss, DiceLoss

ALL: list[Callable[[], nn.Module]] = [BCELoss, DiceLoss, BCEDiceLoss]


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 1, 16, 16, generator=generator)
    return logits, (torch.rand(3, 1, 16, 16, generator=generator) < 0.3).float()


def test_bce_is_torchs() -> None:
    logits, target = batch()
    torch.testing.assert_close(BCELoss()(logits, target), F.binary_cross_entropy_with_logits(logits, target))
    heavy = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(4.0))
    torch.testing.assert_close(BCELoss(positive_weight=4)(logits, target), heavy)


def test_dice_by_hand() -> None:
    logits, target = batch()
    p, t = torch.sigmoid(logits).double().flatten(), target.double().flatten()
    pixels = len(p)
    expected = 1 - (2 * (p * t).sum() + 0.05 * pixels) / (p.sum() + t.sum() + 0.05 * pixels)
    torch.testing.assert_close(DiceLoss(smooth=0.05)(logits, target).double(), expected, rtol=1e-5, atol=0)


def test_dice_is_near_zero_when_right_and_near_one_when_wrong() -> None:
    _, target = batch()
    assert float(DiceLoss()(100 * (2 * target - 1), target)) < 1e-6
    assert float(DiceLoss()(-100 * (2 * target - 1), target)) > 0.97


def test_the_sum_of_both() -> None:
    logits, target = batch()
    both = BCEDiceLoss(bce_weight=0.5, dice_weight=2, positive_weight=3, smooth=0.1)(logits, target)
    expected = 0.5 * BCELoss(3)(logits, target) + 2 * DiceLoss(0.1)(logits, target)
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("start", [-4.0, 0.0, 4.0])
def test_all_benign_pushes_probabilities_down(make: Callable[[], nn.Module], start: float) -> None:
    logits = torch.full((4, 1, 256, 256), start, requires_grad=True)
    loss = make()(logits, torch.zeros(4, 1, 256, 256))
    loss.backward()
    assert logits.grad is not None
    assert bool((logits.grad > 0).all())
    assert float(loss.detach()) > 0
    # Of the order of one part a pixel, as cross-entropy's, and not of its square.
    assert float(logits.grad.sum()) > 1e-4


def test_all_benign_dice_teaches() -> None:
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
def test_half_precision(make: Callable[[], nn.Module], dtype: torch.dtype, part: float) -> None:
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
def test_shapes_that_would_broadcast(make: Callable[[], nn.Module]) -> None:
    logits, target = batch()
    with pytest.raises(ValueError, match="target is"):
        make()(logits, target[:, 0])


@pytest.mark.parametrize(
    ("make", "options", "word"),
    [
        (BCELoss, {"positive_weight": 0}, "positive_weight=0"),
        (DiceLoss, {"smooth": 0}, "smooth=0"),
        (BCEDiceLoss, {"bce_weight": -1}, "bce_weight=-1"),
        (BCEDiceLoss, {"bce_weight": 0, "dice_weight": 0}, "both be 0"),
    ],
)
def test_faults(make: Callable[..., nn.Module], options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make(**options)
