"""Checkpoints of small untrained networks, as training leaves them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from panda.models.mil import MILNet
from panda.models.segmentation import Segmenter
from panda.tasks.checkpoint import Task, carried_data
from panda.tasks.threshold import search_threshold

RESOLUTION = {"level": 1, "mpp": None, "train_mpp": [2.0, 2.0, 2.0]}


def write(path: Path, task: Task, network: nn.Module, carried: dict[str, Any]) -> Path:
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "panda": carried_data(task, carried)}, path)
    return path


def segmentation_checkpoint(path: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    network = Segmenter("unet", "resnet18", decoder_channels=[16, 16, 8, 8, 8])
    carried = {
        "network": network.plain(),
        "resolution": RESOLUTION,
        "patch_size": 64,
        "overlap": 0.5,
        "label_maps": {},
        "threshold": search_threshold({}).plain(),
        "precision": "fp32",
        "train_slides": [],
        "val_slides": [],
    }
    return write(path, "segmentation", network, carried | changes)


def grading_checkpoint(path: Path, network: MILNet | None = None, **changes: Any) -> Path:
    torch.manual_seed(0)
    network = network or MILNet(num_classes=6, encoder="resnet18", hidden=8)
    carried = {
        "network": network.plain(),
        "resolution": RESOLUTION,
        "tile_size": 64,
        "tiles": {"how": "guided", "k": 2, "random_fraction": 0.0, "min_tissue": 0.25, "seed": 0},
        "target": "isup",
        "segmentation": [],
        "train_slides": [],
        "val_slides": [],
    }
    return write(path, "grading", network, carried | changes)
