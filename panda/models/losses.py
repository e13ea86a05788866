"""Losses over logits for one class, cancer. Sums are taken in float32, whatever autocast asks for.

Every loss is called as `loss(logits, target)`:

- logits: (N, 1, h, w), any floating type;
- target: (N, 1, h, w), 1 where there is cancer and 0 elsewhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panda.errors import ConfigError


def binary_cross_entropy(logits: Tensor, target: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Mean cross-entropy over the pixels of a batch.

    Args:
        logits: (N, 1, h, w).
        target: (N, 1, h, w) in {0, 1}.
        positive_weight: How much more a pixel of cancer counts.

    Returns:
        Scalar float32.

    Raises:
        ValueError: Shapes that differ.
    """
    logits, target = _checked(logits, target)
    return F.binary_cross_entropy_with_logits(
        logits, target, pos_weight=torch.tensor(positive_weight, device=logits.device)
    )


def soft_dice_loss(logits: Tensor, target: Tensor, smooth: float = 0.01) -> Tensor:
    """One minus the soft Dice of a whole batch, in a form that still teaches where there is no cancer.

    With means over the pixels of the batch, i = mean(p t), a = mean(p), b = mean(t):

        loss = 1 - (2 i + smooth) / (a + b + smooth)

    The usual form (Milletari et al. 2016, V-Net, with sums and a smoothing of 1 or less) is of no use on a
    batch without cancer: per image it has no gradient there, and over a batch one of 1 / pixels². Others
    drop such batches. Here the smoothing is a *part of the pixels*, so on an all-benign batch the loss is
    a / (a + smooth): 0 when nothing is predicted, near 1 when much is, and its gradient pushes every
    probability down, the harder the fewer there are left. The price is that cancer of much less than `smooth`
    of a batch's pixels weighs little; cross-entropy beside it sees to that.

    Args:
        logits: (N, 1, h, w).
        target: (N, 1, h, w) in {0, 1}.
        smooth: Above 0, as a part of the batch's pixels.

    Returns:
        Scalar float32 in [0, 1).

    Raises:
        ValueError: Shapes that differ.
    """
    logits, target = _checked(logits, target)
    probability = torch.sigmoid(logits)
    both = (probability * target).mean()
    either = (probability + target).mean()
    return 1.0 - (2.0 * both + smooth) / (either + smooth)


class BCELoss(nn.Module):
    """Cross-entropy; see `binary_cross_entropy`.

    Args:
        positive_weight: How much more a pixel of cancer counts, above 0.

    Raises:
        ConfigError: A weight that is not above 0.
    """

    def __init__(self, positive_weight: float = 1.0) -> None:
        super().__init__()
        if not positive_weight > 0:
            raise ConfigError(f"positive_weight={positive_weight}: must be above 0")
        self.positive_weight = float(positive_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the scalar loss; arguments and errors as in the module's text."""
        with torch.autocast(logits.device.type, enabled=False):
            return binary_cross_entropy(logits, target, self.positive_weight)


class DiceLoss(nn.Module):
    """Soft Dice over the batch; see `soft_dice_loss` for what it does where there is no cancer.

    Args:
        smooth: Above 0, as a part of the batch's pixels.

    Raises:
        ConfigError: A smoothing that is not above 0.
    """

    def __init__(self, smooth: float = 0.01) -> None:
        super().__init__()
        if not smooth > 0:
            raise ConfigError(f"smooth={smooth}: must be above 0, as without it a batch of no cancer has no loss")
        self.smooth = float(smooth)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the scalar loss; arguments and errors as in the module's text."""
        with torch.autocast(logits.device.type, enabled=False):
            return soft_dice_loss(logits, target, self.smooth)


class BCEDiceLoss(nn.Module):
    """`bce_weight` × cross-entropy + `dice_weight` × Dice loss.

    Args:
        bce_weight: At least 0.
        dice_weight: At least 0; not both 0.
        positive_weight: See `BCELoss`.
        smooth: See `DiceLoss`.

    Raises:
        ConfigError: A weight under 0, or both 0, or the parts' own faults.
    """

    def __init__(
        self,
        bce_weight: float = 1.0,
        dice_weight: float = 1.0,
        positive_weight: float = 1.0,
        smooth: float = 0.01,
    ) -> None:
        super().__init__()
        if not (bce_weight >= 0 and dice_weight >= 0 and bce_weight + dice_weight > 0):
            raise ConfigError(
                f"bce_weight={bce_weight}, dice_weight={dice_weight}: neither may be under 0, nor both be 0"
            )
        self.bce = BCELoss(positive_weight)
        self.dice = DiceLoss(smooth)
        self.bce_weight = float(bce_weight)
        self.dice_weight = float(dice_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the scalar loss; arguments and errors as in the module's text."""
        bce: Tensor = self.bce(logits, target)
        dice: Tensor = self.dice(logits, target)
        return self.bce_weight * bce + self.dice_weight * dice


def _checked(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """In float32; broadcasting (N, h, w) against (N, 1, h, w) would silently compare all with all."""
    if target.shape != logits.shape:
        raise ValueError(f"target is {tuple(target.shape)} and logits are {tuple(logits.shape)}: must be the same")
    return logits.float(), target.float()
