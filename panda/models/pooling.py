"""Poolings of the features of a bag's tiles, and heads that classify the pooled features.

Shapes: K tiles in a bag, B bags, D features of a tile. Features of tiles are (B, K, D). A mask, (B, K) bool, is True
for a real tile, at least one in each bag. Weights of tiles are (B, K) float32, sum to 1 over a bag and are exactly 0
for tiles that are not real. The order of the tiles has no influence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

Pooling = Literal["gated", "attention", "mean", "max", "transformer"]
Head = Literal["softmax", "ordinal"]

_LEAST_STEP = 1e-4
"""Least distance of two thresholds of an ordinal head: without one, the class between has a probability of 0."""
_TILES_AT_ONCE = 2**14
"""Tiles that are pooled at once, over copies of a bag that each lack one tile."""


class BagPooling(nn.Module):
    """Pool the features of the tiles of a bag, D of them, with a hidden layer of width `hidden` if there is one.

    Attributes:
        features: Number of features of a bag.
        uses_hidden: Whether there is a hidden layer.
        hidden_multiple: Divisor of the accepted widths of the hidden layer.
    """

    uses_hidden: ClassVar[bool] = True
    hidden_multiple: ClassVar[int] = 1

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the bags, (B, `features`), and the weights of the tiles, (B, K)."""
        raise NotImplementedError

    def pool_without_each(self, feats: Tensor) -> Tensor:
        """Pool one bag, (K, D) with K at least 2, without each tile k in turn: row k of (K, `features`)."""
        raise NotImplementedError


class Attention(nn.Module):
    """Weights of the tiles of a bag (Ilse, Tomczak, Welling 2018, "Attention-based deep multiple instance learning").

    Gated attention is their equation 9: a = softmax_k(wᵀ(tanh(V hₖ) ⊙ sigm(U hₖ))). Plain attention, equation 8, has no
    U. V and U have `hidden` rows and a bias as in the authors' program. One of w would cancel in the softmax.
    """

    def __init__(self, features: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.V = nn.Linear(features, hidden)
        self.U = nn.Linear(features, hidden) if gated else None
        self.w = nn.Linear(hidden, 1, bias=False)

    def forward(self, feats: Tensor, mask: Tensor) -> Tensor:
        """Weight the tiles, see the module."""
        inner = torch.tanh(self.V(feats))
        if self.U is not None:
            inner = inner * torch.sigmoid(self.U(feats))
        scores: Tensor = self.w(inner).squeeze(-1).float()
        return torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)


class AttentionPooling(BagPooling):
    """Average the tiles with the weights of `Attention`."""

    gated: ClassVar[bool] = False

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__(features, hidden)
        self.attention = Attention(features, hidden, self.gated)

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `BagPooling.forward`."""
        attention: Tensor = self.attention(feats, mask)
        return torch.einsum("bk,bkd->bd", attention.to(feats.dtype), feats), attention

    def pool_without_each(self, feats: Tensor) -> Tensor:
        """See `BagPooling.pool_without_each`."""
        keep = feats.new_ones(1, len(feats), dtype=torch.bool)
        bag, attention = self(feats[None], keep)
        weights = attention[0, :, None]
        # The weights of the other tiles grow by the same factor, so that they sum to 1 again.
        found: Tensor = ((bag - weights * feats) / (1 - weights)).to(feats.dtype)
        most = int(weights.argmax())
        if weights[most] > 0.5:  # the division by a small rest loses digits
            keep[0, most] = False
            found[most] = self(feats[None], keep)[0][0]
        return found


class GatedAttentionPooling(AttentionPooling):
    """Average the tiles with the weights of gated `Attention`."""

    gated = True


class MeanPooling(BagPooling):
    """Average the tiles with equal weights."""

    uses_hidden = False

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `BagPooling.forward`."""
        weights = mask.float() / mask.sum(dim=-1, keepdim=True)
        return torch.einsum("bk,bkd->bd", weights.to(feats.dtype), feats), weights

    def pool_without_each(self, feats: Tensor) -> Tensor:
        """See `BagPooling.pool_without_each`."""
        return (feats.sum(dim=0) - feats) / (len(feats) - 1)


class MaxPooling(BagPooling):
    """Take the greatest value of each feature.

    The weight of a tile is the share of the features whose greatest value is its own. Tiles with the same greatest
    value divide that share among them.
    """

    uses_hidden = False

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `BagPooling.forward`."""
        highest = feats.masked_fill(~mask[..., None], -math.inf).amax(dim=1)
        own = ((feats == highest[:, None]) & mask[..., None]).float()
        return highest, (own / own.sum(dim=1, keepdim=True)).mean(dim=-1)

    def pool_without_each(self, feats: Tensor) -> Tensor:
        """See `BagPooling.pool_without_each`."""
        highest, second = feats.topk(2, dim=0).values
        return torch.where(feats == highest, second, highest)  # if tiles share the highest, the second equals it


class TransformerPooling(BagPooling):
    """Attend between tiles, then from a token of the bag to the tiles (a small TransMIL, Shao et al. 2021).

    One layer of self-attention has no positions and stores no K × K matrix. One attention layer has a learned query.
    The weight of a tile is that of the query, averaged over the heads.
    """

    hidden_multiple = 4
    """Number of heads."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__(features, hidden)
        self.features = hidden
        heads = self.hidden_multiple
        self.project = nn.Linear(features, hidden)
        self.between = nn.TransformerEncoderLayer(
            hidden, heads, 2 * hidden, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(hidden)
        self.query = nn.Parameter(torch.randn(1, 1, hidden) / math.sqrt(hidden))
        self.attend = nn.MultiheadAttention(hidden, heads, batch_first=True)

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `BagPooling.forward`."""
        tiles = self.norm(self.between(self.project(feats), src_key_padding_mask=~mask))
        query = self.query.expand(len(feats), -1, -1)
        bag, weights = self.attend(query, tiles, tiles, key_padding_mask=~mask)
        weights = weights[:, 0].float().masked_fill(~mask, 0.0)
        return bag[:, 0], weights

    def pool_without_each(self, feats: Tensor) -> Tensor:
        """See `BagPooling.pool_without_each`. Tiles attend to each other, so each bag is a pass of its own."""
        count = len(feats)
        absent = torch.split(torch.eye(count, dtype=torch.bool, device=feats.device), max(1, _TILES_AT_ONCE // count))
        return torch.cat([self(feats.expand(len(part), -1, -1), ~part)[0] for part in absent])


POOLINGS: Mapping[Pooling, type[BagPooling]] = MappingProxyType(
    {
        "gated": GatedAttentionPooling,
        "attention": AttentionPooling,
        "mean": MeanPooling,
        "max": MaxPooling,
        "transformer": TransformerPooling,
    }
)
"""All poolings; `Pooling` lists the same names, which configuration checks read."""


class OrdinalHead(nn.Module):
    """Classify by one score and ordered thresholds on it, which cannot cross. There are at least two classes.

    This is the cumulative logit model (McCullagh 1980): P(class > k) = sigm(wᵀz + bₖ) with b₀ > b₁ > …. CORAL (Cao,
    Mirjalili, Raschka 2020) uses it too, but keeps its thresholds in order only at the optimum. The output is the log
    probability of each class, which serves as logits.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Linear(features, 1, bias=False)
        # All classes have the same probability at first.
        above = torch.logit(torch.arange(classes - 1, 0, -1) / classes)
        self.first = nn.Parameter(above[:1].clone())
        self.steps = nn.Parameter(torch.log(torch.expm1(above[:-1] - above[1:] - _LEAST_STEP)))

    def forward(self, bags: Tensor) -> Tensor:
        """Compute log probabilities (B, C), float32, of features (B, `features`)."""
        # The least step is added, because a clamped value has no gradient and two thresholds would stay together.
        steps = nn.functional.softplus(self.steps.float()) + _LEAST_STEP
        above = self.first.float() - nn.functional.pad(steps.cumsum(0), (1, 0))
        logits = self.score(bags).float() + above
        greater, less = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
        # sigm(a) - sigm(b) = sigm(a) sigm(-b) (1 - exp(b - a))
        between = greater[:, :-1] + less[:, 1:] + torch.log(-torch.expm1(-steps))
        return torch.cat([less[:, :1], between, greater[:, -1:]], dim=1)


HEADS: Mapping[Head, Callable[[int, int], nn.Module]] = MappingProxyType({"softmax": nn.Linear, "ordinal": OrdinalHead})
"""All heads; each takes the number of features and of classes. `Head` lists the same names."""
