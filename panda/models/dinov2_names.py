"""Weights of DINOv2 transformers as the library transformers stores them, under the names and shapes of timm.

The networks are the same: timm joins query, key and value, and adds the position of the class token to the token itself
if there are registers. So these encoders need neither that library nor code from the hub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_MARK = "embeddings.cls_token"
"""Name that only these files have."""
_UNUSED = "embeddings.mask_token"
"""Of the training."""
_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
}
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias|)")
_QUERY = "attention.attention.query"


def convert_dinov2(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under timm's names if it has those of transformers; any other one unchanged.

    Positions of another grid than that of the network are interpolated as transformers does it: with antialiasing if
    there are registers, without it otherwise.

    Args:
        state: Names and weights of a file.
        own: State dict of the network.
    """
    mark = next((name for name in state if name.endswith(_MARK)), None)
    if mark is None or "pos_embed" not in own:
        return dict(state)
    prefix = mark.removesuffix(_MARK)
    stored = {name.removeprefix(prefix): value for name, value in state.items()}
    converted = {_rename(name): _join_query(name, stored) for name in stored if not _is_joined(name)}
    if (positions := converted.get("pos_embed")) is None:
        return converted
    first, patches = positions[:, :1], positions[:, 1:]
    side = math.isqrt(tokens := own["pos_embed"].shape[1])
    patches = _interpolate(patches, side, antialias="reg_token" in converted)
    if side**2 == tokens:  # the network has no position for the class token
        converted |= {"cls_token": converted["cls_token"] + first, "pos_embed": patches}
    else:
        converted["pos_embed"] = torch.cat([first, patches], dim=1)
    return converted


def _is_joined(name: str) -> bool:
    return name == _UNUSED or name.rpartition(".")[0].endswith(("attention.attention.key", "attention.attention.value"))


def _rename(name: str) -> str:
    if block := _BLOCK.fullmatch(name):
        number, part, end = block.groups()
        return f"blocks.{number}.{'attn.qkv' if part == _QUERY else _NAMES.get(part, part)}{end}"
    start, dot, end = name.rpartition(".")
    return _NAMES.get(name) or f"{_NAMES.get(start, start)}{dot}{end}"


def _join_query(name: str, stored: Mapping[str, Tensor]) -> Tensor:
    """Return a weight; that of a query with those of key and value."""
    if _QUERY not in name:
        return stored[name]
    parts = (stored.get(name.replace("query", part)) for part in ("query", "key", "value"))
    return torch.cat([part for part in parts if part is not None])


def _interpolate(patches: Tensor, wanted: int, *, antialias: bool) -> Tensor:
    """Interpolate the positions of a square of patches, (1, n, d), to one of `wanted` patches a side."""
    side = math.isqrt(patches.shape[1])
    if side == wanted or side**2 != patches.shape[1]:
        return patches
    grid = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scaled = nn.functional.interpolate(grid, (wanted, wanted), mode="bicubic", antialias=antialias)
    return scaled.permute(0, 2, 3, 1).flatten(1, 2).to(patches.dtype)
