"""Read and write the checkpoints of this framework.

The key `panda` of a Lightning checkpoint holds plain data (see `panda.tasks.metadata`). Inference therefore needs
nothing of today's configuration, and the file loads with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pydantic import ValidationError

from panda.errors import CheckpointError, MaskError
from panda.files import fingerprint, write_whole
from panda.stored import describe_faults
from panda.tasks.metadata import CheckpointMetadata
from panda.wsi.label_maps import LabelMap, find_label_map

M = TypeVar("M", bound=CheckpointMetadata)
M_co = TypeVar("M_co", bound=CheckpointMetadata, covariant=True)

ALTERED = "the file was altered or written by another version: train again"
"""End of the message for a checkpoint that a model refuses."""

STATE_HASH = "panda_state"
"""Key of a checkpoint for the hash of its training state."""


@dataclass(frozen=True)
class Checkpoint(Generic[M_co]):
    """A checkpoint, read and checked.

    Attributes:
        path: The file.
        metadata: What the file says about the network.
        weights: State dict of the network.
    """

    path: Path
    metadata: M_co
    weights: dict[str, torch.Tensor]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the network's weights and options; the threshold does not enter."""
        digest = hashlib.sha256(repr(sorted(self.metadata.network.items())).encode())
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
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join((type(error).__name__, *str(error).strip().split(". ")[0].splitlines()[:1]))
        raise CheckpointError(
            f"checkpoint {path} is not a checkpoint, or is damaged ({reason[:160]}): "
            "give a .ckpt file under runs/…/checkpoints/"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(loaded.get(key), dict) for key in ("panda", "state_dict")):
        raise CheckpointError(
            f"checkpoint {path} was not written by this framework (no entry 'panda'): "
            "give a .ckpt file under runs/…/checkpoints/"
        )
    return loaded


def read_checkpoint(path: Path, kind: type[M]) -> Checkpoint[M]:
    """Read a checkpoint of one task.

    Raises:
        CheckpointError: If the file is missing, is no checkpoint, is of another task or format, or has a wrong entry.
            Also if an older file has other cancer codes than `conf/label_maps`.
    """
    loaded = _load(path)
    metadata = _parse(path, loaded["panda"], kind)
    for key, value in loaded["state_dict"].items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"checkpoint {path}: state_dict[{key!r}] is not a named tensor; {ALTERED}")
    prefix = "network."
    weights = {key.removeprefix(prefix): value for key, value in loaded["state_dict"].items() if key.startswith(prefix)}
    return Checkpoint(path, metadata, weights)


def _parse(path: Path, entry: Mapping[str, Any], kind: type[M]) -> M:
    if entry.get("task") != kind.TASK:
        raise CheckpointError(
            f"checkpoint {path} is of the task {entry.get('task')!r}, but a {kind.TASK} checkpoint is needed: "
            "give a checkpoint of that task"
        )
    if entry.get("format") != kind.FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {entry.get('format')!r}, but this version reads {kind.FORMAT}: train again"
        )
    data = {key: value for key, value in entry.items() if key not in ("task", "format", "labels")}
    if "labels" in entry:
        data.setdefault("label_maps", _find_label_maps(path, entry["labels"]))
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(f"checkpoint {path}: {describe_faults(error, 'panda')}; {ALTERED}") from error


def _find_label_maps(path: Path, labels: Any) -> dict[str, LabelMap]:
    """Return the label maps of an older checkpoint, which has only the cancer codes of each provider."""
    if not isinstance(labels, dict):
        raise CheckpointError(f"checkpoint {path}: panda.labels is {labels!r}, not a mapping; {ALTERED}")
    label_maps: dict[str, LabelMap] = {}
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
        label_maps[provider] = label_map
    return label_maps


def update_metadata(path: Path, kind: type[CheckpointMetadata], **changes: Any) -> None:
    """Replace fields of the stored metadata, for example the threshold that was chosen after training.

    The file is written beside and renamed, so it is whole at any time.
    """
    loaded = _load(path)
    metadata = _parse(path, loaded["panda"], kind)
    loaded["panda"] = kind.model_validate(metadata.model_dump(mode="json") | changes).to_entry()
    _save(loaded, path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write Lightning's checkpoints whole or not at all.

    Lightning's own writer copies from the system's temporary folder over the old checkpoint if that folder is on
    another file system. A full disk or a killed process would then leave neither the old nor the new one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save as the base class does, with the hash of the training state; `storage_options` is not used."""
        _save(checkpoint | {STATE_HASH: hash_state(checkpoint)}, Path(path))


def hash_state(content: Mapping[str, Any]) -> str:
    """Return a hash of the training state in a checkpoint: of the shape of each tensor, and of every other value.

    Weights and metadata do not enter, because they are checked by themselves.
    """
    others = {"panda", "state_dict", STATE_HASH}
    return fingerprint({key: _describe(value) for key, value in content.items() if key not in others})


def _describe(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return [[repr(key), _describe(part)] for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [_describe(part) for part in value]
    return repr(value)


def _save(data: dict[str, Any], path: Path) -> None:
    # Through memory, because torch raises a RuntimeError without a path when it writes to a full disk.
    buffer = io.BytesIO()
    torch.save(data, buffer)
    write_whole(path, buffer.getvalue())
