"""Dual-stream MIL (Li, Li, Eliceiri 2021). See `bag_pooling` for shapes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from panda.models.bag_pooling import LARGE_WEIGHT, BagPooling
from panda.stored import Plain


class DsmilPooling(BagPooling):
    """Average the logits of two streams ("Dual-stream multiple instance learning network", equations 1 to 7).

    The first stream takes the greatest score of each class over the tiles. The tile that has it is the critical tile of
    the class. In the second stream each tile has a weight for each class, by the likeness of its query to that of the
    critical tile. The C averages of the tiles give the logits together, as the authors' convolution does.

    The weight of a tile is that for the class with the highest logit. The loss is that of the averaged logits; the
    authors' program averages the losses of both streams.
    """

    classifies = True

    def __init__(self, features: int, hidden: int, classes: int, options: Plain) -> None:
        super().__init__(features, hidden, classes, options)
        self.features = classes
        self.instances = nn.Linear(features, classes)
        self.query = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.Tanh())
        self.bags = nn.Linear(classes * features, classes)

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `BagPooling.forward`."""
        highest, _, attention = self._attend(feats, mask)
        averages = torch.einsum("bkc,bkd->bcd", attention.to(feats.dtype), feats)
        logits = (self.bags(averages.flatten(1)) + highest) / 2
        predicted = logits.argmax(1)[:, None, None].expand(-1, feats.shape[1], 1)
        return logits, attention.gather(2, predicted).squeeze(2)

    def _attend(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return greatest scores, (B, C); critical tiles, (B, C) int64; weights, (B, K, C) float32."""
        scores = self.instances(feats).float().masked_fill(~mask[..., None], -math.inf)
        highest, critical = scores.max(dim=1)
        queries = self.query(feats)
        own = queries.gather(1, critical[..., None].expand(-1, -1, queries.shape[-1]))
        likeness = (queries @ own.mT).float() / math.sqrt(queries.shape[-1])
        return highest, critical, likeness.masked_fill(~mask[..., None], -math.inf).softmax(dim=1)

    def pool_without_each(self, feats: Tensor) -> Tensor:
        """See `BagPooling.pool_without_each`.

        Without a tile that is not critical the weights of the other tiles grow by the same factor for each class.
        """
        keep = feats.new_ones(1, len(feats), dtype=torch.bool)
        highest, critical, attention = (found[0] for found in self._attend(feats[None], keep))
        weights = attention[:, None]  # (K, 1, C)
        parts = torch.einsum("kd,ocd->koc", feats, self.bags.weight.reshape(self.features, self.features, -1))
        total = (weights * parts).sum(0)
        found: Tensor = (((total - weights * parts) / (1 - weights)).sum(-1) + self.bags.bias + highest) / 2
        large = (attention > LARGE_WEIGHT).nonzero()[:, 0]
        for tile in {*critical.tolist(), *large.tolist()}:
            others = keep.clone()
            others[0, tile] = False
            found[tile] = self(feats[None], others)[0][0]
        return found
