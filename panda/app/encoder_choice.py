"""Find the encoder of tiles that a configuration names: a file of `conf/encoders`, a user's file, or a timm model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from panda.choices import find_files
from panda.errors import ConfigError, OptionError, suggest
from panda.inference.predictor import SegmentationPredictor
from panda.models.encoder_cards import EncoderCard
from panda.models.mil import MILNet
from panda.wsi.label_maps import read_yaml

DOWNLOADED = ("imagenet", "download")
"""Values of `model.encoder_weights` that are downloaded, which happens only after every check has passed."""
USUAL_MPP = 0.5
"""µm/px of the tiles of most encoders."""


def find_card(choice: Any, weights: Any = None) -> EncoderCard:
    """Return the card of the encoder that `find_encoder` finds, for these `encoder_weights`."""
    return EncoderCard.read(find_encoder(choice), weights)


def describe_weights_fault(model: Mapping[str, Any]) -> str | None:
    """Return why the encoder of a model has no such weights to download, which a check does not try; or None."""
    weights = model.get("encoder_weights")
    fault = find_card(model.get("encoder"), weights).describe_weights_fault(weights) if weights in DOWNLOADED else None
    return f"model.{fault}" if fault else None


def describe_scale(card: EncoderCard, mpp: float | None) -> tuple[str, float]:
    """Return the µm/px that an encoder was trained at, in words, and the nearest of them to `mpp` or the usual one."""
    return " or ".join(f"{own:g}" for own in card.mpp), min(card.mpp, key=lambda own: abs(own - (mpp or USUAL_MPP)))


def find_encoder(choice: Any) -> str | dict[str, Any]:
    """Return the encoder for `MILNet`: the plain data of a card, or the name of a timm model.

    Args:
        choice: The name of a file in `conf/encoders`, the path of a YAML file, or the name of a timm model.

    Raises:
        ConfigError: If there is no such encoder, or with all faults of its file.
    """
    own = str(choice).endswith((".yaml", ".yml"))
    known = find_files("encoders")
    if not own and str(choice) not in known:
        if timm.is_model(str(choice)):
            return str(choice)
        hint = suggest(str(choice), [*known, *timm.list_models()])
        raise ConfigError(
            f"model.encoder={choice}: timm has no such model, and conf/encoders no such file{hint}; give a timm model, "
            f"a PATH.yaml, or one of {', '.join(known)}"
        )
    path = Path(choice) if own else known[str(choice)]
    try:
        return EncoderCard.parse(read_yaml(path)).to_options()
    except OptionError as error:
        raise ConfigError([f"{path}: {fault.removeprefix('encoder.')}" for fault in error.faults]) from error


def copy_encoder(network: MILNet, segmenter: SegmentationPredictor) -> None:
    """Copy the weights of the segmentation's encoder into the encoder of the tiles, which must be of the same kind."""
    trained, own = segmenter.network.options, network.options
    kind = network.card.architecture
    name, prefix = segmenter.network.encoder_name, "model.encoder_weights=segmentation: the encoder of the segmentation"
    try:
        network.encoder.load_state_dict(segmenter.network.encoder.state_dict())
    except RuntimeError as error:
        other = name != kind and timm.is_model(name)
        raise ConfigError(
            f"{prefix} is {name}, which does not fit the encoder of the tiles, timm's {kind}; give "
            + f"model.encoder={name}, or " * other
            + "model.encoder_weights=null"
        ) from error
    if faults := [
        f"{prefix} was trained on pixels with {key} {trained[key]}; "
        f"give model.{key}={str(trained[key]).replace(' ', '')}"
        for key in ("mean", "std")
        if own[key] != trained[key]
    ]:
        raise ConfigError(faults)
