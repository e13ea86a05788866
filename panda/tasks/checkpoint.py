"""What a checkpoint carries beside weights, and the one way to read it back.

The key `panda` of a Lightning checkpoint holds plain data (see `CARRIED`), so that inference needs nothing of
today's configuration, and the file loads with `weights_only=True`.
"""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from panda.errors import CheckpointError
from panda.files import whole_path

FORMAT = 1
Task = Literal["segmentation", "grading"]

CARRIED: Mapping[Task, tuple[str, ...]] = {
    "segmentation": (
        "network",  # arguments that rebuild the network, normalisation included
        "resolution",  # {"level", "mpp", "train_mpp"}: what was asked for, and [low, median, high] µm/px of training
        "patch_size",  # px at that resolution
        "overlap",  # of neighbouring tiles, share of the patch size
        "labels",  # provider -> mask codes that count as cancer
        "threshold",  # ThresholdChoice as plain data
        "train_slides",  # ids: a slide among these is in-sample
    ),
    "grading": (
        "network",
        "resolution",
        "tile_size",
        "tiles",  # {"how", "k", "random_fraction", "min_tissue", "seed"}
        "target",  # isup | cancer
        "segmentation",  # fingerprint of the segmenter that guided the tiles, or None
        "train_slides",
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read and checked.

    Attributes:
        path: The file.
        carried: The plain data under `panda`; its keys are those of `CARRIED`.
        weights: The network's state dict.
    """

    path: Path
    carried: dict[str, Any]
    weights: dict[str, torch.Tensor]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the network's weights and of what rebuilds it; the threshold does not enter."""
        digest = hashlib.sha256(repr(sorted(self.carried["network"].items())).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        hint = f"; there are {', '.join(near)}" if near else ""
        raise CheckpointError(f"checkpoint {path} does not exist{hint}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({reason[:160]}): give a .ckpt file under runs/…/checkpoints/"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(loaded.get(key), dict) for key in ("panda", "state_dict")):
        raise CheckpointError(
            f"checkpoint {path} was not written by this framework (no entry 'panda'): "
            "give a .ckpt file under runs/…/checkpoints/"
        )
    return loaded


def read_checkpoint(path: Path, task: Task) -> Checkpoint:
    """Reads a checkpoint of one task.

    Args:
        path: A file that `train.py` left.
        task: The task it has to be of.

    Raises:
        CheckpointError: If the file is missing, is no checkpoint, is of another task or another format.
    """
    loaded = _load(path)
    carried = loaded["panda"]
    if carried.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {carried.get('format')!r}, this version reads {FORMAT}: train again"
        )
    if carried.get("task") != task:
        raise CheckpointError(
            f"checkpoint {path} is of the task {carried.get('task')!r}, a {task} checkpoint is needed here"
        )
    missing = [key for key in CARRIED[task] if key not in carried]
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}: train again")
    prefix = "network."
    weights = {key.removeprefix(prefix): value for key, value in loaded["state_dict"].items() if key.startswith(prefix)}
    return Checkpoint(path, carried, weights)


def carried_data(task: Task, data: Mapping[str, Any]) -> dict[str, Any]:
    """Completes and checks what a LightningModule puts under `panda`.

    Args:
        task: The task of the module.
        data: Plain data with exactly the keys of `CARRIED[task]`.
    """
    assert set(data) == set(CARRIED[task]), set(data) ^ set(CARRIED[task])
    return {"format": FORMAT, "task": task, **data}


def replace_carried(path: Path, **changes: Any) -> None:
    """Writes entries of the carried data anew, for example the threshold chosen after training.

    The file is whole before and after: it is written beside and renamed.

    Args:
        path: A checkpoint of this framework.
        changes: Keys of `CARRIED` and their new plain values.
    """
    loaded = _load(path)
    unknown = set(changes) - set(loaded["panda"])
    assert not unknown, unknown
    loaded["panda"].update(changes)
    with whole_path(path) as beside:
        torch.save(loaded, beside)
