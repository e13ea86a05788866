"""Choose the training patches of an epoch: balanced by cancer, or hard patches more often.

`panda.data.loaders.DrawSampler` seeds the random generator of a choice by run and epoch, so that an epoch is the same
after a resume, and on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SamplerName = Literal["uniform", "balanced", "hard"]


def find_kinds(class_fractions: NDArray[np.floating], tumor_fraction: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the kind of each patch, (N,), by which `BalancedDraws` draws: its class of cancer that is the rarest.

    Args:
        class_fractions: Share of each of the k classes of cancer in each patch, (N, k).
        tumor_fraction: Share of cancer in each patch, (N,).

    Returns:
        0 without cancer, the number of the class from 1 on, or k + 1 for a patch with cancer of unknown class only.
    """
    has = class_fractions > 0
    kinds = np.where(tumor_fraction > 0, has.shape[1] + 1, 0)
    for number in np.argsort(-has.sum(0), kind="stable").tolist():  # the rarest comes last and counts
        kinds[has[:, number]] = number + 1
    return kinds


class BalancedDraws:
    """Draw as many patches as there are, with a given share of cancer, and some of every slide.

    Each kind of cancer has the same part of that share. The patches of a kind are drawn in proportion to the square
    root of their number on a slide. A slide with 1,000 patches gets ten times the draws of a slide with 10, not a
    hundred times. Each slide with such patches gets at least one draw. A patch is drawn again only after all others of
    its slide and kind.

    Args:
        kinds: Kind of each patch, (N,) integers or bool: 0 without cancer, see `find_kinds`.
        slides: Number of the slide of each patch, (N,).
        share: Share of the draws that have cancer, in [0, 1]; it has no effect if all patches or none have cancer.
    """

    def __init__(
        self, kinds: NDArray[np.integer[Any] | np.bool_], slides: NDArray[np.integer[Any]], share: float
    ) -> None:
        self._count = len(kinds)
        cancer_kinds = np.unique(kinds[kinds > 0]).tolist()
        self._kinds = [
            [np.flatnonzero((slides == slide) & (kinds == kind)) for slide in np.unique(slides[kinds == kind])]
            for kind in (*cancer_kinds, 0)
        ]
        share = share if cancer_kinds and self._kinds[-1] else float(bool(cancer_kinds))
        cancer = round(share * self._count)
        parts = [len(part) for part in np.array_split(np.arange(cancer), len(cancer_kinds))] if cancer_kinds else []
        self._draws = [
            _compute_quotas([len(patches) for patches in kind], draws)
            for kind, draws in zip(self._kinds, (*parts, self._count - cancer), strict=True)
        ]

    def __call__(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the patches of an epoch, in the order of the draws."""
        drawn = [
            np.concatenate([rng.permutation(patches) for _ in range(-(-quota // len(patches)))])[:quota]
            for kind, quotas in zip(self._kinds, self._draws, strict=True)
            for patches, quota in zip(kind, quotas, strict=True)
            if quota
        ]
        return np.asarray(rng.permutation(np.concatenate(drawn)), np.int64)


def _compute_quotas(sizes: Sequence[int], draws: int) -> list[int]:
    """Divide draws in proportion to the square root of the sizes, at least one each if there are enough."""
    if not sizes or draws == 0:
        return [0] * len(sizes)
    least = int(draws >= len(sizes))
    weight = np.sqrt(sizes)
    exact = least + (draws - least * len(sizes)) * weight / weight.sum()
    quotas = np.floor(exact).astype(int)
    for slide in np.argsort(quotas - exact, kind="stable")[: draws - quotas.sum()]:
        quotas[slide] += 1
    return [int(quota) for quota in quotas]


class HardDraws:
    """Draw as many patches as there are: a random half of them, and the others by their last loss.

    The random half is another one in each epoch. The other draws have a probability proportional to the last loss of a
    patch; patches without a loss count as the hardest. So every patch occurs, and easy patches are drawn rarely.

    Args:
        count: Number of patches.
    """

    def __init__(self, count: int) -> None:
        self._losses = torch.full((count,), torch.nan)
        self._recorded: list[tuple[list[int], Tensor]] = []  # on their device, because a copy waits for a GPU

    @property
    def losses(self) -> Tensor:
        """The last loss of each patch, (count,) float32 on the CPU, NaN without one."""
        for items, losses in self._recorded:
            self._losses[items] = losses.float().cpu()
        self._recorded.clear()
        return self._losses

    @losses.setter
    def losses(self, losses: Tensor) -> None:
        self._recorded.clear()
        self._losses = losses

    def record_losses(self, items: Sequence[int], losses: Tensor) -> None:
        """Store the losses of some patches, (n,), 0 or more."""
        self._recorded.append((list(items), losses.detach()))

    def __call__(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the patches of an epoch, in the order of the draws."""
        losses = self.losses.double().numpy()
        count = len(losses)
        whole = rng.permutation(count)[: -(-count // 2)]
        seen = losses[~np.isnan(losses)]
        weight = np.where(np.isnan(losses), seen.max() if len(seen) else 1.0, losses) + 1e-6
        hard = rng.choice(count, size=count - len(whole), p=weight / weight.sum())
        return np.asarray(rng.permutation(np.concatenate([whole, hard])), np.int64)
