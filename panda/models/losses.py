"""Losses over logits of cancer, or of several classes. They are computed in float32, also under autocast.

Every module is called as `loss(logits, target)`:

- logits: (N, 1, h, w), or (N, channels, h, w) of several classes, any floating dtype;
- target: (N, 1, h, w), 1 for cancer, 0 for other pixels, below 0 (-1) for pixels to ignore. With several classes it has
  their numbers, see `panda.models.partial_labels`.

`binary_cross_entropy`, `focal_loss` and `measure_cross_entropy` take both, the other functions one channel only.

The result is a scalar float32, 0 for a batch whose pixels are all ignored. On a batch without cancer every loss still
pushes probabilities down (`lovasz` through its cross-entropy). Shapes that differ raise a `ValueError`, and a module
refuses a number out of range with an `OptionError`. `smooth` is a share of the batch's pixels, above 0.
"""

from __future__ import annotations

import math
from functools import partial

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from panda.errors import OptionError
from panda.models.partial_labels import average_regions, compute_label_probability, merge_target


def binary_cross_entropy(logits: Tensor, target: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Compute the mean cross-entropy over the pixels; a cancer pixel has the weight `positive_weight`, others 1.

    With several classes it is the cross-entropy of the softmax.
    """
    if logits.shape[1] > 1:
        entropy = measure_cross_entropy(logits, target)
        _, cancer, counts = _prepare(entropy, merge_target(target))
        return _average(entropy * torch.where(cancer > 0, positive_weight, 1), counts)
    logits, target, counts = _prepare(logits, target)
    weight = torch.full((), positive_weight, device=logits.device)  # a copy from the CPU would wait for the GPU
    return _average(F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none"), counts)


def measure_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the cross-entropy of each pixel, (N, 1, h, w); ignored pixels have any value."""
    if logits.shape[1] > 1:
        return -compute_label_probability(logits, target)
    return F.binary_cross_entropy_with_logits(logits.float(), target.float().clamp_min(0), reduction="none")


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Compute cross-entropy in which pixels that are right already count little (Lin et al. 2017, eq. 5).

        -alpha_t (1 - p_t)^gamma log p_t, the mean over the pixels

    `alpha` is the weight of cancer pixels; others have 1 - alpha. Lin et al. use 0.25 for a rare class. `gamma` is the
    focus on wrong pixels; 0 gives cross-entropy times alpha_t. With several classes p_t is the probability that the
    softmax gives to the label, and alpha is the weight of each class of cancer.
    """
    if logits.shape[1] > 1:
        entropy = measure_cross_entropy(logits, target)
        _, cancer, counts = _prepare(entropy, merge_target(target))
        focus = -torch.expm1(-entropy)
        return _average(torch.where(cancer > 0, alpha, 1 - alpha) * focus**gamma * entropy, counts)
    logits, target, counts = _prepare(logits, target)
    return _average(sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma, reduction="none"), counts)


def soft_tversky_index(
    logits: Tensor, target: Tensor, false_positive: float, false_negative: float, smooth: float = 0.01
) -> Tensor:
    """Compute the soft Tversky index of a whole batch, in (0, 1], with a gradient on batches without cancer.

    With means over the pixels of the batch, tp = mean(p t), fp = mean(p (1 - t)), fn = mean((1 - p) t):

        (tp + smooth) / (tp + false_positive fp + false_negative fn + smooth)

    (Salehi et al. 2017). With both weights 0.5 it is Dice. The usual form (Milletari et al. 2016, V-Net) has sums and a
    smoothing of at most 1. On a batch without cancer its gradient is 1 / pixels², so others drop such batches. Here the
    smoothing is a *share of the pixels*. On a batch without cancer one minus the index is f / (f + smooth) with
    f = false_positive mean(p). It is 0 if nothing is predicted and near 1 if much is. Its gradient pushes every
    probability down, and more so the fewer are left. The price is that cancer of much less than `smooth` of a batch's
    pixels has little weight. Add cross-entropy to correct that.
    """
    logits, target, counts = _prepare(logits, target)
    probability = torch.sigmoid(logits)
    right = _average(probability * target, counts)
    wrong = _average(probability * (1 - target), counts)
    missed = _average((1 - probability) * target, counts)
    return (right + smooth) / (right + false_positive * wrong + false_negative * missed + smooth)


def soft_dice_loss(logits: Tensor, target: Tensor, smooth: float = 0.01) -> Tensor:
    """Compute one minus the soft Dice of a whole batch, in [0, 1): `soft_tversky_index` with both weights 0.5.

    With i = mean(p t), a = mean(p), b = mean(t) it is 1 - (2 i + smooth) / (a + b + smooth).
    """
    return 1 - soft_tversky_index(logits, target, 0.5, 0.5, smooth / 2)


def lovasz_hinge(logits: Tensor, target: Tensor) -> Tensor:
    """Compute a convex surrogate of one minus the Jaccard index of a whole batch (Berman et al. 2018, algorithm 1).

    Hinge errors 1 - logit × (±1) above 0 are sorted from large to small. Each is multiplied by what its pixel adds to
    the Jaccard loss. With intersection I and union U after that pixel, a cancer pixel adds 1 / U and another one
    I / (U (U - 1)). The usual difference of sums would lose most of that to rounding in batches of a million pixels.
    On a batch without cancer only the most wrong pixel counts.
    """
    logits, target, counts = _prepare(logits, target)
    logits, target = logits[counts > 0], target[counts > 0]
    if not len(target):
        return logits.sum()
    errors, order = torch.sort(1 - logits * (2 * target - 1), descending=True)
    cancer = target[order] > 0
    both = cancer.sum() - cancer.cumsum(0)
    either = cancer.sum() + (~cancer).cumsum(0)
    below = (either * (either - 1)).clamp_min(1)
    adds = torch.where(cancer, 1 / either, both / below)
    if not bool(cancer.any()):
        adds[0] = 1.0
    return torch.relu(errors) @ adds.to(errors.dtype)


def boundary_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Compute how far wrong pixels are from the outline of the cancer (Kervadec et al. 2019, eq. 5).

        mean(p d), d the distance to the outline, negative inside the cancer

    Distances are Euclidean, as a share of the patch's diagonal, so the loss is in [-1, 1] at any patch size. A patch
    without cancer, or with cancer only, has no outline and d = 0: it needs cross-entropy beside this loss. Ignored
    pixels do not count, and the outline has no part towards them.
    """
    logits, target, counts = _prepare(logits, target)
    masks = zip(target[:, 0].bool().cpu().numpy(), counts[:, 0].bool().cpu().numpy(), strict=True)
    distance = torch.from_numpy(np.stack([_measure_distance(*mask) for mask in masks]))
    return _average(torch.sigmoid(logits) * distance[:, None].to(logits.device), counts)


def _measure_distance(cancer: NDArray[np.bool_], counts: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the distance to the outline as a share of the diagonal, (h, w); above 0 outside, at most 0 inside."""
    other = counts & ~cancer
    if not cancer.any() or not other.any():
        return np.zeros(cancer.shape, np.float32)
    outside, inside = (
        cv2.distanceTransform((~part).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for part in (cancer, other)
    )
    # As in the authors' program, the outermost row of cancer pixels is the outline, at distance 0.
    signed = np.where(cancer, -np.maximum(inside - 1, 0), outside)
    return np.asarray(signed / math.hypot(*cancer.shape), np.float32)


class _Loss(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the scalar loss, see the module."""
        with torch.autocast(logits.device.type, enabled=False):
            return self._compute(logits, target)

    def _compute(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


class BCELoss(_Loss):
    """Cross-entropy; see `binary_cross_entropy`. `positive_weight` must be above 0."""

    def __init__(self, positive_weight: float = 1.0) -> None:
        super().__init__()
        _require(positive_weight > 0, f"positive_weight={positive_weight}: must be above 0")
        self.positive_weight = float(positive_weight)

    def _compute(self, logits: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy(logits, target, self.positive_weight)


class FocalLoss(_Loss):
    """Compute `focal_loss`. Alpha is in (0, 1).

    Gamma is 0 or at least 1, because the slope of a pixel that is right is unbounded between them.
    """

    def __init__(self, alpha: float = 0.5, gamma: float = 2.0) -> None:
        super().__init__()
        _require(0 < alpha < 1, f"alpha={alpha}: must be above 0 and below 1; 0.5 is an equal weight")
        _require(gamma == 0 or gamma >= 1, f"gamma={gamma}: must be 0 or at least 1")
        self.alpha, self.gamma = float(alpha), float(gamma)

    def _compute(self, logits: Tensor, target: Tensor) -> Tensor:
        return focal_loss(logits, target, self.alpha, self.gamma)


class DiceLoss(_Loss):
    """Soft Dice over the batch; see `soft_tversky_index` for batches without cancer, `average_regions` for classes."""

    def __init__(self, smooth: float = 0.01) -> None:
        super().__init__()
        _require_smooth(smooth)
        self.smooth = float(smooth)

    def _compute(self, logits: Tensor, target: Tensor) -> Tensor:
        return average_regions(partial(soft_dice_loss, smooth=self.smooth), logits, target)


_LINE_END = 1e-4
"""The error from which a Tversky loss is a power of it."""


class TverskyLoss(_Loss):
    """(1 - Tversky index)^gamma over the batch; see `soft_tversky_index`.

    A gamma below 1 gives the focal Tversky loss (Abraham and Khan 2019, with 1 / gamma from 1 to 3, best 4/3). It still
    learns if most pixels are right. Below an error of 1e-4 it is a straight line to 0, because its slope would be
    unbounded.

    Args:
        false_positive: Weight of false positives, at least 0.
        false_negative: Weight of missed cancer, at least 0; not both 0.
        gamma: Above 0.
        smooth: See the module.
    """

    def __init__(
        self, false_positive: float = 0.3, false_negative: float = 0.7, gamma: float = 1.0, smooth: float = 0.01
    ) -> None:
        super().__init__()
        _require_weights("false_positive", false_positive, "false_negative", false_negative)
        _require(gamma > 0, f"gamma={gamma}: must be above 0")
        _require_smooth(smooth)
        self.false_positive, self.false_negative = float(false_positive), float(false_negative)
        self.gamma, self.smooth = float(gamma), float(smooth)

    def _compute(self, logits: Tensor, target: Tensor) -> Tensor:
        return average_regions(self._compute_region, logits, target)

    def _compute_region(self, logits: Tensor, target: Tensor) -> Tensor:
        error = 1 - soft_tversky_index(logits, target, self.false_positive, self.false_negative, self.smooth)
        line = error * _LINE_END ** (self.gamma - 1)
        return torch.where(error > _LINE_END, error.clamp_min(_LINE_END) ** self.gamma, line)


class BCEDiceLoss(_Loss):
    """`bce_weight` × cross-entropy + `dice_weight` × Dice loss. Weights are at least 0, and not both 0."""

    def __init__(
        self, bce_weight: float = 1.0, dice_weight: float = 1.0, positive_weight: float = 1.0, smooth: float = 0.01
    ) -> None:
        super().__init__()
        _require_weights("bce_weight", bce_weight, "dice_weight", dice_weight)
        self.bce = BCELoss(positive_weight)
        self.dice = DiceLoss(smooth)
        self.bce_weight, self.dice_weight = float(bce_weight), float(dice_weight)

    def _compute(self, logits: Tensor, target: Tensor) -> Tensor:
        bce: Tensor = self.bce(logits, target)
        dice: Tensor = self.dice(logits, target)
        return self.bce_weight * bce + self.dice_weight * dice


class LovaszLoss(_Loss):
    """`lovasz_weight` × Lovász hinge over the batch + `bce_weight` × cross-entropy. Weights are at least 0, not both 0.

    The hinge uses one pixel of a batch without cancer, so cross-entropy is added; see `lovasz_hinge`.
    """

    def __init__(self, lovasz_weight: float = 1.0, bce_weight: float = 0.5) -> None:
        super().__init__()
        _require_weights("lovasz_weight", lovasz_weight, "bce_weight", bce_weight)
        self.lovasz_weight, self.bce_weight = float(lovasz_weight), float(bce_weight)

    def _compute(self, logits: Tensor, target: Tensor) -> Tensor:
        bce = binary_cross_entropy(logits, target)
        return self.lovasz_weight * average_regions(lovasz_hinge, logits, target) + self.bce_weight * bce


class BCEBoundaryLoss(_Loss):
    """Cross-entropy + `boundary_weight` (above 0) × boundary loss; see `boundary_loss`."""

    def __init__(self, boundary_weight: float = 1.0, positive_weight: float = 1.0) -> None:
        super().__init__()
        _require(boundary_weight > 0, f"boundary_weight={boundary_weight}: must be above 0; for 0 use loss=bce")
        self.bce = BCELoss(positive_weight)
        self.boundary_weight = float(boundary_weight)

    def _compute(self, logits: Tensor, target: Tensor) -> Tensor:
        bce: Tensor = self.bce(logits, target)
        return bce + self.boundary_weight * average_regions(boundary_loss, logits, target)


def _prepare(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and target in float32, ignored pixels as 0, and which pixels count.

    Shapes must be equal, because (N, h, w) against (N, 1, h, w) would broadcast to all pairs.
    """
    if target.shape != logits.shape:
        raise ValueError(f"target is {tuple(target.shape)} and logits are {tuple(logits.shape)}: must be the same")
    counts = (target >= 0).float()
    return logits.float(), target.float().clamp_min(0), counts


def _average(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean over the pixels that count; 0 without any."""
    return (values * counts).sum() / counts.sum().clamp_min(1)


def _require(fine: bool, fault: str) -> None:
    if not fine:
        raise OptionError(fault)


def _require_weights(name: str, weight: float, other_name: str, other: float) -> None:
    fine = weight >= 0 and other >= 0 and weight + other > 0
    _require(fine, f"{name}={weight}, {other_name}={other}: neither may be below 0, nor may both be 0")


def _require_smooth(smooth: float) -> None:
    _require(smooth > 0, f"smooth={smooth}: must be above 0, because otherwise a batch without cancer has no loss")
