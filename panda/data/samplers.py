"""Which training patches an epoch draws: all of them, balanced by cancer, or those that are hard more often.

A choice is a function of a random generator that `panda.data.loaders.DrawSampler` seeds by run and epoch: an epoch is
the same after a resume, and on all devices before they share it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SamplerName = Literal["uniform", "balanced", "hard"]


class BalancedDraws:
    """As many patches as there are, of which a stated share has cancer; no slide is starved.

    Within patches with cancer, and within those without, each slide gets draws by the square root of its number of
    such patches: a slide of 1,000 patches ten times as many as one of 10, not a hundred times. Each slide that has such
    patches gets one draw at least, and no patch is drawn again before all of its slide and kind have been.

    Args:
        tumor: (N,) bool, whether a patch has cancer.
        slides: (N,) its slide's number.
        share: Of the draws that have cancer, in [0, 1]; where all patches or none have cancer it has no say.
    """

    def __init__(self, tumor: NDArray[np.bool_], slides: NDArray[np.integer[Any]], share: float) -> None:
        self._count = len(tumor)
        self._kinds = [
            [np.flatnonzero((slides == slide) & (tumor == kind)) for slide in np.unique(slides[tumor == kind])]
            for kind in (True, False)
        ]
        share = share if all(self._kinds) else float(bool(self._kinds[0]))
        cancer = round(share * self._count)
        self._draws = [_quotas([len(of) for of in kind], n) for kind, n in
                       zip(self._kinds, (cancer, self._count - cancer), strict=True)]  # fmt: skip

    def __call__(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The patches of an epoch, in the order they are drawn in."""
        drawn = [
            np.concatenate([rng.permutation(of) for _ in range(-(-quota // len(of)))])[:quota]
            for kind, quotas in zip(self._kinds, self._draws, strict=True)
            for of, quota in zip(kind, quotas, strict=True)
            if quota
        ]
        return np.asarray(rng.permutation(np.concatenate(drawn)), np.int64)


def _quotas(sizes: Sequence[int], draws: int) -> list[int]:
    """Share draws out by the square root of the sizes, one at least each where there are enough."""
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
    """As many patches as there are: a random half of them, another each epoch, and the rest by their last loss.

    A patch is drawn for the rest with a probability proportional to its last loss; one that was not seen yet counts as
    the hardest. So none is forgotten, and what is learnt already comes seldom.

    Args:
        count: Of the patches.
    """

    def __init__(self, count: int) -> None:
        self.losses = torch.full((count,), torch.nan)

    def note(self, items: Sequence[int], losses: Tensor) -> None:
        """Keep the losses of some patches.

        Args:
            items: Their numbers.
            losses: (n,) 0 or more.
        """
        self.losses[list(items)] = losses.detach().float().cpu()

    def __call__(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The patches of an epoch, in the order they are drawn in."""
        count = len(self.losses)
        whole = rng.permutation(count)[: -(-count // 2)]
        losses = self.losses.double().numpy()
        seen = losses[~np.isnan(losses)]
        weight = np.where(np.isnan(losses), seen.max() if len(seen) else 1.0, losses) + 1e-6
        hard = rng.choice(count, size=count - len(whole), p=weight / weight.sum())
        return np.asarray(rng.permutation(np.concatenate([whole, hard])), np.int64)
