"""Checkpoints of small untrained networks, as training leaves them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from panda.models.mil import MILNet
from panda.models.segmentation import Segmenter
from panda.tasks.gleason_search import GleasonRuleChoice, GleasonRuleSettings
from panda.tasks.metadata import CheckpointMetadata, GradingMetadata, SegmentationMetadata
from panda.tasks.threshold import search_threshold
from panda.wsi.classes import BINARY, ClassSet

RESOLUTION = {"level": 1, "mpp": None, "train_mpp": [2.0, 2.0, 2.0]}


def write(path: Path, kind: type[CheckpointMetadata], network: nn.Module, data: dict[str, Any]) -> Path:
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "panda": kind.model_validate(data).to_entry()}, path)
    return path


def segmentation_checkpoint(
    path: Path, classes: ClassSet = BINARY, segmenter: Segmenter | None = None, **changes: Any
) -> Path:
    torch.manual_seed(0)
    network = segmenter or Segmenter("unet", "resnet18", decoder_channels=[16, 16, 8, 8, 8], channels=classes.channels)
    data = {
        "network": network.options,
        "resolution": RESOLUTION,
        "patch_size": 64,
        "overlap": 0.5,
        "label_maps": {},
        "threshold": search_threshold({}),
        "precision": "fp32",
        "train_slides": [],
        "val_slides": [],
        "classes": classes.model_dump(mode="json"),
    }
    if not classes.is_binary:
        rule = GleasonRuleChoice.from_settings(GleasonRuleSettings(), "a checkpoint of a test")
        data["gleason_rule"] = rule.model_dump(mode="json")
    return write(path, SegmentationMetadata, network, data | changes)


def grading_checkpoint(path: Path, network: MILNet | None = None, **changes: Any) -> Path:
    torch.manual_seed(0)
    network = network or MILNet(num_classes=6, encoder="resnet18", hidden=8)
    data = {
        "network": network.options,
        "resolution": RESOLUTION,
        "tile_size": 64,
        "tiles": {"how": "guided", "k": 2, "random_fraction": 0.0, "min_tissue": 0.25, "seed": 0},
        "target": "isup",
        "segmentation": [],
        "train_slides": [],
        "val_slides": [],
    }
    return write(path, GradingMetadata, network, data | changes)
