"""What a checkpoint carries beside weights, and the one way to read it back.

The key `panda` of a Lightning checkpoint holds plain data (see `CARRIED`), so that inference needs nothing of
today's configuration, and the file loads with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from panda.errors import CheckpointError, MaskError
from panda.files import write_whole
from panda.wsi.label_maps import LabelMap, find_label_map
from panda.wsi.stain_normalization import NormalizeName

Task = Literal["segmentation", "grading"]
FORMATS: Mapping[Task, int] = {"segmentation": 1, "grading": 2}
"""A new number whenever the same weights would give other results. Grading 2: the features of tiles are normalised."""

Share = Annotated[float, Field(ge=0, le=1)]


class _Resolution(BaseModel, strict=True):
    level: int | None  # what was asked for: a level, or
    mpp: float | None  # µm/px
    train_mpp: Annotated[list[float], Field(min_length=3, max_length=3)] | None  # lowest, median, highest of training


class _Threshold(BaseModel, strict=True):  # ThresholdChoice as plain data
    value: Share
    criterion: str
    score: float | None
    chosen_on: str
    date: str
    # Not in checkpoints of before there were such choices.
    cost_ratio: Annotated[float, Field(gt=0)] | None = None
    interval: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    interval_note: str = ""
    by_provider: dict[str, _Threshold] = {}


class _Calibration(BaseModel, strict=True):  # Temperature as plain data
    value: Annotated[float, Field(gt=0)] | None
    note: str
    chosen_on: str
    date: str


class _Tiles(BaseModel, strict=True):
    how: Literal["guided", "tissue"]
    k: PositiveInt
    random_fraction: Share
    min_tissue: Share
    seed: int


class _Network(BaseModel, strict=True):
    network: dict[str, Any]  # arguments that rebuild the network, normalisation included
    resolution: _Resolution
    train_slides: list[str]  # ids of the slides it learnt from, and
    val_slides: list[str]  # of those on which epoch and threshold were chosen: on both it is in-sample
    normalize: NormalizeName | None = None  # how slides' colours were brought to a reference's; not in older ones


class _Segmentation(_Network, strict=True):
    patch_size: PositiveInt  # px at the resolution
    overlap: Annotated[float, Field(ge=0, lt=1)]  # of neighbouring tiles, share of the patch size
    label_maps: dict[str, LabelMap]  # by provider: what the mask codes of the slides it was trained on mean
    threshold: _Threshold
    precision: Literal["fp32", "bf16"]  # of the engine that mapped the slides on which the threshold was chosen
    tta: Literal["none", "flip", "d4"] = "none"  # likewise: copies of a tile that were averaged
    calibration: _Calibration | None = None  # what is known of the probabilities; maps are not changed by it


class _Grading(_Network, strict=True):
    tile_size: PositiveInt  # px at the resolution
    tiles: _Tiles
    target: Literal["isup", "cancer"]
    segmentation: list[str]  # fingerprints of the segmenters that guided the tiles, none or several


_MODELS: Mapping[Task, type[_Network]] = {"segmentation": _Segmentation, "grading": _Grading}

CARRIED: Mapping[Task, tuple[str, ...]] = {task: tuple(model.model_fields) for task, model in _MODELS.items()}
"""Keys of the carried data of each task."""

_DEFAULTS: Mapping[Task, dict[str, Any]] = {
    task: {name: info.default for name, info in model.model_fields.items() if not info.is_required()}
    for task, model in _MODELS.items()
}
"""Keys that a checkpoint may lack, and what then stands for them."""


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
    def label_maps(self) -> dict[str, LabelMap]:
        """The label maps of the providers whose masks it was trained on."""
        return {name: LabelMap.model_validate(plain) for name, plain in self.carried.get("label_maps", {}).items()}

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
        folder = path if path.is_dir() else path.parent
        near = sorted(str(p) for pattern in ("*.ckpt", "checkpoints/*.ckpt") for p in folder.glob(pattern))
        remedy = f"there are {', '.join(near)}" if near else "train it, or give a .ckpt file under runs/…/checkpoints/"
        raise CheckpointError(f"checkpoint {path} {'is a folder' if path.is_dir() else 'does not exist'}; {remedy}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        reason = " ".join((type(error).__name__, *str(error).strip().split(". ")[0].splitlines()[:1]))
        raise CheckpointError(
            f"checkpoint {path} is none, or damaged ({reason[:160]}): give a .ckpt file under runs/…/checkpoints/"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(loaded.get(key), dict) for key in ("panda", "state_dict")):
        raise CheckpointError(
            f"checkpoint {path} was not written by this framework (no entry 'panda'): "
            "give a .ckpt file under runs/…/checkpoints/"
        )
    return loaded


def read_checkpoint(path: Path, task: Task) -> Checkpoint:
    """Read a checkpoint of one task.

    Args:
        path: A file that `train.py` left.
        task: The task it has to be of.

    Raises:
        CheckpointError: If the file is missing, is no checkpoint, is of another task or another format, or an entry
            of it is not what it has to be, or an older one had other cancer codes than `conf/label_maps` has.
    """
    loaded = _load(path)
    carried = loaded["panda"]
    if carried.get("task") != task:
        raise CheckpointError(
            f"checkpoint {path} is of the task {carried.get('task')!r}, a {task} checkpoint is needed here"
        )
    if carried.get("format") != FORMATS[task]:
        raise CheckpointError(
            f"checkpoint {path} has format {carried.get('format')!r}, this version reads {FORMATS[task]}: train again"
        )
    if "labels" in carried:
        carried = {"label_maps": _label_maps_of_codes(path, carried["labels"])} | carried
    carried = _DEFAULTS[task] | carried
    missing = [key for key in CARRIED[task] if key not in carried]
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}: train again")
    altered = "it was altered, or made by another version: train again"
    try:
        _MODELS[task].model_validate(carried)
    except ValidationError as error:
        faults = "; ".join(
            f"panda.{'.'.join(map(str, fault['loc']))} is {repr(fault['input'])[:80]}, {fault['msg'].lower()}"
            for fault in error.errors()
        )
        raise CheckpointError(f"checkpoint {path}: {faults}; {altered}") from error
    for key, value in loaded["state_dict"].items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"checkpoint {path}: state_dict[{key!r}] is no tensor under a name; {altered}")
    prefix = "network."
    weights = {key.removeprefix(prefix): value for key, value in loaded["state_dict"].items() if key.startswith(prefix)}
    return Checkpoint(path, carried, weights)


def _label_maps_of_codes(path: Path, labels: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return label maps for a checkpoint from before they were stored, which has only cancer codes by provider.

    Raises:
        CheckpointError: If a provider is unknown today, or other codes of it are cancer today.
    """
    label_maps = {}
    for provider, codes in labels.items():
        try:
            label_map = find_label_map(provider)
        except MaskError as error:
            raise CheckpointError(
                f"checkpoint {path}: the mask codes {codes} of {provider} were cancer in training; {error}"
            ) from error
        if list(label_map.cancer) != codes:
            raise CheckpointError(
                f"checkpoint {path}: the mask codes {codes} of {provider} were cancer in training, "
                f"conf/label_maps/{provider}.yaml has {list(label_map.cancer)}: correct that file, or train again"
            )
        label_maps[provider] = label_map.model_dump(mode="json")
    return label_maps


def carried_data(task: Task, data: dict[str, Any]) -> dict[str, Any]:
    """Completes and checks what a LightningModule puts under `panda`.

    Args:
        task: The task of the module.
        data: Plain data with the keys of `CARRIED[task]`; what is known only after training may be left out.
    """
    data = _DEFAULTS[task] | data
    assert set(data) == set(CARRIED[task]), set(data) ^ set(CARRIED[task])
    return {"format": FORMATS[task], "task": task, **data}


def replace_carried(path: Path, **changes: Any) -> None:
    """Write entries of the carried data anew, for example the threshold chosen after training.

    The file is whole before and after: it is written beside and renamed.

    Args:
        path: A checkpoint of this framework.
        changes: Keys of `CARRIED` and their new plain values.
    """
    loaded = _load(path)
    unknown = set(changes) - set(CARRIED[loaded["panda"]["task"]])
    assert not unknown, unknown
    loaded["panda"].update(changes)
    _save(loaded, path)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all.

    Lightning's own writer copies from the system's folder for temporary files over the old checkpoint where that
    is another file system: a full disk or a killed process would leave neither the old nor the new one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """See the base class; `storage_options` is not used."""
        _save(checkpoint, Path(path))


def _save(data: dict[str, Any], path: Path) -> None:
    # By way of memory: writing straight to a full disk, torch raises a RuntimeError that names nothing.
    buffer = io.BytesIO()
    torch.save(data, buffer)
    write_whole(path, buffer.getvalue())
