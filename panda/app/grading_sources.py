"""The sources of a grader's tiles and encoder: keys that contradict each other, and the copied encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm

from panda.app.hydra_job import find_idle_faults
from panda.app.operating_point import CHOICE_KEYS
from panda.errors import ConfigError
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.models.mil import MILNet
from panda.models.pooling import POOLINGS

SEGMENTATION_ENCODER = "segmentation"
"""Value of `model.encoder_weights` that takes the encoder of the segmentation checkpoint."""
DOWNLOADED = "imagenet"
"""Value of `model.encoder_weights` that is downloaded."""

IDLE_KEYS = (
    *CHOICE_KEYS,
    *(f"data.{key}" for key in ("batch_size", "stride", "edge", "min_tissue", "store", "extract_workers")),
    *(f"data.{key}" for key in ("sampler", "tumor_share", "ignore_background")),
)
"""Keys that have no effect in grading. The group `tiles` has its own."""

MAP_KEYS = ("colour_map", "quantify", *(f"quantify.{limit}" for limit in QuantifySettings.model_fields), "engine.tta")
"""Keys that only affect maps of slides, which only guided tiles need."""
AUGMENT_KEYS = ("augment", "data.augment", "data.augment.name")


def find_source_faults(plain: Mapping[str, Any]) -> list[str]:
    """Return the contradictions between the sources of tiles, weights and threshold, one sentence each."""
    faults = []
    guided, given = plain["tiles"]["how"] == "guided", plain["segmentation_checkpoint"]
    if guided and not given:
        which = "'runs/segmentation/sweep-NAME/*" if plain["tiles"].get("cross_fit") else "runs/segmentation/…"
        quote = "'" * which.startswith("'")
        faults.append(
            "segmentation_checkpoint is not given: tiles=guided needs one "
            f"(segmentation_checkpoint={which}/checkpoints/best.ckpt{quote}), tiles=tissue needs none"
        )
    if not guided and given:
        faults.append("segmentation_checkpoint is not used with tiles=tissue or all: remove it, or give tiles=guided")
    if not guided:
        faults += find_idle_faults(
            ("tiles.random_fraction", *MAP_KEYS), "tiles=tissue or all, which no segmentation guides"
        )
    if plain["tiles"]["how"] == "all":
        faults += find_idle_faults(("tiles.k",), "tiles=all (tiles=tissue takes some)")
    if plain["threshold"] != "auto":
        faults.append(
            f"threshold={plain['threshold']} is not used with task=grading, which takes it from the segmentation "
            "checkpoint: remove it"
        )
    if plain["model"].get("encoder_weights") == SEGMENTATION_ENCODER:
        if not guided:
            faults.append("model.encoder_weights=segmentation needs tiles=guided and a segmentation_checkpoint")
        if plain["tiles"].get("cross_fit"):
            faults.append(
                "model.encoder_weights=segmentation with tiles.cross_fit=true: there is an encoder for each fold, and "
                "each was trained on slides that others hold out; give another model.encoder_weights"
            )
    if plain["model"].get("freeze_encoder"):
        faults += find_idle_faults(AUGMENT_KEYS, "model.freeze_encoder=true, which encodes each tile once")
    pooling = plain["model"].get("pooling")
    if pooling in POOLINGS and not POOLINGS[pooling].uses_hidden:
        faults += find_idle_faults(("model.hidden",), f"model.pooling={pooling}")
    return faults


def copy_encoder(network: MILNet, segmenter: SegmentationPredictor) -> None:
    """Copy the weights of the segmentation's encoder into the encoder of the tiles, which must be of the same kind."""
    trained, own = segmenter.network.options, network.options
    name, prefix = trained["encoder_name"], "model.encoder_weights=segmentation: the encoder of the segmentation"
    try:
        network.encoder.load_state_dict(segmenter.network.encoder.state_dict())
    except RuntimeError as error:
        other = name != own["encoder"] and timm.is_model(name)
        raise ConfigError(
            f"{prefix} is {name}, which does not fit the encoder of the tiles, timm's {own['encoder']}; give "
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
