"""Weights that the library transformers stored: the same features in timm's network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from panda.errors import ConfigError
from panda.models.encoder_cards import EncoderCard
from panda.models.mil import MILNet
from panda.models.weights import load_weights

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
OPTIONS: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 2, "init_values": 1e-5, "img_size": 56}
SWIGLU: dict[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "mlp_ratio": 2 * 128 / 48}
KINDS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "plain": ("Dinov2", {}, "vit_small_patch14_dinov2", {}),
    "swiglu": ("Dinov2", {"use_swiglu_ffn": True}, "vit_small_patch14_dinov2", SWIGLU),
    "registers": ("Dinov2WithRegisters", {"use_swiglu_ffn": True}, "vit_small_patch14_reg4_dinov2", SWIGLU),
}


def make_theirs(kind: str, path: Path, image_size: int = 56) -> nn.Module:
    """Store a network of transformers with random weights, layer scales and tokens, as its authors publish it."""
    name, changes, _, _ = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, image_size=image_size, **changes)
    network: Any = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.1)
    network.save_pretrained(path)
    result: nn.Module = network
    return result


def make_card(kind: str, pooling: str = "cls_mean") -> EncoderCard:
    _, _, architecture, changes = KINDS[kind]
    return EncoderCard.parse({"architecture": architecture, "options": OPTIONS | changes, "pooling": pooling})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_size", [56, 98])  # 98: positions of another grid, which transformers interpolates
@torch.no_grad()
def test_dinov2_file_of_transformers_gives_its_features(tmp_path: Path, kind: str, image_size: int) -> None:
    theirs = make_theirs(kind, tmp_path, image_size)
    card = make_card(kind)
    ours = card.build().eval()
    note = load_weights(ours, tmp_path / "model.safetensors")
    assert note.endswith("not used of the file: nothing.")
    image = torch.rand(2, 3, 56, 56)
    tokens = theirs(pixel_values=image).last_hidden_state
    expected = torch.cat([tokens[:, 0], tokens[:, 5 if kind == "registers" else 1 :].mean(1)], dim=-1)
    torch.testing.assert_close(card.embed(ours, image), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_dinov2_file_with_prefix_fills_an_encoder(tmp_path: Path) -> None:
    make_theirs("plain", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    torch.save({f"dinov2.{name}": value for name, value in stored.items()}, tmp_path / "w.bin")
    network = MILNet(make_card("plain").to_options(), str(tmp_path / "w.bin"))
    found = network.encoder.state_dict()
    torch.testing.assert_close(found["norm.weight"], stored["layernorm.weight"])
    parts = [stored[f"encoder.layer.1.attention.attention.{part}.bias"] for part in ("query", "key", "value")]
    torch.testing.assert_close(found["blocks.1.attn.qkv.bias"], torch.cat(parts))


def test_dinov2_file_of_another_network_is_refused(tmp_path: Path) -> None:
    make_theirs("swiglu", tmp_path)
    with pytest.raises(ConfigError, match=r"does not fit VisionTransformer.*mlp\.fc1.*correct the options"):
        load_weights(make_card("plain").build(), tmp_path / "model.safetensors")
    make_theirs("registers", tmp_path)
    with pytest.raises(ConfigError, match=r"1 not in the network: reg_token.*reg_tokens"):
        load_weights(make_card("swiglu").build(), tmp_path / "model.safetensors")
