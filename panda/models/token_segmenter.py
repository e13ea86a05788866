"""A segmentation network over a vision transformer, such as a pathology foundation model, with a light decoder.

A transformer gives one token for each square of 8 to 16 px, at the same scale in each block. The decoder turns tokens
into logits of tokens, or of quarters of them, which are interpolated to pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from panda.errors import OptionError
from panda.models.encoder_cards import EncoderCard
from panda.models.encoders import Normalize
from panda.models.published_weights import fill_encoder
from panda.models.segmentation import Segmenter
from panda.models.trained_blocks import hold_frozen, train_last_blocks

Decoder = Literal["conv", "linear"]

_DEPTHS = 4
"""Blocks whose tokens the decoder `conv` takes, at equal distances, the last one included."""


class TokenSegmenter(Segmenter):
    """Score each pixel from the tokens of a vision transformer.

    Patches go through the network at their own scale. `resize` and `input_size` of the card, which are for features of
    tiles, are not used. Positions are interpolated to the number of tokens of a patch.

    Args:
        encoder: Name of a timm model, or the plain data of an `EncoderCard`.
        encoder_weights: As for `MILNet`.
        mean: Mean of R, G and B, for pixels in [0, 1]. None is that of the card.
        std: Standard deviation of R, G and B; None as for `mean`.
        channels: Channels of the logits, see `panda.models.probabilities`.
        decoder: `linear` is one layer on the tokens of the last block. `conv` takes those of four blocks, and doubles
            their resolution twice, with a convolution each.
        decoder_channels: Width of the decoder `conv`.
        freeze_encoder: Keep the encoder as it is, without gradient.
        train_blocks: Number of last blocks of the encoder that learn; None lets all learn.

    Raises:
        OptionError: If the encoder does not exist or is no such transformer, a number is out of range, or weights are
            missing or do not fit.
    """

    def __init__(
        self,
        encoder: str | Mapping[str, Any] = "vit_small_patch16_dinov3",
        encoder_weights: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        channels: int = 1,
        decoder: Decoder = "conv",
        decoder_channels: int = 256,
        freeze_encoder: bool = True,
        train_blocks: int | None = None,
    ) -> None:
        nn.Module.__init__(self)  # the base class would build a network of segmentation-models-pytorch
        faults = []
        if decoder not in _DECODERS:
            faults.append(f"decoder={decoder}: there is no such decoder; give {' or '.join(_DECODERS)}")
        if decoder_channels < 4:
            faults.append(f"decoder_channels={decoder_channels}: must be at least 4")
        if freeze_encoder and train_blocks is not None:
            faults.append(f"train_blocks={train_blocks} needs freeze_encoder=false")
        try:
            card = EncoderCard.read(encoder, encoder_weights)
            built = _build_transformer(card)
            if freeze_encoder:
                built.requires_grad_(False)
            elif train_blocks is not None:
                train_last_blocks(built, train_blocks)
        except OptionError as error:
            faults += error.faults
        if faults:
            raise OptionError(faults)
        self.notes = [] if encoder_weights is None else fill_encoder(built, card, encoder_weights)
        mean = card.mean if mean is None else mean
        std = card.std if std is None else std
        self.options: dict[str, Any] = {
            "encoder": encoder if isinstance(encoder, str) else card.to_options(),
            "encoder_weights": None,
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
            "channels": channels,
            "decoder": decoder,
            "decoder_channels": decoder_channels,
            "freeze_encoder": freeze_encoder,
            "train_blocks": train_blocks,
        }
        self.card = card
        self.normalize = Normalize(mean, std)
        self.network = _TokenNetwork(built, decoder, decoder_channels, channels)
        hold_frozen(self.encoder)

    def train(self, mode: bool = True) -> TokenSegmenter:
        """Set training or evaluation mode; the frozen part of the encoder stays in evaluation mode."""
        super().train(mode)
        hold_frozen(self.encoder)
        return self

    @property
    def name(self) -> str:
        """See `Segmenter.name`."""
        return f"the decoder {self.options['decoder']} over {self.encoder_name}"

    @property
    def encoder_name(self) -> str:
        """See `Segmenter.encoder_name`."""
        return self.card.architecture

    @property
    def output_stride(self) -> int:
        """Side of a token, px."""
        return _find_token_side(self.encoder)


def find_segmenter(options: Mapping[str, Any]) -> type[Segmenter]:
    """Return the class that was built with these options."""
    return TokenSegmenter if "encoder" in options else Segmenter


class _TokenNetwork(nn.Module):
    """Encoder and decoder: images (n, 3, h, w) that are normalized to logits (n, channels, h, w)."""

    def __init__(self, encoder: nn.Module, decoder: Decoder, width: int, channels: int) -> None:
        super().__init__()
        depth, tokens = len(encoder.feature_info), int(encoder.num_features)  # type: ignore[arg-type]
        count = min(_DEPTHS, depth) if decoder == "conv" else 1
        self.blocks = [depth * (i + 1) // count - 1 for i in range(count)]
        self.encoder = encoder
        self.decoder = _DECODERS[decoder](tokens * count, width, channels)

    def forward(self, image: Tensor) -> Tensor:
        features: list[Tensor] = self.encoder.forward_intermediates(  # type: ignore[operator]
            image, indices=self.blocks, norm=True, intermediates_only=True
        )
        logits = self.decoder(torch.cat(features, dim=1))
        return nn.functional.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


def _make_linear_decoder(tokens: int, width: int, channels: int) -> nn.Module:
    return nn.Conv2d(tokens, channels, 1)


def _make_conv_decoder(tokens: int, width: int, channels: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(tokens, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for before, after in ((width, width // 2), (width // 2, width // 4)):
        layers += [nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(before, after, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width // 4, channels, 1))


_DECODERS = {"conv": _make_conv_decoder, "linear": _make_linear_decoder}


def _build_transformer(card: EncoderCard) -> nn.Module:
    """Build the encoder for images of any size that its tokens divide."""
    if card.pooling == "attention":
        raise OptionError(f"encoder={card.architecture} with pooling attention has no tokens for a map; take another")
    options = card.options.model_copy(update={"dynamic_img_size": True})
    refusal = f"encoder={card.architecture}: it is no vision transformer with tokens of one size for images of any size"
    try:
        encoder = card.model_copy(update={"options": options}).build()
    except OptionError as error:
        if "dynamic_img_size" in str(error):
            raise OptionError(f"{refusal}; take model=unet or another network for it") from error
        raise
    if not _find_token_side(encoder):
        raise OptionError(f"{refusal}; take model=unet or another network for it")
    return encoder


def _find_token_side(encoder: nn.Module) -> int:
    """Return the side of a token in px; 0 if the blocks differ in it, or the encoder does not give it."""
    if not (hasattr(encoder, "num_prefix_tokens") and hasattr(encoder, "forward_intermediates")):
        return 0
    sides = {int(info["reduction"]) for info in encoder.feature_info}  # type: ignore[union-attr]
    return sides.pop() if len(sides) == 1 else 0
