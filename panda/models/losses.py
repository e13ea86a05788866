"""Losses over logits for one class, cancer. Sums are taken in float32, whatever autocast asks for.

Every loss is called as `loss(logits, target)`:

- logits: (N, 1, h, w), any floating type;
- target: (N, 1, h, w), 1 where there is cancer, 0 elsewhere, and below 0 (-1) where a pixel is to be ignored.

Each gives a scalar float32; a batch of which nothing counts gives 0. Where a batch has no cancer, each still pushes
probabilities down (`lovasz` through the cross-entropy beside it).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from panda.errors import OptionError


def binary_cross_entropy(logits: Tensor, target: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Mean cross-entropy over the pixels of a batch.

    Args:
        logits: (N, 1, h, w).
        target: (N, 1, h, w), see the module's text.
        positive_weight: How much more a pixel of cancer counts.

    Returns:
        Scalar float32.

    Raises:
        ValueError: Shapes that differ.
    """
    logits, target, counts = _checked(logits, target)
    weight = torch.tensor(positive_weight, device=logits.device)
    return _mean(F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none"), counts)


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Cross-entropy in which pixels that are right already count little (Lin et al. 2017, eq. 5).

        -alpha_t (1 - p_t)^gamma log p_t, the mean over the pixels

    Args:
        logits: (N, 1, h, w).
        target: (N, 1, h, w), see the module's text.
        alpha: Weight of cancer pixels; others have 1 - alpha. Lin et al. take 0.25 where nearly all is background.
        gamma: 0 is cross-entropy (times alpha_t).

    Returns:
        Scalar float32.

    Raises:
        ValueError: Shapes that differ.
    """
    logits, target, counts = _checked(logits, target)
    return _mean(sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma, reduction="none"), counts)


def soft_tversky_index(
    logits: Tensor, target: Tensor, false_positive: float, false_negative: float, smooth: float = 0.01
) -> Tensor:
    """The soft Tversky index of a whole batch, in a form that still teaches where there is no cancer.

    With means over the pixels of the batch, tp = mean(p t), fp = mean(p (1 - t)), fn = mean((1 - p) t):

        (tp + smooth) / (tp + false_positive fp + false_negative fn + smooth)

    (Salehi et al. 2017). With both weights 0.5 it is Dice. The usual form (Milletari et al. 2016, V-Net, with sums
    and a smoothing of 1 or less) is of no use on a batch without cancer: per image it has no gradient there, and over
    a batch one of 1 / pixels². Others drop such batches. Here the smoothing is a *part of the pixels*, so on an
    all-benign batch one minus the index is f / (f + smooth), f = false_positive mean(p): 0 when nothing is predicted,
    near 1 when much is, and its gradient pushes every probability down, the harder the fewer there are left. The price
    is that cancer of much less than `smooth` of a batch's pixels weighs little; cross-entropy beside it sees to that.

    Args:
        logits: (N, 1, h, w).
        target: (N, 1, h, w), see the module's text.
        false_positive: Weight of what is called cancer and is not.
        false_negative: Weight of cancer that is missed.
        smooth: Above 0, as a part of the batch's pixels.

    Returns:
        Scalar float32 in (0, 1].

    Raises:
        ValueError: Shapes that differ.
    """
    logits, target, counts = _checked(logits, target)
    probability = torch.sigmoid(logits)
    right = _mean(probability * target, counts)
    wrong = _mean(probability * (1 - target), counts)
    missed = _mean((1 - probability) * target, counts)
    return (right + smooth) / (right + false_positive * wrong + false_negative * missed + smooth)


def soft_dice_loss(logits: Tensor, target: Tensor, smooth: float = 0.01) -> Tensor:
    """One minus the soft Dice of a whole batch: `soft_tversky_index` with both weights 0.5.

    With i = mean(p t), a = mean(p), b = mean(t) it is 1 - (2 i + smooth) / (a + b + smooth).

    Args:
        logits: (N, 1, h, w).
        target: (N, 1, h, w), see the module's text.
        smooth: Above 0, as a part of the batch's pixels.

    Returns:
        Scalar float32 in [0, 1).

    Raises:
        ValueError: Shapes that differ.
    """
    return 1 - soft_tversky_index(logits, target, 0.5, 0.5, smooth / 2)


def lovasz_hinge(logits: Tensor, target: Tensor) -> Tensor:
    """The convex surrogate of one minus the Jaccard index of a whole batch (Berman et al. 2018, eq. 9 and algorithm 1).

    The hinge errors 1 - logit × (±1), above 0, by falling size, times what each adds to the Jaccard loss. With I and U,
    intersection and union once that pixel is wrong too, a pixel of cancer adds 1 / U and another one I / (U (U - 1)):
    taken as differences of sums, as is usual, most of it is lost to rounding in batches of a million pixels.

    Where there is no cancer it sees the one most wrong pixel only.

    Args:
        logits: (N, 1, h, w).
        target: (N, 1, h, w), see the module's text.

    Returns:
        Scalar float32, 0 or more.

    Raises:
        ValueError: Shapes that differ.
    """
    logits, target, counts = _checked(logits, target)
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
    """How far from the outline of the cancer the wrong pixels lie (Kervadec et al. 2019, eq. 5).

        mean(p d), d the distance to the outline, negative inside of the cancer

    Distances are Euclidean, in parts of the patch's diagonal, so that the loss lies in [-1, 1] at any patch size. A
    patch without cancer has no outline: its d is 0, and the cross-entropy beside this loss has to see to it; likewise
    one that is all cancer. Ignored pixels do not count, and there is no outline towards them.

    Args:
        logits: (N, 1, h, w).
        target: (N, 1, h, w), see the module's text.

    Returns:
        Scalar float32.

    Raises:
        ValueError: Shapes that differ.
    """
    logits, target, counts = _checked(logits, target)
    masks = zip(target[:, 0].bool().cpu().numpy(), counts[:, 0].bool().cpu().numpy(), strict=True)
    distance = torch.from_numpy(np.stack([_signed_distance(*mask) for mask in masks]))
    return _mean(torch.sigmoid(logits) * distance[:, None].to(logits.device), counts)


def _signed_distance(cancer: NDArray[np.bool_], counts: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(h, w) float32 distance from the outline in parts of the diagonal: over 0 outside, 0 or less inside."""
    other = counts & ~cancer
    if not cancer.any() or not other.any():
        return np.zeros(cancer.shape, np.float32)
    outside, inside = (
        cv2.distanceTransform((~part).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for part in (cancer, other)
    )
    # As the authors do: the outline is the innermost row of cancer pixels, which is at distance 0.
    signed = np.where(cancer, -np.maximum(inside - 1, 0), outside)
    return np.asarray(signed / math.hypot(*cancer.shape), np.float32)


class BCELoss(nn.Module):
    """Cross-entropy; see `binary_cross_entropy`.

    Args:
        positive_weight: How much more a pixel of cancer counts, above 0.

    Raises:
        OptionError: A weight that is not above 0.
    """

    def __init__(self, positive_weight: float = 1.0) -> None:
        super().__init__()
        _require(positive_weight > 0, f"positive_weight={positive_weight}: must be above 0")
        self.positive_weight = float(positive_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the scalar loss; arguments and errors as in the module's text."""
        with torch.autocast(logits.device.type, enabled=False):
            return binary_cross_entropy(logits, target, self.positive_weight)


class FocalLoss(nn.Module):
    """See `focal_loss`.

    Args:
        alpha: Weight of cancer pixels, in (0, 1).
        gamma: 0, or 1 and more: between them the slope has no bound where a pixel is right.

    Raises:
        OptionError: A number out of range.
    """

    def __init__(self, alpha: float = 0.5, gamma: float = 2.0) -> None:
        super().__init__()
        _require(0 < alpha < 1, f"alpha={alpha}: must lie in (0, 1); 0.5 weighs cancer and other pixels alike")
        _require(gamma == 0 or gamma >= 1, f"gamma={gamma}: must be 0, or 1 and more")
        self.alpha, self.gamma = float(alpha), float(gamma)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the scalar loss; arguments and errors as in the module's text."""
        with torch.autocast(logits.device.type, enabled=False):
            return focal_loss(logits, target, self.alpha, self.gamma)


class DiceLoss(nn.Module):
    """Soft Dice over the batch; see `soft_tversky_index` for what it does where there is no cancer.

    Args:
        smooth: Above 0, as a part of the batch's pixels.

    Raises:
        OptionError: A smoothing that is not above 0.
    """

    def __init__(self, smooth: float = 0.01) -> None:
        super().__init__()
        _require_smooth(smooth)
        self.smooth = float(smooth)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the scalar loss; arguments and errors as in the module's text."""
        with torch.autocast(logits.device.type, enabled=False):
            return soft_dice_loss(logits, target, self.smooth)


class TverskyLoss(nn.Module):
    """(1 - Tversky index)^gamma over the batch; see `soft_tversky_index`.

    A gamma under 1 is the focal Tversky loss (Abraham and Khan 2019, who take 1 / gamma between 1 and 3, best 4/3):
    it goes on teaching where most is right. Below an error of 1e-4 it teaches no more: its slope has no bound there.

    Args:
        false_positive: Weight of what is called cancer and is not, 0 or more.
        false_negative: Weight of missed cancer, 0 or more; not both 0.
        gamma: Above 0.
        smooth: Above 0, as a part of the batch's pixels.

    Raises:
        OptionError: A number out of range.
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

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the scalar loss; arguments and errors as in the module's text."""
        with torch.autocast(logits.device.type, enabled=False):
            error = 1 - soft_tversky_index(logits, target, self.false_positive, self.false_negative, self.smooth)
            return error if self.gamma == 1 else error.clamp_min(1e-4) ** self.gamma


class BCEDiceLoss(nn.Module):
    """`bce_weight` × cross-entropy + `dice_weight` × Dice loss.

    Args:
        bce_weight: At least 0.
        dice_weight: At least 0; not both 0.
        positive_weight: See `BCELoss`.
        smooth: See `DiceLoss`.

    Raises:
        OptionError: A weight under 0, or both 0, or the parts' own faults.
    """

    def __init__(
        self,
        bce_weight: float = 1.0,
        dice_weight: float = 1.0,
        positive_weight: float = 1.0,
        smooth: float = 0.01,
    ) -> None:
        super().__init__()
        _require_weights("bce_weight", bce_weight, "dice_weight", dice_weight)
        self.bce = BCELoss(positive_weight)
        self.dice = DiceLoss(smooth)
        self.bce_weight = float(bce_weight)
        self.dice_weight = float(dice_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the scalar loss; arguments and errors as in the module's text."""
        bce: Tensor = self.bce(logits, target)
        dice: Tensor = self.dice(logits, target)
        return self.bce_weight * bce + self.dice_weight * dice


class LovaszLoss(nn.Module):
    """`lovasz_weight` × Lovász hinge over the batch (Berman et al. 2018) + `bce_weight` × cross-entropy.

    See `lovasz_hinge`; since it sees one pixel of a batch without cancer, cross-entropy stands beside it.

    Args:
        lovasz_weight: At least 0.
        bce_weight: At least 0; not both 0.

    Raises:
        OptionError: A weight under 0, or both 0.
    """

    def __init__(self, lovasz_weight: float = 1.0, bce_weight: float = 0.5) -> None:
        super().__init__()
        _require_weights("lovasz_weight", lovasz_weight, "bce_weight", bce_weight)
        self.lovasz_weight, self.bce_weight = float(lovasz_weight), float(bce_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the scalar loss; arguments and errors as in the module's text."""
        with torch.autocast(logits.device.type, enabled=False):
            bce = binary_cross_entropy(logits, target)
            return self.lovasz_weight * lovasz_hinge(logits, target) + self.bce_weight * bce


class BCEBoundaryLoss(nn.Module):
    """Cross-entropy + `boundary_weight` × boundary loss; see `boundary_loss`.

    Args:
        boundary_weight: Above 0.
        positive_weight: See `BCELoss`.

    Raises:
        OptionError: A weight that is not above 0.
    """

    def __init__(self, boundary_weight: float = 1.0, positive_weight: float = 1.0) -> None:
        super().__init__()
        _require(boundary_weight > 0, f"boundary_weight={boundary_weight}: must be above 0; 0 is loss=bce")
        self.bce = BCELoss(positive_weight)
        self.boundary_weight = float(boundary_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the scalar loss; arguments and errors as in the module's text."""
        bce: Tensor = self.bce(logits, target)
        with torch.autocast(logits.device.type, enabled=False):
            return bce + self.boundary_weight * boundary_loss(logits, target)


def _checked(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and target in float32, ignored pixels as 0, and which pixels count.

    Broadcasting (N, h, w) against (N, 1, h, w) would silently compare all with all: it is refused.
    """
    if target.shape != logits.shape:
        raise ValueError(f"target is {tuple(target.shape)} and logits are {tuple(logits.shape)}: must be the same")
    counts = (target >= 0).float()
    return logits.float(), target.float().clamp_min(0), counts


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean over the pixels that count; 0 where none does."""
    return (values * counts).sum() / counts.sum().clamp_min(1)


def _require(fine: bool, fault: str) -> None:
    if not fine:
        raise OptionError(fault)


def _require_weights(name: str, weight: float, other_name: str, other: float) -> None:
    fine = weight >= 0 and other >= 0 and weight + other > 0
    _require(fine, f"{name}={weight}, {other_name}={other}: neither may be under 0, nor both be 0")


def _require_smooth(smooth: float) -> None:
    _require(smooth > 0, f"smooth={smooth}: must be above 0, as without it a batch of no cancer has no loss")
