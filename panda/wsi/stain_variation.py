"""Variation of a stain: other amounts and directions of haematoxylin and eosin, as another laboratory would get.

Optical density adds up over stains, see `panda.wsi.stain_normalization`. Only the two stains of a pixel change. The
rest of its optical density (blood, ink, pigment, noise) stays, so that nothing is lost. Glass does not change at all:
it is not magenta, and only magenta pixels count as stained (see `panda.wsi.appearance`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from panda.wsi.stain_normalization import REFERENCE, WHITE

GLASS_MAGENTA, STAINED_MAGENTA = 10, 28
"""Grey values of green below the larger of red and blue: at most the first in glass, at least the second in full stain.

A pixel between them changes in part, so that no edge appears.
"""
_MOST = 3.0  # amount of a stain: darker px are black in at least one channel, and their colour is noise

_STAINS = torch.tensor([REFERENCE.haematoxylin, REFERENCE.eosin])
_AMOUNTS = np.linalg.pinv(_STAINS.double().numpy().T).tolist()  # of each stain, by the density of each channel


def vary_stain(images: Tensor, strength: Tensor, turn: Tensor) -> Tensor:
    """Change haematoxylin and eosin of pictures.

    Args:
        images: (N, 3, h, w) float32 RGB, grey values from 0 to 255.
        strength: Factors of the amounts of haematoxylin and eosin, (N, 2); 1 is neutral.
        turn: Added to their directions in optical density before these get their old length, (N, 2, 3); 0 is neutral.

    Returns:
        (N, 3, h, w) float32. Glass is unchanged, and so is all if both are neutral.
    """
    old = _STAINS.to(images.device, non_blocking=True)
    new = old + turn
    new = new * (old.norm(dim=1, keepdim=True) / new.norm(dim=2, keepdim=True))
    change = (old - new * strength[..., None])[..., None, None]  # (N, 2, 3, 1, 1)
    red, green, blue = images.chunk(3, 1)
    share = torch.maximum(red, blue).sub_(green).sub_(GLASS_MAGENTA).div_(STAINED_MAGENTA - GLASS_MAGENTA).clamp_(0, 1)
    share = (3 - 2 * share).mul_(share).mul_(share)  # without a kink at either end
    density = images.clamp(1, WHITE).div_(WHITE).log_().neg_().chunk(3, 1)
    values = torch.zeros_like(images)
    for stain, weights in enumerate(_AMOUNTS):
        amount = (density[0] * weights[0]).add_(density[1], alpha=weights[1]).add_(density[2], alpha=weights[2])
        values.addcmul_(amount.clamp_(0, _MOST).mul_(share), change[:, stain])
    return values.exp_().mul_(images).clamp_(0, WHITE)
