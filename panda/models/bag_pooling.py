"""How the features of a bag's tiles become the features of the bag.

Shapes: K tiles in a bag, B bags, D features of a tile. Features of tiles are (B, K, D). A mask, (B, K) bool, is True
for a real tile, at least one in each bag. Weights of tiles are (B, K) float32, sum to 1 over a bag and are exactly 0
for tiles that are not real. The order of the tiles has no influence, unless a pooling says otherwise.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from panda.stored import Plain

LARGE_WEIGHT = 0.5
"""Weight above which a tile is not subtracted from an average, because the division by a small rest loses digits."""
_MOST_GROUPS = 256
"""Most passes of a bag without some tiles, if there is no shorter way to their contributions."""


class BagPooling(nn.Module):
    """Pool the features of the tiles of a bag, D of them, with a hidden layer of width `hidden` if there is one.

    Args:
        features: D.
        hidden: Width of the hidden layer.
        classes: C, for a pooling that learns from classes.
        options: Of the class `Options`.

    Attributes:
        Options: Options that only this pooling has.
        features: Number of features of a bag.
        uses_hidden: Whether there is a hidden layer.
        hidden_multiple: Divisor of the accepted widths of the hidden layer.
        classifies: Whether the features of a bag are its logits, so that no head follows.
    """

    Options: ClassVar[type[Plain]] = Plain
    uses_hidden: ClassVar[bool] = True
    hidden_multiple: ClassVar[int] = 1
    classifies: ClassVar[bool] = False

    def __init__(self, features: int, hidden: int, classes: int, options: Plain) -> None:
        super().__init__()
        self.features = features

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the bags, (B, `features`), and the weights of the tiles, (B, K)."""
        raise NotImplementedError

    def group_tiles(self, count: int) -> Tensor:
        """Return the group of each tile of a bag, (count,) int64. The tiles of a group are left out together."""
        return torch.arange(count)

    def pool_without_each(self, feats: Tensor) -> Tensor:
        """Pool one bag, (K, D) with K at least 2, without each group g of tiles in turn: row g of (G, `features`)."""
        raise NotImplementedError

    def add_auxiliary_loss(self, loss: Tensor, feats: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        """Add to the loss of bags with classes `label`, (B,) int64, what the pooling itself learns from them."""
        return loss


class GroupedPooling(BagPooling):
    """A pooling of single bags, without a short way to the bag that lacks a tile.

    Contributions of up to 256 tiles are exact. Those of more tiles are an approximation, occlusion of groups: tiles
    that follow each other in the bag are left out together, and share the change equally.
    """

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `BagPooling.forward`. Only real tiles are seen, so padding and other bags have no influence."""
        bags, weights = [], torch.zeros(mask.shape, device=feats.device)
        for index, (tiles, real) in enumerate(zip(feats, mask, strict=True)):
            bag, weights[index, real] = self.pool_bag(tiles[real])
            bags.append(bag)
        return torch.stack(bags), weights

    def pool_bag(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of a bag of real tiles, (K, D), and the weights of the tiles, (K,)."""
        raise NotImplementedError

    def group_tiles(self, count: int) -> Tensor:
        """See `BagPooling.group_tiles`."""
        return torch.arange(count) * min(count, _MOST_GROUPS) // count

    def pool_without_each(self, feats: Tensor) -> Tensor:
        """See `BagPooling.pool_without_each`."""
        groups = self.group_tiles(len(feats)).to(feats.device)
        return torch.stack([self.pool_bag(feats[groups != group])[0] for group in range(int(groups[-1]) + 1)])


def scale_signed(weights: Tensor) -> Tensor:
    """Scale weights of tiles, (K,), to a sum of 1. Negative ones count as 0; all are equal if none is positive."""
    weights = weights.clamp(min=0)
    total = weights.sum()
    return torch.where(total > 0, weights / total, 1 / len(weights))


class Attention(nn.Module):
    """Weights of the tiles of a bag (Ilse, Tomczak, Welling 2018, "Attention-based deep multiple instance learning").

    Gated attention is their equation 9: a = softmax_k(wᵀ(tanh(V hₖ) ⊙ sigm(U hₖ))). Plain attention, equation 8, has no
    U. V and U have `hidden` rows and a bias as in the authors' program. One of w would cancel in the softmax. Dropout
    acts on the outputs of tanh and sigm.
    """

    def __init__(self, features: int, hidden: int, gated: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.V = nn.Linear(features, hidden)
        self.U = nn.Linear(features, hidden) if gated else None
        self.w = nn.Linear(hidden, 1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, feats: Tensor, mask: Tensor) -> Tensor:
        """Weight the tiles, see the module."""
        inner = self.dropout(torch.tanh(self.V(feats)))
        if self.U is not None:
            inner = inner * self.dropout(torch.sigmoid(self.U(feats)))
        scores: Tensor = self.w(inner).squeeze(-1).float()
        return torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)


class AttentionPooling(BagPooling):
    """Average the tiles with the weights of `Attention`."""

    gated: ClassVar[bool] = False

    def __init__(self, features: int, hidden: int, classes: int, options: Plain, dropout: float = 0.0) -> None:
        super().__init__(features, hidden, classes, options)
        self.attention = Attention(features, hidden, self.gated, dropout)

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
        if weights[most] > LARGE_WEIGHT:
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
