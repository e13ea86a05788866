"""What a training was made of, so that jobs of a sweep which differ only in their evaluation train once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

import panda
from panda.errors import CheckpointError
from panda.files import fingerprint, whole_path, write_json
from panda.tasks.checkpoint import read_checkpoint, update_metadata
from panda.tasks.metadata import CheckpointMetadata

RECORD = "training.json"
SCORES = "validation_scores.npz"
CHECKPOINTS = ("best.ckpt", "last.ckpt")
FROM_EVALUATION = frozenset({"precision", "tta", "overlap"})
"""Fields of the metadata that a run's evaluation settings decide."""
AFTER_TRAINING = FROM_EVALUATION | {"threshold", "calibration"}
"""Fields of the metadata that decide nothing of the weights."""
EVALUATION = (
    "name", "run_dir", "resume", "debug", "logger", "allow_packages",
    "threshold", "criterion", "cost_ratio", "threshold_per_provider", "test_slides", "colour_map",
    "quantify", "engine", "task.panels", "task.views", "task.views_every", "task.overlap",
    "data.num_workers", "data.extract_workers", "data.store_root",
)  # fmt: skip
"""Keys that decide nothing of the weights. All others do, those that will be added too: a key that is forgotten here
costs a training, one that is wrongly here would give a job the weights of another."""


@dataclass(frozen=True)
class Training:
    """A finished training, as `training.json` of a run keeps it.

    Attributes:
        fingerprint: Of all that decides its weights.
        epochs: How many it took.
        decided: Fields `AFTER_TRAINING` of its best checkpoint when training ended.
        trained_by: The job of the sweep that trained, where it was another one.
    """

    fingerprint: str
    epochs: int
    decided: dict[str, Any]
    trained_by: str | None = None

    def write(self, folder: Path) -> None:
        """Keep it with the run in `folder`: from then on other jobs of the sweep may take the checkpoints."""
        write_json(folder / RECORD, asdict(self))


def training_fingerprint(
    cfg: DictConfig, metadata: CheckpointMetadata, learns_from: Mapping[str, Any], device: str
) -> str:
    """Return the fingerprint of all that decides the weights of a training.

    Args:
        cfg: The checked configuration; `EVALUATION` does not enter.
        metadata: What the task stores in checkpoints; `AFTER_TRAINING` does not enter.
        learns_from: Identity of the slides, masks and tiles of training and validation, as plain data.
        device: That it runs on: results of a GPU are not those of a CPU.
    """
    decisive = DictConfig(OmegaConf.to_container(cfg, resolve=True))
    with open_dict(decisive):
        for key in EVALUATION:
            node, _, name = key.rpartition(".")
            parent = OmegaConf.select(decisive, node) if node else decisive
            if isinstance(parent, DictConfig):
                parent.pop(name, None)
    return fingerprint(
        {
            "config": OmegaConf.to_yaml(decisive, sort_keys=True),
            "metadata": metadata.model_dump(mode="json", exclude=set(AFTER_TRAINING)),
            "learns_from": dict(learns_from),
            "device": device,
            "versions": {name: version(name) for name in ("torch", "pytorch-lightning")},
            "code": _code(),
        }
    )


def software_versions() -> dict[str, Any]:
    """Return the versions of the software that a run uses, for a comparison of runs."""
    names = ("panda-wsi", "torch", "pytorch-lightning", "segmentation-models-pytorch", "timm", "numpy")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "code": _code()[:16],
    }


@functools.cache  # what was imported is what trains, whatever is edited meanwhile
def _code() -> str:
    """Digest of this package's sources: a sweep that is continued after a change trains anew."""
    folder, digest = Path(str(panda.__file__)).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def read_decided(best: Path, kind: type[CheckpointMetadata]) -> dict[str, Any]:
    """Read the fields `AFTER_TRAINING` of a checkpoint, as plain data."""
    return read_checkpoint(best, kind).metadata.model_dump(mode="json", include=set(AFTER_TRAINING))


def find_training(sweep: Path, training: str, but: Path) -> tuple[Path, Training] | None:
    """A job of a sweep that finished a training.

    Args:
        sweep: The sweep's folder.
        training: Fingerprint of the training.
        but: A job's folder that is not looked at.

    Returns:
        The job's folder and its training, of the job that did it itself; None where there is none.
    """
    for path in sorted(sweep.glob(f"*/{RECORD}")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # of another version: no training that is known
            found = Training(**json.loads(path.read_text(encoding="utf-8")))
            whole = all((path.parent / "checkpoints" / name).is_file() for name in CHECKPOINTS)
            if path.parent != but and found.fingerprint == training and found.trained_by is None and whole:
                return path.parent, found
    return None


def take_over(source: Path, training: Training, folder: Path, metadata: CheckpointMetadata) -> Training:
    """Give a run the checkpoints of another job, what it showed as they came about, and what it mapped with them.

    Files are linked where the file system can, else copied; nothing of the other job is changed by what becomes of
    them, since all of them are only ever replaced whole. Whether canvases and scores fit is decided where they are
    used, by their own fingerprints.

    Args:
        source: Folder of the job that trained.
        training: What it kept of it.
        folder: Of the run.
        metadata: What this run would store in its own checkpoints.

    Returns:
        The training as the run's own record has it.

    Raises:
        CheckpointError: If a checkpoint of the other job is damaged.
    """
    for name in CHECKPOINTS:
        target = folder / "checkpoints" / name
        _link(source / "checkpoints" / name, target)
        own = metadata.model_dump(mode="json", include=set(FROM_EVALUATION))
        if name == "best.ckpt":
            # The other job has put its own choices there since.
            own = training.decided | own
        was = read_checkpoint(target, type(metadata)).metadata.model_dump(mode="json")
        if changes := {key: value for key, value in own.items() if was[key] != value}:
            update_metadata(target, type(metadata), **changes)
    for view in source.glob("views/*.png"):
        _link(view, folder / view.relative_to(source))
    if (source / SCORES).is_file():
        _link(source / SCORES, folder / SCORES)
    for canvas in source.glob("slides/*/canvas.zarr"):
        with whole_path(folder / canvas.relative_to(source)) as partial:
            shutil.copytree(canvas, partial, copy_function=_link_or_copy)
    taken = replace(training, trained_by=source.name)
    taken.write(folder)
    return taken


def _link(source: Path, target: Path) -> None:
    with whole_path(target) as partial:
        try:
            _link_or_copy(source, partial)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{source} is gone: leave a sweep's folder as it is while the sweep goes on"
            ) from error


def _link_or_copy(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # not all file systems have links
        shutil.copyfile(source, target)
