"""From the features of a bag's tiles to those of the bag, and what weight each tile had in it.

Shapes: K tiles a bag, B bags, D features a tile. All are blind to the order of the tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["gated", "attention", "mean", "max", "transformer"]

_LEAST_STEP = 1e-4
"""Between two thresholds of an ordinal head: at none a class between them would have a probability of 0."""
_AT_ONCE = 2**14
"""Tiles of bags that are pooled at once where one bag is pooled without each of its tiles."""


class Attention(nn.Module):
    """Attention over a bag (Ilse, Tomczak, Welling 2018, "Attention-based deep multiple instance learning").

    Gated, their equation 9: a = softmax_k(wᵀ(tanh(V hₖ) ⊙ sigm(U hₖ))); ungated, equation 8, the same without
    U. As in the authors' program V and U have a bias; one for w would cancel in the softmax.

    Args:
        features: D.
        hidden: Rows of V and U.
        gated: Whether there is a gate U.
    """

    def __init__(self, features: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.V = nn.Linear(features, hidden)
        self.U = nn.Linear(features, hidden) if gated else None
        self.w = nn.Linear(hidden, 1, bias=False)

    def forward(self, feats: Tensor, mask: Tensor) -> Tensor:
        """Weigh the tiles.

        Args:
            feats: (B, K, D).
            mask: (B, K) bool, True for a real tile; at least one in each bag.

        Returns:
            (B, K) float32, each row summing to 1 and exactly 0 where mask is False.
        """
        inner = torch.tanh(self.V(feats))
        if self.U is not None:
            inner = inner * torch.sigmoid(self.U(feats))
        scores: Tensor = self.w(inner).squeeze(-1).float()
        return torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)


class AttentionPooling(nn.Module):
    """The mean of the tiles, weighed by `Attention`."""

    def __init__(self, features: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.attention = Attention(features, hidden, gated)
        self.features = features

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool (B, K, D), of which `mask` (B, K) tells the real tiles, to (B, D); with weights (B, K), float32."""
        attention: Tensor = self.attention(feats, mask)
        return torch.einsum("bk,bkd->bd", attention.to(feats.dtype), feats), attention

    def without_each(self, feats: Tensor) -> Tensor:
        """Pool one bag (K, D), K at least 2, without each of its tiles in turn, to (K, D)."""
        keep = feats.new_ones(1, len(feats), dtype=torch.bool)
        pooled, attention = self(feats[None], keep)
        weights = attention[0, :, None]
        # The weights of the others grow alike, so that they sum to 1 again.
        found: Tensor = ((pooled - weights * feats) / (1 - weights)).to(feats.dtype)
        most = int(weights.argmax())
        if weights[most] > 0.5:  # little is left to divide by, and its digits are lost
            keep[0, most] = False
            found[most] = self(feats[None], keep)[0][0]
        return found


class MeanPooling(nn.Module):
    """The mean of the tiles: each has the same weight."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionPooling.forward`."""
        weights = mask.float() / mask.sum(dim=-1, keepdim=True)
        return torch.einsum("bk,bkd->bd", weights.to(feats.dtype), feats), weights

    def without_each(self, feats: Tensor) -> Tensor:
        """See `AttentionPooling.without_each`."""
        return (feats.sum(dim=0) - feats) / (len(feats) - 1)


class MaxPooling(nn.Module):
    """The greatest value of each feature.

    A tile's weight is the share of the features whose greatest value is its own; what tiles share is parted between
    them.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionPooling.forward`."""
        highest = feats.masked_fill(~mask[..., None], -math.inf).amax(dim=1)
        own = ((feats == highest[:, None]) & mask[..., None]).float()
        return highest, (own / own.sum(dim=1, keepdim=True)).mean(dim=-1)

    def without_each(self, feats: Tensor) -> Tensor:
        """See `AttentionPooling.without_each`."""
        highest, second = feats.topk(2, dim=0).values
        return torch.where(feats == highest, second, highest)  # where tiles share it, the second is as high


class TransformerPooling(nn.Module):
    """Tiles look at each other, then a token of the bag looks at them (as TransMIL, Shao et al. 2021, in small).

    One layer of self-attention without positions, in which no K × K matrix is held, and one of attention by a learnt
    query. A tile's weight is that of the query, the mean over the heads.

    Args:
        features: D.
        hidden: Width of the layers, a multiple of `HEADS`.
    """

    HEADS = 4

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.features = hidden
        self.project = nn.Linear(features, hidden)
        self.between = nn.TransformerEncoderLayer(
            hidden, self.HEADS, 2 * hidden, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(hidden)
        self.query = nn.Parameter(torch.randn(1, 1, hidden) / math.sqrt(hidden))
        self.attend = nn.MultiheadAttention(hidden, self.HEADS, batch_first=True)

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionPooling.forward`; the bag's features are (B, hidden)."""
        tiles = self.norm(self.between(self.project(feats), src_key_padding_mask=~mask))
        query = self.query.expand(len(feats), -1, -1)
        bag, weights = self.attend(query, tiles, tiles, key_padding_mask=~mask)
        weights = weights[:, 0].float().masked_fill(~mask, 0.0)
        return bag[:, 0], weights

    def without_each(self, feats: Tensor) -> Tensor:
        """See `AttentionPooling.without_each`; as tiles look at each other, each time is a pass of its own."""
        count = len(feats)
        left_out = torch.split(torch.eye(count, dtype=torch.bool, device=feats.device), max(1, _AT_ONCE // count))
        return torch.cat([self(feats.expand(len(part), -1, -1), ~part)[0] for part in left_out])


POOLINGS: Mapping[Pooling, Callable[[int, int], nn.Module]] = MappingProxyType(
    {
        "gated": lambda features, hidden: AttentionPooling(features, hidden, gated=True),
        "attention": lambda features, hidden: AttentionPooling(features, hidden, gated=False),
        "mean": lambda features, hidden: MeanPooling(features),
        "max": lambda features, hidden: MaxPooling(features),
        "transformer": TransformerPooling,
    }
)
"""Each takes D and the width of its hidden layer; `features` of what it makes is the width of the bag's."""


class OrdinalHead(nn.Module):
    """Classes in an order by one score and thresholds on it that cannot cross.

    The cumulative logit model (McCullagh 1980): P(class > k) = sigm(wᵀz + bₖ) with b₀ > b₁ > …, as CORAL (Cao,
    Mirjalili, Raschka 2020) has it, whose thresholds keep their order only at the optimum. What comes out are the
    classes' log probabilities, which serve as logits like any other.

    Args:
        features: Width of z.
        classes: C, at least 2.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Linear(features, 1, bias=False)
        # All classes alike to begin with.
        above = torch.logit(torch.arange(classes - 1, 0, -1) / classes)
        self.first = nn.Parameter(above[:1].clone())
        self.steps = nn.Parameter(torch.log(torch.expm1(above[:-1] - above[1:] - _LEAST_STEP)))

    def forward(self, bags: Tensor) -> Tensor:
        """Turn (B, features) into log probabilities (B, C), float32."""
        # Added, as what is clamped has no gradient: two thresholds that met would never part again.
        steps = nn.functional.softplus(self.steps.float()) + _LEAST_STEP
        above = self.first.float() - nn.functional.pad(steps.cumsum(0), (1, 0))
        logits = self.score(bags).float() + above
        greater, less = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
        # sigm(a) - sigm(b) = sigm(a) sigm(-b) (1 - exp(b - a))
        between = greater[:, :-1] + less[:, 1:] + torch.log(-torch.expm1(-steps))
        return torch.cat([less[:, :1], between, greater[:, -1:]], dim=1)
