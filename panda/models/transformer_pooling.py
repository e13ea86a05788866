"""Self-attention between the tiles of a bag, and its exact result without each tile. See `bag_pooling` for shapes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from panda.models.bag_pooling import LARGE_WEIGHT, BagPooling
from panda.stored import Plain

_ROWS_AT_ONCE = 2**13
"""Pairs of tiles that pass the layer at once: the tiles of bags that each lack one."""


class TransformerPooling(BagPooling):
    """Attend between tiles, then from a token of the bag to the tiles (a small TransMIL, Shao et al. 2021).

    One layer of self-attention has no positions. One attention layer has a learned query. The weight of a tile is that
    of the query, averaged over the heads. Neither layer stores a K × K matrix.
    """

    hidden_multiple = 4
    """Number of heads."""

    def __init__(self, features: int, hidden: int, classes: int, options: Plain) -> None:
        super().__init__(features, hidden, classes, options)
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
        return bag[:, 0], weights / weights.sum(dim=1, keepdim=True)  # the sum of weights in half precision is not 1

    def pool_without_each(self, feats: Tensor) -> Tensor:
        """See `BagPooling.pool_without_each`.

        In one layer of self-attention tile i is the average o of values v with weights a. Without tile j it is
        (o - aⱼ vⱼ) / (1 - aⱼ), so no attention is computed again. All later steps are per tile, up to the query.
        """
        tokens = self.project(feats)
        query, key, values = self._split_heads(tokens)
        averages, total, without_largest, largest = _average(query, key, values)
        bias = self.between.self_attn.out_proj.bias
        found = []
        for absent in torch.split(torch.arange(len(feats), device=feats.device), max(1, _ROWS_AT_ONCE // len(feats))):
            weights = torch.exp(query @ key[:, absent].mT - total)  # of the absent tiles, (heads, K, absent)
            large = (largest == absent) & (weights > LARGE_WEIGHT)
            weights = weights.masked_fill(large, 0.0)
            rest = 1 - weights
            tiles = (tokens + bias).repeat(len(absent), 1, 1)  # (absent, K, hidden)
            tiles -= torch.einsum("hka,had->akd", weights / rest, values[:, absent])
            for head, average in enumerate(averages):
                tiles.addcmul_(average, (1 / rest[head]).T[..., None])
            head_of, tile_of, place = large.nonzero(as_tuple=True)
            correction = without_largest[head_of, tile_of] - averages[head_of, tile_of]
            tiles.index_put_((place, tile_of), correction, accumulate=True)
            found.append(self._query_without(tiles, absent))
        return torch.cat(found)

    def _split_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys, (heads, K, hidden / heads), and values after the output layer, (heads, K, hidden).

        The bias of the output layer is left out, because it belongs to no head. Queries are scaled.
        """
        attention = self.between.self_attn
        inner = nn.functional.linear(self.between.norm1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = inner.reshape(len(tokens), 3, self.hidden_multiple, -1).permute(1, 2, 0, 3)
        output = attention.out_proj.weight.reshape(inner.shape[-1] // 3, self.hidden_multiple, -1)
        return query / math.sqrt(query.shape[-1]), key, torch.einsum("hkc,dhc->hkd", value, output)

    def _query_without(self, tiles: Tensor, absent: Tensor) -> Tensor:
        """Pool bags after the self-attention: `tiles` is (A, K, hidden), and bag a lacks tile `absent[a]`."""
        layer, attend, heads = self.between, self.attend, self.hidden_multiple
        hidden = nn.functional.relu_(layer.linear1(layer.norm2(tiles)))
        tiles = self.norm(tiles + layer.linear2(hidden))
        of_query, of_key, of_value = attend.in_proj_weight.chunk(3)
        bias_query, _, bias_value = attend.in_proj_bias.chunk(3)  # that of the keys cancels in the softmax
        width = tiles.shape[-1]
        query = nn.functional.linear(self.query[0, 0], of_query, bias_query).reshape(heads, -1)
        query = torch.einsum("hc,hcd->hd", query, of_key.reshape(heads, -1, width)) / math.sqrt(width // heads)
        scores = tiles @ query.T
        scores[torch.arange(len(absent), device=absent.device), absent] = -math.inf
        pooled = scores.softmax(1).mT @ tiles  # (A, heads, hidden)
        values = torch.einsum("ahd,hcd->ahc", pooled, of_value.reshape(heads, -1, width)).flatten(1) + bias_value
        found: Tensor = attend.out_proj(values)
        return found


def _average(query: Tensor, key: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attend in blocks of queries, with all tiles and without the tile that has the largest weight.

    Returns:
        Averages, (heads, K, hidden); log sum of exponentials of the scores, (heads, K, 1); averages without the tile of
        the largest weight; this tile, (heads, K, 1).
    """
    parts = []
    for part in torch.split(query, max(1, _ROWS_AT_ONCE // query.shape[1]), dim=1):
        scores = part @ key.mT
        largest = scores.argmax(-1, keepdim=True)
        total = scores.logsumexp(-1, keepdim=True)
        averages = scores.softmax(-1) @ values
        others = scores.scatter(-1, largest, -math.inf)
        parts.append((averages, total, others.softmax(-1) @ values, largest))
    averages, total, without, largest = (torch.cat(found, dim=1) for found in zip(*parts, strict=True))
    return averages, total, without, largest
