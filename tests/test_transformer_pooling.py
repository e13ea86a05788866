"""Exact self-attention without each tile, against bags that lack the tile."""

import pytest
import torch
from torch import Tensor

from panda.models.transformer_pooling import TransformerPooling
from panda.stored import Plain


def pool(scale: float) -> TransformerPooling:
    torch.manual_seed(0)
    found = TransformerPooling(20, 16, 6, Plain()).double().eval()
    with torch.no_grad():
        found.between.self_attn.in_proj_weight.mul_(scale)
    return found


def pool_one_by_one(model: TransformerPooling, feats: Tensor) -> Tensor:
    keep = ~torch.eye(len(feats), dtype=torch.bool)
    return torch.stack([model(feats[k][None], torch.ones(1, len(feats) - 1, dtype=torch.bool))[0][0] for k in keep])


@torch.no_grad()
@pytest.mark.parametrize("tiles", [2, 3, 50])
@pytest.mark.parametrize("scale", [1, 5, 40])
def test_transformer_pooling_without_each_equals_shorter_bags(
    tiles: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panda.models.transformer_pooling._ROWS_AT_ONCE", 7 * tiles)
    model = pool(scale)
    feats = torch.randn(tiles, 20, dtype=torch.float64)
    feats[-1] = feats[0]  # two tiles with the same weights
    torch.testing.assert_close(model.pool_without_each(feats), pool_one_by_one(model, feats), rtol=1e-7, atol=1e-9)


@torch.no_grad()
def test_transformer_pooling_without_dominant_tile_keeps_digits() -> None:
    model = pool(1).float()
    feats = torch.randn(30, 20)
    attention = model.between.self_attn
    attention.in_proj_weight[:32] *= 12  # queries and keys: single tiles have a weight of 1 by rounding
    query, key, _ = model._split_heads(model.project(feats))
    assert float((query @ key.mT).softmax(-1).amax()) > 1 - 1e-6
    exact = pool_one_by_one(model.double(), feats.double())
    found = model.float().pool_without_each(feats)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-4)
