"""The checkpoint that a run is resumed from, and all checks of a resumed run before its folder is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from panda.app.callbacks import Clock
from panda.app.learning_record import LearningRecord
from panda.app.run import Experiment
from panda.app.training_reuse import AFTER_TRAINING
from panda.errors import CheckpointError, ConfigError
from panda.files import identity
from panda.tasks.checkpoint import STATE_HASH, Checkpoint, hash_state, read_checkpoint
from panda.tasks.metadata import CheckpointMetadata

_STATES = ("loops", "optimizer_states", "lr_schedulers")


@dataclass(frozen=True)
class ResumePoint:
    """What the checkpoint of a resumed run says about the training so far.

    Attributes:
        path: The checkpoint.
        epochs: Number of complete epochs.
        global_step: Number of optimizer steps.
        clock: State of the run's clock.
        file: Identity of the checkpoint, by which `check_untouched` sees the work of another process.
    """

    path: Path
    epochs: int
    global_step: int
    clock: dict[str, Any]
    file: Mapping[str, str | int]

    @classmethod
    def read(cls, path: Path) -> ResumePoint:
        """Read the training state of a checkpoint, and check that its best checkpoint is there.

        Raises:
            CheckpointError: If the file has no training state of this version.
        """
        file = identity(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        callbacks = content.get("callbacks")
        clock = callbacks.get(Clock.__qualname__) if isinstance(callbacks, dict) else None
        counts = [content.get(key) for key in ("epoch", "global_step")]
        if not (
            isinstance(clock, dict)
            and isinstance(clock.get("seconds"), float)
            and all(isinstance(count, int) for count in counts)
            and all(key in content for key in _STATES)
        ):
            raise CheckpointError(
                f"resume={path}: the checkpoint has no training state of this version; give last.ckpt of a run, or "
                "start a new run"
            )
        if content.get(STATE_HASH) != hash_state(content):
            raise CheckpointError(
                f"resume={path}: the training state was edited, or another version saved it; restore the file, or "
                "start a new run"
            )
        best = path.with_name("best.ckpt")
        states = [state for state in callbacks.values() if isinstance(state, dict)]
        if any(state.get("best_model_score") is not None for state in states) and not best.is_file():
            raise CheckpointError(f"resume={path}: {best} does not exist; restore it, or start a new run")
        return cls(path, counts[0] + 1, counts[1], clock, file)

    def check_untouched(self) -> None:
        """Raise `ConfigError` if another process has worked on the run since it was read."""
        if identity(self.path) != self.file:
            raise ConfigError(f"resume={self.path}: another process has just worked on this run; run the command again")


def check_resumed(cfg: DictConfig, resume: Path, experiment: Experiment) -> ResumePoint:
    """Check that a run can be resumed, and that what it learns from is unchanged; nothing in its folder is written.

    Raises:
        CheckpointError: If the checkpoint cannot be resumed, or slides, tables, configuration or segmentation changed.
        ConfigError: If the run has more epochs than asked for.
    """
    today = LearningRecord.read_today(cfg, experiment.data.select(), experiment.segmentation, experiment.feature_files)
    LearningRecord.read(resume.parent.parent).check(today, resume)
    checkpoint = read_checkpoint(resume, experiment.kind)
    point = ResumePoint.read(resume)
    limit = cfg.trainer.max_epochs
    if limit is not None and limit < point.epochs:
        raise ConfigError(
            f"trainer.max_epochs={limit}: the run has {point.epochs} epochs already; give {point.epochs} to evaluate "
            "it again, or more to train longer"
        )
    _check_weights(checkpoint, experiment.network.state_dict())
    best = resume.with_name("best.ckpt")
    if best.is_file():
        read_checkpoint(best, experiment.kind)
    check_same(resume, checkpoint.metadata, experiment.prepare())
    return point


def _check_weights(checkpoint: Checkpoint[CheckpointMetadata], network: Mapping[str, torch.Tensor]) -> None:
    stored = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in network.items()}
    if stored != wanted:
        name = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))[0]
        raise CheckpointError(
            f"resume={checkpoint.path}: the checkpoint is of another network than config.yaml of the run ({name}); "
            "restore the checkpoint, or start a new run"
        )


def check_same(resume: Path, stored: CheckpointMetadata, now: CheckpointMetadata) -> None:
    """Check that a resumed run uses the slides, tiles and options of the network that it began with.

    The record of the run does not see a slide that could not be read then and can be read now.
    """
    old, new = _flatten(stored.network), _flatten(now.network)
    if edited := [key for key in old if new.get(key, old[key]) != old[key]]:
        raise CheckpointError(
            f"resume={resume}: the network of the run has changed (model.{edited[0]} was {old[edited[0]]} and is "
            f"{new[edited[0]]}): restore the file of its encoder and the version of this package, or start a new run"
        )
    before = stored.model_dump(mode="json", exclude={"network", *AFTER_TRAINING})
    today = now.model_dump(mode="json")
    if changes := list(_describe_changes(before, today)):
        raise CheckpointError(
            f"resume={resume}: the training data of the run have changed ({'; '.join(changes)}): "
            "restore them, or start a new run"
        )


def _flatten(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options and those inside them, such as `encoder.mean`."""
    inner = {key: value for key, value in options.items() if isinstance(value, Mapping)}
    flat = {key: value for key, value in options.items() if key not in inner}
    return flat | {f"{key}.{name}": value for key, part in inner.items() for name, value in _flatten(part).items()}


def _describe_changes(before: Mapping[str, Any], today: Mapping[str, Any]) -> Iterator[str]:
    for key, old in before.items():
        new = today[key]
        if old == new:
            continue
        if isinstance(old, Sequence) and not isinstance(old, str):
            gone, added = sorted(set(old) - set(new)), sorted(set(new) - set(old))
            yield f"{key}: {len(gone)} gone, {len(added)} new, for example {(gone + added)[0]}"
        else:
            yield f"{key} was {old} and is {new}"
