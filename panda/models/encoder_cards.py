"""Encoders of tiles: what must be known of one to use its published weights, and the network that follows from it.

timm's own configuration of an architecture is not that of other weights for it. So the card of an encoder decides about
normalization, size and pooling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import timm
import timm.layers
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from panda.errors import OptionError, suggest
from panda.models.conch import CONCH_HEADS, ConchEncoder
from panda.models.encoders import IMAGENET_MEAN, IMAGENET_STD
from panda.stored import SAME_SCALE, Plain, list_faults

Rgb = Annotated[tuple[float, float, float], Field(strict=False)]
"""Read from a list, because YAML and checkpoints have no tuples."""
Pooling = Literal["own", "cls", "cls_mean", "mean", "attention"]
PUBLISHED = ("cached", "download")
"""Values of `encoder_weights` that take the published weights of an encoder."""


class TimmOptions(Plain, frozen=True):
    """Arguments that timm builds an architecture with; it has its own for those that are None.

    No other argument is accepted, because some name files or addresses to load weights from.
    """

    img_size: PositiveInt | None = None
    patch_size: PositiveInt | None = None
    embed_dim: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: PositiveFloat | None = None
    init_values: PositiveFloat | None = None
    reg_tokens: NonNegativeInt | None = None
    no_embed_class: bool | None = None
    dynamic_img_size: bool | None = None
    mlp_layer: Literal["Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked"] | None = None
    act_layer: Literal["gelu", "relu", "silu"] | None = None


class EncoderCard(Plain, frozen=True):
    """An encoder of tiles. A file of `conf/encoders` is one card.

    Attributes:
        architecture: Name of a timm model.
        options: Arguments of the architecture.
        resize: Side in px to which a tile is scaled; None leaves it unchanged.
        input_size: Side in px of the centre that the encoder sees then; None is the whole tile.
        interpolation: How a tile is scaled.
        mean: Mean of R, G and B, for pixels in [0, 1].
        std: Standard deviation of R, G and B.
        pooling: How the tokens of a tile become its features: the class token, the mean of the patch tokens, both one
            after the other, as timm does it (`own`), or the attention of CONCH 1.5.
        dim: Number of features; None if nobody states it.
        mpp: The µm/px of the tiles that it was trained on; empty if it knows no scale.
        tile_size: Side in px of these tiles before `resize`; None if `mpp` alone counts.
        hub: Repository of its weights on the Hugging Face hub.
        revision: Commit of that repository; None is the newest one.
        gated: Whether the owner must grant access to them.
        licence: Licence of the weights.
        source: Where these facts are from.
    """

    architecture: str
    options: TimmOptions = TimmOptions()
    resize: PositiveInt | None = None
    input_size: PositiveInt | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD
    pooling: Pooling = "own"
    dim: PositiveInt | None = None
    mpp: Annotated[tuple[PositiveFloat, ...], Field(strict=False)] = ()
    tile_size: PositiveInt | None = None
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    gated: bool = False
    licence: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.resize is not None and self.input_size is not None and self.input_size > self.resize:
            raise PydanticCustomError("size", "input_size is above resize: the centre would be larger than the tile")
        if self.tile_size is not None and not self.mpp:
            raise PydanticCustomError("size", "tile_size is given without mpp: give both, or none")
        if self.pooling == "attention" and not (self.dim and self.dim % CONCH_HEADS == 0):
            raise PydanticCustomError("size", "pooling: attention needs dim, a multiple of 8: the width of the pooling")
        return self

    @classmethod
    def parse(cls, data: Any) -> Self:
        """Read a card from plain data; raise an OptionError with all its faults."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise OptionError([f"encoder.{fault}" for fault in list_faults(error)]) from error

    @classmethod
    def read(cls, encoder: str | Mapping[str, Any], weights: str | None = None) -> Self:
        """Read the card of an encoder: its plain data, or the name of a timm model.

        A name has the normalization of timm's default weights if `weights` is `imagenet`, otherwise that of ImageNet.
        """
        if not isinstance(encoder, str):
            return cls.parse(encoder)
        if weights != "imagenet" or not timm.is_model(encoder):
            return cls(architecture=encoder)
        trained: Any = timm.get_pretrained_cfg(encoder)  # many were trained with 0.5 and 0.5, also on ImageNet
        return cls(architecture=encoder, mean=tuple(trained.mean), std=tuple(trained.std))

    def to_options(self) -> dict[str, Any]:
        """Return plain data that `parse` reads again, without what is for readers of the file only."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"licence", "source"})

    def fits_mpp(self, mpp: float) -> bool:
        """Return whether px of a scale differ from those of the training by at most 10 %."""
        return not self.mpp or any(abs(mpp / own - 1) <= SAME_SCALE for own in self.mpp)

    def describe_scale_fault(self, mpp: float, tile_size: int) -> str | None:
        """Return how tiles differ from those that the encoder was trained on, or None if at most by 10 %.

        The side of a tile in µm is compared, because `resize` makes all tiles equally many px.
        """
        trained = [own * (self.tile_size or tile_size) for own in self.mpp]
        if not trained or any(abs(mpp * tile_size / side - 1) <= SAME_SCALE for side in trained):
            return None
        known = " or ".join(f"{own:g}" for own in self.mpp)
        size = f" px of {self.tile_size} px tiles" if self.tile_size else " px"
        return f"tiles of {tile_size} px at {mpp:g} µm/px, but the encoder was trained at {known} µm for{size}"

    def describe_weights_fault(self, weights: str | None) -> str | None:
        """Return why `encoder_weights` cannot be a set of published weights of this card, or None."""
        name, prefix = self.architecture, f"encoder_weights={weights}"
        if weights in PUBLISHED and self.hub is None:
            return f"{prefix}: the file of {name} names no hub; give a file of weights"
        if weights != "imagenet":
            return None
        if self.options != TimmOptions():
            return f"{prefix}: {name} has options here; give cached, download or a file"
        timms: Any = timm.get_pretrained_cfg(name)
        if self.hub not in (None, timms.hf_hub_id):
            return (
                f"{prefix}: the weights of this encoder are those of {self.hub}, and imagenet are timm's for {name}; "
                f"give cached, download or a file, or give model.encoder={name}"
            )
        if (self.mean, self.std) != (tuple(timms.mean), tuple(timms.std)):
            return (
                f"{prefix}: the weights of {name} were trained with mean {list(timms.mean)} and std {list(timms.std)}; "
                f"give these in the file of the encoder, or give model.encoder={name}"
            )
        return None

    def build(self) -> nn.Module:
        """Build the network with random weights and without classifier.

        Raises:
            OptionError: If timm has no such model, or cannot build it with these options, or its width is another.
        """
        if not timm.is_model(self.architecture):
            hint = suggest(self.architecture, timm.list_models())
            raise OptionError(f"encoder={self.architecture}: timm has no such model{hint}")
        options = self.options.model_dump(exclude_none=True)
        if "mlp_layer" in options:
            options["mlp_layer"] = getattr(timm.layers, options["mlp_layer"])
        try:
            encoder: nn.Module = timm.create_model(self.architecture, pretrained=False, num_classes=0, **options)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise OptionError(
                f"encoder={self.architecture}: timm cannot build it ({error}); give another model or other options"
            ) from error
        if self.pooling.startswith("cls") and not getattr(encoder, "num_prefix_tokens", 0):
            raise OptionError(f"encoder.pooling={self.pooling}: {self.architecture} has no class token; give mean")
        if self.pooling == "attention":
            assert self.dim is not None
            encoder = ConchEncoder(encoder, self.dim)
        if self.dim not in (None, width := self.get_width(encoder)):
            raise OptionError(f"encoder.dim={self.dim}: {self.architecture} with pooling {self.pooling} gives {width}")
        return encoder

    def get_width(self, encoder: nn.Module) -> int:
        """Return the number of features that `embed` gives."""
        if self.pooling == "attention":
            assert self.dim is not None
            return self.dim
        if self.pooling == "own":
            # Some models end in a layer wider than their last stage; head_hidden_size is the width of the output.
            return int(getattr(encoder, "head_hidden_size", None) or encoder.num_features)  # type: ignore[arg-type]
        return int(encoder.num_features) * (2 if self.pooling == "cls_mean" else 1)  # type: ignore[arg-type]

    def fit(self, tiles: Tensor) -> Tensor:
        """Scale tiles, (n, 3, h, w) in [0, 1], and cut out their centre, as the published transforms do with images.

        These scale images of bytes, first their rows, and round in between.
        """
        if (side := self.resize) is not None:
            for size in ((tiles.shape[-2], side), (side, side)):
                if tiles.shape[-2:] != size:
                    scaled = nn.functional.interpolate(tiles.float(), size, mode=self.interpolation, antialias=True)
                    tiles = (scaled * 255).round().clamp(0, 255).div(255).to(tiles.dtype)
        if self.input_size is None:
            return tiles
        top, left = (round((length - self.input_size) / 2) for length in tiles.shape[-2:])
        return tiles[..., top : top + self.input_size, left : left + self.input_size]

    def embed(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Return the features, (n, D), of images that are fitted and normalized."""
        if self.pooling in ("own", "attention"):
            features: Tensor = encoder(images)
            return features
        tokens: Tensor = encoder.forward_features(images)  # type: ignore[operator]
        if tokens.ndim == 4:  # of a convolutional network
            return tokens.mean(dim=(2, 3))
        patches = tokens[:, int(encoder.num_prefix_tokens) :].mean(dim=1)  # type: ignore[arg-type]
        if self.pooling == "mean":
            return patches
        first = tokens[:, 0]
        return first if self.pooling == "cls" else torch.cat([first, patches], dim=-1)
