"""TransMIL (Shao et al. 2021) with Nyström attention (Xiong et al. 2021). See `bag_pooling` for shapes."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from panda.models.bag_pooling import GroupedPooling, scale_signed
from panda.stored import Plain

_HEADS = 8
_INVERSION_STEPS = 6
_RESIDUAL_LENGTH = 33
_KERNELS = (7, 5, 3)


class TransmilOptions(Plain, frozen=True):
    """Options of `TransmilPooling`: dropout after each self-attention."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class NystromAttention(nn.Module):
    """Self-attention of one bag through landmarks (Xiong et al. 2021, "Nyströmformer", equation 15).

    Landmarks are means of tokens that follow each other; zeros before the first token fill the last landmark. A
    convolution over the tokens of each head is added to the output. The inverse of the matrix of the landmarks takes
    six steps, whose start is common to all heads. All this is as in the package `nystrom-attention`, which the authors
    of TransMIL use.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.landmarks = width // 2
        self.inner = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        kernel = (_RESIDUAL_LENGTH, 1)
        self.residual = nn.Conv2d(_HEADS, _HEADS, kernel, padding=(_RESIDUAL_LENGTH // 2, 0), groups=_HEADS, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return new tokens, (n, width), and the weights of all tokens for the first one, (heads, n)."""
        count, width = tokens.shape
        first = -count % self.landmarks
        inner = self.inner(nn.functional.pad(tokens, (0, 0, first, 0)))
        query, key, value = inner.reshape(len(inner), 3, _HEADS, -1).permute(1, 2, 0, 3)
        query = query / math.sqrt(width // _HEADS)
        queries, keys = (part.reshape(_HEADS, self.landmarks, -1, width // _HEADS).mean(2) for part in (query, key))
        to_landmarks = (query @ keys.mT).softmax(-1)
        from_tokens = (queries @ key.mT).softmax(-1)
        inverse = _invert((queries @ keys.mT).softmax(-1))
        out = (to_landmarks @ inverse) @ (from_tokens @ value) + self.residual(value[None])[0]
        weights = to_landmarks[:, first : first + 1] @ inverse @ from_tokens
        tokens = self.output(out.transpose(0, 1).flatten(1))[first:]
        return tokens, weights[:, 0, first:]


def _invert(matrix: Tensor) -> Tensor:
    """Return the approximate Moore-Penrose inverse of matrices, (heads, m, m) (Xiong et al. 2021, section 3)."""
    size = matrix.abs()
    inverse = matrix.mT / (size.sum(-1).max() * size.sum(-2).max())
    one = torch.eye(matrix.shape[-1], device=matrix.device)
    for _ in range(_INVERSION_STEPS):
        product = matrix @ inverse
        inverse = inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product))) / 4
    return inverse


class TransmilPooling(GroupedPooling):
    """Two layers of self-attention around a convolution over the square that the tiles are laid on.

    The order of the tiles has influence here, as published. Landmarks are means of tiles that follow each other. The
    tiles are laid row by row on the smallest square that holds them, whose last places the first tiles take again. So
    neighbours on the square follow each other in the bag, or are a row apart. They need not be neighbours on the slide.

    The weight of a tile is that of the last layer for the token of the bag, averaged over the heads. A tile that is in
    the square twice has the sum. Nyström attention can give negative weights, see `scale_signed`.
    """

    Options = TransmilOptions
    hidden_multiple = _HEADS

    def __init__(self, features: int, hidden: int, classes: int, options: TransmilOptions) -> None:
        super().__init__(features, hidden, classes, options)
        self.features = hidden
        self.project = nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
        self.token = nn.Parameter(torch.randn(1, hidden))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.layers = nn.ModuleList(NystromAttention(hidden, options.dropout) for _ in range(2))
        self.positions = nn.ModuleList(
            nn.Conv2d(hidden, hidden, size, padding=size // 2, groups=hidden) for size in _KERNELS
        )
        self.norm = nn.LayerNorm(hidden)

    def pool_bag(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """See `GroupedPooling.pool_bag`."""
        count = len(tiles)
        side = math.isqrt(count - 1) + 1
        tokens = self.project(tiles).float()
        # The inversion of a matrix in half precision diverges.
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = torch.cat([self.token, tokens, tokens[: side * side - count]])
            tokens = tokens + self.layers[0](self.norms[0](tokens))[0]
            square = tokens[1:].T.reshape(1, -1, side, side)
            square = square + sum(convolve(square) for convolve in self.positions)
            tokens = torch.cat([tokens[:1], square.flatten(2)[0].T])
            change, weights = self.layers[1](self.norms[1](tokens))
            bag = self.norm(tokens[0] + change[0])
        weights = weights.mean(0)[1:]
        weights = nn.functional.pad(weights[count:], (0, 2 * count - len(weights))) + weights[:count]
        return bag, scale_signed(weights)
