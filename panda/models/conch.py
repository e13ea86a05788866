"""The tile encoder of CONCH 1.5: a vision transformer whose tokens a learned query pools by attention.

Names and shapes of the weights are those of https://huggingface.co/MahmoodLab/conchv1_5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

CONCH_HEADS = 8
"""Attention heads of the pooling."""
_SIDE = 14
"""Patches a side of the published network, whose positions are interpolated for a larger image."""
_POSITIONS = "trunk.pos_embed"


class ConchEncoder(nn.Module):
    """Pool all tokens of a vision transformer, (n, tokens, D), to features (n, width).

    Args:
        trunk: A vision transformer of timm.
        width: Number of features.
    """

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = _QueryPooling(width, int(trunk.num_features))  # type: ignore[arg-type]
        self.ln_contrast = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, (n, width), of images that are fitted and normalized."""
        tokens: Tensor = self.trunk.forward_features(images)  # type: ignore[operator]
        features: Tensor = self.ln_contrast(self.attn_pool_contrast(tokens))
        return features

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return which parameters belong to the stem and to each block, as the method of timm's models does."""
        blocks = [(r"^trunk\.blocks\.(\d+)", None), (r"^trunk\.norm|^attn_pool_contrast|^ln_contrast", (99999,))]
        return {"stem": r"^trunk\.cls_token|^trunk\.pos_embed|^trunk\.patch_embed", "blocks": blocks}


class _QueryPooling(nn.Module):
    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width))
        self.ln_k = nn.LayerNorm(tokens)
        self.ln_q = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(tokens, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens, (n, tokens, D), to (n, width)."""
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), 1, -1)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        parts = (part.unflatten(-1, (CONCH_HEADS, -1)).transpose(1, 2) for part in (query, key, value))
        pooled = nn.functional.scaled_dot_product_attention(*parts)
        out: Tensor = self.to_out(pooled.transpose(1, 2).flatten(2))
        return out[:, 0]


def convert_conch(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the positions that the published network computes from the stored ones.

    It reduces them to 14 × 14 patches first, and interpolates these to the patches of an image with a tenth of a patch
    added, so the result differs from one step.

    Args:
        state: Names and weights of a file.
        own: State dict of the network.
    """
    if _POSITIONS not in own or _POSITIONS not in state:
        return dict(state)
    positions = state[_POSITIONS].float()
    first, patches = positions[:, :1], positions[:, 1:]
    side, wanted = math.isqrt(patches.shape[1]), math.isqrt(own[_POSITIONS].shape[1] - 1)
    if side**2 != patches.shape[1]:
        return dict(state)  # the shape is refused with all others
    grid = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if side != _SIDE:
        grid = nn.functional.interpolate(grid, (_SIDE, _SIDE), mode="bilinear")
    if wanted != _SIDE:
        grid = nn.functional.interpolate(grid, scale_factor=(wanted + 0.1) / _SIDE, mode="bicubic")
    return dict(state) | {_POSITIONS: torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)}
