"""A network that grades a slide from a bag of its tiles: an encoder of tiles, a pooling and a head.

Shapes: K tiles in a bag, B bags, D features of a tile, C classes. Tiles are (K, 3, h, w) or (B, K, 3, h, w), RGB in
[0, 1], floating point. Features are (K, D) or (B, K, D). A mask, (K,) or (B, K) bool, is True for a real tile; None if
all are real. A `ValueError` is raised if shapes do not agree, or a bag has no real tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from panda.errors import OptionError
from panda.models.encoder_cards import EncoderCard
from panda.models.encoders import Normalize, check_size
from panda.models.pooling import HEADS, POOLINGS, Head, Pooling, parse_options
from panda.models.published_weights import fill_encoder
from panda.models.trained_blocks import hold_frozen, train_last_blocks

_OF_PIXELS = ("encoder_weights", "freeze_encoder", "train_blocks", "chunk", "mean", "std")
"""Options that mean nothing without an encoder."""


class MILNet(nn.Module):
    """Grade a slide from a bag of its tiles, with a weight for each tile.

    Args:
        encoder: Name of a timm model, or the plain data of an `EncoderCard`. None: the network takes features that were
            computed before.
        encoder_weights: None for random weights; "imagenet" for timm's default ones, which are downloaded; "cached" for
            the published ones in the local cache of the hub, and "download" to download them to it; or the path of a
            local state dict of the encoder, whose classifier is ignored.
        num_classes: C; 6 for ISUP grades 0 to 5, 2 for cancer absent or present, 1 for a number.
        pooling: How tiles become a bag, a name of `POOLINGS`.
        head: How bags become classes, a name of `HEADS`.
        hidden: Width of the hidden layer of the pooling, if it has one.
        pooling_options: Options that only this pooling has, those of its class `Options`.
        dropout: Dropout of a bag's features before the head, in [0, 1).
        freeze_encoder: Keep the encoder as it is, without gradient or change of its batch statistics.
        train_blocks: Number of last blocks of the encoder that learn; the others are frozen. None lets all learn.
        chunk: Largest number of tiles to encode at once. A larger bag that needs gradients is encoded again in the
            backward pass, so memory grows with the chunk and not with the bag.
        mean: Mean of R, G and B, for pixels in [0, 1]. None is that of the card; for the name of a timm model the mean
            of its default weights if `encoder_weights` is "imagenet", otherwise that of ImageNet.
        std: Standard deviation of R, G and B; None as for `mean`.
        feature_dim: D of a network without an encoder, otherwise None.

    Raises:
        OptionError: If the encoder does not exist, a number is out of range, or weights are missing or do not fit.

    Attributes:
        options: Plain data that rebuilds the architecture: `MILNet(**options)` downloads no weights.
        notes: What was used of a file of weights, in sentences.
    """

    def __init__(
        self,
        encoder: str | Mapping[str, Any] | None = "resnet18",
        encoder_weights: str | None = None,
        num_classes: int = 6,
        *,
        pooling: Pooling = "gated",
        head: Head = "softmax",
        hidden: int = 128,
        pooling_options: Mapping[str, Any] | None = None,
        dropout: float = 0.25,
        freeze_encoder: bool = False,
        train_blocks: int | None = None,
        chunk: int = 64,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        feature_dim: int | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        faults = [
            f"{key}={value}: must be at least {least}"
            for key, value, least in (("num_classes", num_classes, 1), ("hidden", hidden, 1), ("chunk", chunk, 1))
            if value < least
        ]
        if freeze_encoder and train_blocks is not None:
            faults.append(f"train_blocks={train_blocks} is not used with freeze_encoder=true: leave it out")
        if num_classes == 1 and head == "ordinal":
            faults.append("head=ordinal: needs at least two classes; give softmax")
        if not 0 <= dropout < 1:
            faults.append(f"dropout={dropout}: must be at least 0 and below 1")
        try:
            options = parse_options(pooling, hidden, head, pooling_options)
        except OptionError as error:
            faults += error.faults
        if encoder is None and (feature_dim is None or feature_dim < 1):
            faults.append(f"feature_dim={feature_dim}: must be at least 1 without an encoder")
        if encoder is not None and feature_dim is not None:
            faults.append(f"feature_dim={feature_dim}: the encoder decides it; leave it out")
        try:
            if encoder is None:
                self.encoder: nn.Module = nn.Identity()
            else:
                self.card = EncoderCard.read(encoder, encoder_weights)
                self.encoder = self.card.build()
                if freeze_encoder:
                    self.encoder.requires_grad_(False)
                elif train_blocks is not None:
                    train_last_blocks(self.encoder, train_blocks)
        except OptionError as error:
            faults += error.faults
        if faults:
            raise OptionError(faults)
        self.chunk = chunk
        self.frozen = freeze_encoder
        self.notes: list[str] = []
        idle = _OF_PIXELS if encoder is None else ("feature_dim",)
        self.options: dict[str, Any] = {key: value for key, value in given.items() if key not in idle}
        self.feature_dim = feature_dim or self._fill_encoder(encoder, encoder_weights, mean, std)
        self.options["pooling_options"] = options.model_dump() or None
        self.pool = POOLINGS[pooling](self.feature_dim, hidden, num_classes, options)
        classifies = self.pool.classifies
        self.dropout = nn.Dropout(0.0 if classifies else dropout)
        self.classifier = nn.Identity() if classifies else HEADS[head](self.pool.features, num_classes)
        hold_frozen(self.encoder)

    def _fill_encoder(
        self,
        encoder: str | Mapping[str, Any] | None,
        weights: str | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> int:
        """Load the weights of the encoder and set the normalization of pixels; return D. See the class for `mean`."""
        if weights is not None:
            self.notes = fill_encoder(self.encoder, self.card, weights)
        mean = self.card.mean if mean is None else mean
        std = self.card.std if std is None else std
        self.options["encoder"] = encoder if isinstance(encoder, str) else self.card.to_options()
        rgb = {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
        self.options |= rgb | {"encoder_weights": None}
        self.normalize = Normalize(mean, std)
        return self.card.get_width(self.encoder)

    def train(self, mode: bool = True) -> MILNet:
        """Set training or evaluation mode; the frozen part of the encoder stays in evaluation mode."""
        super().train(mode)
        hold_frozen(self.encoder)
        return self

    def forward(self, bag: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Grade bags of tiles, or of features that were encoded before.

        Only real tiles are encoded, so the content of the others has no influence, not even on batch statistics.

        Returns:
            Logits, (C,) or (B, C); attention, (K,) or (B, K) float32, which sums to 1 over a bag; features, (K, D) or
            (B, K, D). Attention and features are 0 for tiles that are not real.
        """
        if bag.ndim in (2, 3):
            logits, attention = self.aggregate(bag, mask)
            return logits, attention, bag if mask is None else bag.masked_fill(~mask[..., None], 0.0)
        if bag.ndim not in (4, 5) or bag.shape[-3] != 3:
            raise ValueError(f"a bag is (K, 3, h, w) or (B, K, 3, h, w), not {tuple(bag.shape)}")
        mask = _check_mask(bag.shape[:-3], mask, bag.device)
        # Under autocast the features have another dtype than the tiles.
        real = self.encode(bag[mask])
        feats = real.new_zeros(*mask.shape, self.feature_dim)
        feats[mask] = real
        logits, attention = self.aggregate(feats, mask)
        return logits, attention, feats

    def encode(self, tiles: Tensor) -> Tensor:
        """Turn tiles, (K, 3, h, w), into features, (K, D), at most `chunk` at once: what the encoder gives."""
        if self.options["encoder"] is None:
            raise ValueError("a network without an encoder takes features, not tiles")
        # Parts have about equal size, because batch statistics of a last part of one tile would be noise.
        parts = torch.tensor_split(tiles, math.ceil(len(tiles) / self.chunk))
        learning = torch.is_grad_enabled() and not self.frozen
        with torch.set_grad_enabled(learning):
            encode: Callable[[Tensor], Tensor]
            if learning and len(parts) > 1:
                encode = partial(
                    checkpoint,
                    self._encode_part,
                    use_reentrant=False,
                    context_fn=lambda: (nullcontext(), _hold_statistics(self.encoder)),  # forward, and repeated
                )
            else:
                encode = self._encode_part
            return torch.cat([encode(part) for part in parts])

    def _encode_part(self, tiles: Tensor) -> Tensor:
        return self.card.embed(self.encoder, self.normalize(self.card.fit(tiles)))

    def aggregate(self, feats: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits, (C,) or (B, C), and attention, (K,) or (B, K), of bags of features."""
        if feats.ndim not in (2, 3) or feats.shape[-1] != self.feature_dim:
            raise ValueError(f"features are (K, D) or (B, K, D) with D = {self.feature_dim}, not {tuple(feats.shape)}")
        mask = _check_mask(feats.shape[:-1], mask, feats.device)
        single = feats.ndim == 2
        if single:
            feats, mask = feats[None], mask[None]
        feats = feats.masked_fill(~mask[..., None], 0.0)  # 0 × NaN would be NaN
        bags, attention = self.pool(self._scale(feats), mask)
        logits: Tensor = self.classifier(self.dropout(bags))
        return (logits[0], attention[0]) if single else (logits, attention)

    def _scale(self, feats: Tensor) -> Tensor:
        """Scale features to mean 0 and variance 1 in each tile (layer normalization without weights).

        Encoders differ much in scale and offset, and attention on unscaled values is slow to learn.
        """
        return nn.functional.layer_norm(feats, (self.feature_dim,))

    def add_auxiliary_loss(self, loss: Tensor, feats: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        """Add to the loss of bags of features what the pooling itself learns in training.

        Args:
            loss: Scalar loss of the logits.
            feats: Features that `forward` returned, (B, K, D).
            mask: (B, K).
            label: Classes of the bags, (B,) int64.
        """
        return self.pool.add_auxiliary_loss(loss, self._scale(feats), mask, label)

    def count_left_out(self, tiles: int) -> int:
        """Return how many tiles of a bag are left out at once for their contributions: 1 if these are exact."""
        return int(self.pool.group_tiles(tiles).bincount().max())

    def compute_contributions(self, feats: Tensor, predicted: int) -> Tensor:
        """Compute the contribution of each tile to a class: its log odds with the tile minus those without it.

        With one output, C = 1, it is the output with the tile minus that without it.
        A pooling may leave out groups of tiles together, see `GroupedPooling`; their tiles share the change equally.

        Args:
            feats: Features of one bag, (K, D).
            predicted: The class; 0 with one output.

        Returns:
            (K,) float32, positive if the tile raises the odds of the class; 0 for a bag of one tile.
        """
        if len(feats) == 1:
            return feats.new_zeros(1, dtype=torch.float32)
        without: Tensor = self.classifier(self.dropout(self.pool.pool_without_each(self._scale(feats))))
        change = _compute_log_odds(self.aggregate(feats)[0], predicted) - _compute_log_odds(without, predicted)
        groups = self.pool.group_tiles(len(feats)).to(feats.device)
        return (change / groups.bincount())[groups]

    def check_tile_size(self, tile_size: int) -> None:
        """Check that the encoder accepts square tiles of a side in working px, see `check_size`."""
        size = self.card.input_size or self.card.resize or tile_size
        if self.card.resize is None and size > tile_size:
            raise OptionError(f"tile_size={tile_size}: the encoder sees the central {size} px; give at least {size}")
        check_size(self.encoder, self.card.architecture, size, 1, "tile_size" if size == tile_size else "input_size")


def _compute_log_odds(logits: Tensor, index: int) -> Tensor:
    logits = logits.float()
    if logits.shape[-1] == 1:
        return logits[..., 0]
    others = torch.cat([logits[..., :index], logits[..., index + 1 :]], dim=-1)
    return logits[..., index] - others.logsumexp(dim=-1)


def _check_mask(shape: torch.Size, mask: Tensor | None, device: torch.device) -> Tensor:
    """Return the mask in full, or raise a ValueError."""
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool, device=device)
    if mask.shape != shape or mask.dtype != torch.bool:
        raise ValueError(f"mask is {tuple(mask.shape)} {mask.dtype}, but must be {tuple(shape)} torch.bool")
    empty = (~mask.any(dim=-1)).reshape(-1).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"bag {', '.join(map(str, empty))} of the batch has no real tile: leave such a slide out")
    return mask


@contextmanager
def _hold_statistics(module: nn.Module) -> Iterator[None]:
    """Keep running batch statistics, because a checkpointed part passes twice but is one batch."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [
        (norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone())
        for norm in norms
    ]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)
