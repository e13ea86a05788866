"""Reuse trainings: jobs of a sweep that differ only in their evaluation train once."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import JsonValue, NonNegativeInt, TypeAdapter, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from panda.app.software import digest_code
from panda.errors import CheckpointError, PandaError
from panda.files import fingerprint, write_beside, write_json
from panda.settings import Settings
from panda.stored import Digest, Plain, describe_faults, read_model
from panda.tasks.checkpoint import read_checkpoint, update_metadata
from panda.tasks.metadata import CheckpointMetadata

log = logging.getLogger(__name__)

RECORD = "training.json"
_REMEDY = "it was edited or written by another version: the weights of this job are not used"
SCORES = "validation_scores.npz"
CHECKPOINTS = ("best.ckpt", "last.ckpt")
FROM_EVALUATION = frozenset({"precision", "tta", "overlap"})
"""Fields of the metadata that a run's evaluation settings decide."""
AFTER_TRAINING = FROM_EVALUATION | {"threshold", "calibration", "gleason_rule", "abstain_below"}
"""Fields of the metadata that decide nothing of the weights."""
EVALUATION = (
    "name", "run_dir", "resume", "debug", "logger", "allow_packages",
    "threshold", "criterion", "cost_ratio", "threshold_per_provider", "test_slides", "colour_map",
    "quantify", "engine", "task.panels", "task.views", "task.views_every", "task.overlap", "task.gleason_rule",
    "task.abstain_risk",
    "data.num_workers", "data.extract_workers", "data.store_root",
)  # fmt: skip
"""Keys that do not change the weights. All other keys are part of the fingerprint, also future ones.

A key that is missing here costs a training. A key that is wrongly here gives a job the weights of another.
"""


class Training(Plain, frozen=True):
    """A finished training, the content of `training.json` of a run.

    Attributes:
        decided: Fields `AFTER_TRAINING` of its best checkpoint at the end of the training.
        trained_by: Job of the sweep that trained, if it was another one.
    """

    fingerprint: Digest
    epochs: NonNegativeInt
    decided: dict[str, JsonValue]
    trained_by: str | None = None

    @field_validator("decided")
    @classmethod
    def _check_names(cls, decided: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if unknown := sorted(decided.keys() - AFTER_TRAINING):
            raise PydanticCustomError("decided", "{name} is not decided after training", {"name": unknown[0]})
        return decided

    @classmethod
    def read(cls, folder: Path) -> Training:
        """Read the training of a run.

        Raises:
            OSError: If there is none.
            PandaError: If it was edited or is of another version.
        """
        return read_model(folder / RECORD, TypeAdapter(cls), _REMEDY)

    def write(self, folder: Path) -> None:
        """Write the training to the folder of its run. From then on other jobs of the sweep may reuse it."""
        write_json(folder / RECORD, self.model_dump(mode="json"))


def select_decisive(config: Settings) -> dict[str, Any]:
    """Return the configuration without the keys in `EVALUATION`. Jobs of a sweep that share it share a training."""
    decisive = config.model_dump(mode="json")
    for key in EVALUATION:
        node, _, name = key.rpartition(".")
        (decisive[node] if node else decisive).pop(name, None)
    return decisive


def fingerprint_training(
    config: Settings, metadata: CheckpointMetadata, learns_from: Mapping[str, Any], device: str
) -> str:
    """Return the fingerprint of all that determines the weights of a training, the device among them.

    Keys in `EVALUATION` and metadata in `AFTER_TRAINING` are ignored. `learns_from` identifies the slides, masks and
    tiles of training and validation, as plain data.
    """
    return fingerprint(
        {
            "config": select_decisive(config),
            "metadata": metadata.model_dump(mode="json", exclude=set(AFTER_TRAINING)),
            "learns_from": dict(learns_from),
            "device": device,
            "versions": {name: version(name) for name in ("torch", "pytorch-lightning")},
            "code": digest_code(),
        }
    )


def record_training(folder: Path, training: str, epochs: int, metadata: CheckpointMetadata) -> Training:
    """Write the record of a finished training with this fingerprint, and return it.

    A run that is resumed after its training keeps its record: its best checkpoint has another threshold by then.
    `metadata` is that of the best checkpoint.
    """
    with contextlib.suppress(OSError, PandaError):  # there is none, or it was edited
        known = Training.read(folder)
        if known.fingerprint == training:
            return known
    decided = metadata.model_dump(mode="json", include=set(AFTER_TRAINING))
    found = Training(fingerprint=training, epochs=epochs, decided=decided)
    found.write(folder)
    return found


def find_training(sweep: Path, training: str, but: Path, metadata: CheckpointMetadata) -> tuple[Path, Training] | None:
    """Find a job of a sweep, other than `but`, that itself finished the training with this fingerprint.

    Jobs whose file was edited are passed over with a warning. `metadata` is that of this run.
    """
    for path in sorted(sweep.glob(f"*/{RECORD}")):
        try:
            found = Training.read(path.parent)
            if path.parent == but or found.fingerprint != training or found.trained_by is not None:
                continue
            type(metadata).model_validate(metadata.model_dump(mode="json") | found.decided)
        except ValidationError as error:
            log.warning("%s: %s; %s", path, describe_faults(error, "decided"), _REMEDY)
        except (OSError, PandaError) as error:
            log.warning("%s", error)
        else:
            if all((path.parent / "checkpoints" / name).is_file() for name in CHECKPOINTS):
                return path.parent, found
    return None


def take_over(source: Path, training: Training, folder: Path, metadata: CheckpointMetadata) -> Training:
    """Give a run the checkpoints, views, canvases and scores of another job.

    Files are linked if the file system can link, otherwise copied. The other job does not change, because files are
    only replaced as a whole. Canvases and scores have fingerprints of their own, which decide whether they are used.
    `metadata` belongs to the checkpoints that this run would have written itself.
    """
    for name in CHECKPOINTS:
        target = folder / "checkpoints" / name
        _link(source / "checkpoints" / name, target)
        own = metadata.model_dump(mode="json", include=set(FROM_EVALUATION))
        if name == "best.ckpt":
            # The other job has written its own choices there after its training.
            own = training.decided | own
        before = read_checkpoint(target, type(metadata)).metadata.model_dump(mode="json")
        if changes := {key: value for key, value in own.items() if before[key] != value}:
            update_metadata(target, type(metadata), **changes)
    for view in source.glob("views/*.png"):
        _link(view, folder / view.relative_to(source))
    if (source / SCORES).is_file():
        _link(source / SCORES, folder / SCORES)
    for canvas in source.glob("slides/*/canvas.zarr"):
        with write_beside(folder / canvas.relative_to(source)) as partial:
            shutil.copytree(canvas, partial, copy_function=_link_or_copy)
    taken = training.model_copy(update={"trained_by": source.name})
    taken.write(folder)
    return taken


def _link(source: Path, target: Path) -> None:
    with write_beside(target) as partial:
        try:
            _link_or_copy(source, partial)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{source} does not exist any more: do not change the folder of a sweep while it runs"
            ) from error


def _link_or_copy(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # not all file systems have links
        shutil.copyfile(source, target)
