"""The encoder of CONCH 1.5: names and shapes, the pooling against one written out, positions as published."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from panda.app.encoder_choice import find_encoder
from panda.errors import ConfigError
from panda.models.conch import convert_conch
from panda.models.encoder_cards import EncoderCard
from panda.models.trained_blocks import train_last_blocks
from panda.models.weights import load_weights

SMALL = {"architecture": "vit_small_patch16_224", "pooling": "attention", "dim": 32}
SMALL_OPTIONS = {"embed_dim": 48, "depth": 2, "num_heads": 2, "init_values": 1.0}
POOLING = {
    "attn_pool_contrast.query": (1, 768),
    "attn_pool_contrast.ln_k.weight": (1024,),
    "attn_pool_contrast.ln_k.bias": (1024,),
    "attn_pool_contrast.ln_q.weight": (768,),
    "attn_pool_contrast.ln_q.bias": (768,),
    "attn_pool_contrast.to_q.weight": (768, 768),
    "attn_pool_contrast.to_kv.weight": (1536, 1024),
    "attn_pool_contrast.to_out.weight": (768, 768),
    "ln_contrast.weight": (768,),
    "ln_contrast.bias": (768,),
}


def make_card(img_size: int) -> EncoderCard:
    return EncoderCard.parse(SMALL | {"options": SMALL_OPTIONS | {"img_size": img_size}})


def test_conch_weights_have_published_names_and_shapes() -> None:
    with torch.device("meta"):
        encoder = EncoderCard.parse(find_encoder("conch_v1_5")).build()
    found = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert {name: shape for name, shape in found.items() if not name.startswith("trunk.")} == POOLING
    assert found["trunk.pos_embed"] == (1, 785, 1024)
    blocks = {name.split(".")[2] for name in found if name.startswith("trunk.blocks.")}
    assert blocks == {str(block) for block in range(24)}
    assert found["trunk.blocks.23.ls2.gamma"] == (1024,)
    assert found["trunk.blocks.0.attn.qkv.weight"] == (3072, 1024)


@torch.no_grad()
def test_conch_pooling_matches_attention_written_out() -> None:
    torch.manual_seed(0)
    card = make_card(64)
    encoder = card.build().eval()
    for weight in encoder.parameters():
        weight.normal_(std=0.3)
    w = dict(encoder.state_dict())
    image = torch.rand(2, 3, 64, 64)
    tokens: Tensor = encoder.trunk.forward_features(image)  # type: ignore[union-attr, operator]
    pool = "attn_pool_contrast"
    q = functional.layer_norm(w[f"{pool}.query"], (32,), w[f"{pool}.ln_q.weight"], w[f"{pool}.ln_q.bias"])
    k, v = (
        functional.layer_norm(tokens, (48,), w[f"{pool}.ln_k.weight"], w[f"{pool}.ln_k.bias"])
        @ w[f"{pool}.to_kv.weight"].T
    ).chunk(2, -1)
    q = (q @ w[f"{pool}.to_q.weight"].T)[0]
    heads = []
    for start in range(0, 32, 4):
        part = slice(start, start + 4)
        attention = (k[..., part] @ q[part] / 2).softmax(-1)
        heads.append((attention[..., None] * v[..., part]).sum(1))
    pooled = torch.cat(heads, -1) @ w[f"{pool}.to_out.weight"].T
    expected = functional.layer_norm(pooled, (32,), w["ln_contrast.weight"], w["ln_contrast.bias"])
    torch.testing.assert_close(card.embed(encoder, image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stored", [14, 28])
@torch.no_grad()
def test_conch_positions_are_those_of_the_published_network(tmp_path: Path, stored: int) -> None:
    """It holds 14 × 14 positions and interpolates them to 28 × 28 for each image of 448 px."""
    torch.manual_seed(0)
    encoder = make_card(448).build()
    state = encoder.state_dict() | {"trunk.pos_embed": torch.randn(1, 1 + stored**2, 48)}
    torch.save(state, tmp_path / "w.bin")
    load_weights(encoder, tmp_path / "w.bin")
    found = encoder.state_dict()["trunk.pos_embed"]
    first, patches = state["trunk.pos_embed"][:, :1], state["trunk.pos_embed"][:, 1:]
    grid = patches.reshape(1, stored, stored, 48).permute(0, 3, 1, 2)
    if stored == 28:
        grid = functional.interpolate(grid, size=(14, 14), mode="bilinear", align_corners=False)
    scale = (28 + 0.1) / math.sqrt(14 * 14)
    grid = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    torch.testing.assert_close(found, torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], 1))


def test_conch_conversion_leaves_other_files_alone() -> None:
    state = {"pos_embed": torch.rand(1, 5, 4)}
    assert convert_conch(state, {"pos_embed": torch.rand(1, 10, 4)}) == state


def test_conch_last_blocks_learn_with_their_pooling() -> None:
    encoder = make_card(64).build()
    train_last_blocks(encoder, 1)
    learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"trunk", "attn_pool_contrast", "ln_contrast"}
    assert {name.split(".")[2] for name in learning if "blocks" in name} == {"1"}
    assert "trunk.pos_embed" not in learning


def test_conch_pooling_without_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="pooling: attention needs dim, a multiple of 8"):
        EncoderCard.parse({"architecture": "vit_small_patch16_224", "pooling": "attention"})
