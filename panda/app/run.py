"""One run: its folder, its trainer, and what it has to say at its end."""

from __future__ import annotations

import datetime
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from panda.app.callbacks import Clock
from panda.app.dashboard import replay_views
from panda.app.distributed import joined
from panda.app.tracking import read_metrics, replay
from panda.app.training_reuse import (
    AFTER_TRAINING,
    Training,
    find_training,
    read_decided,
    take_over,
    training_fingerprint,
)
from panda.data.failures import Failure
from panda.data.slide_selection import Selection
from panda.errors import CheckpointError
from panda.files import hold_lock
from panda.report.run_summary import SCHEMA, BootstrapSummary, RunSummary
from panda.tasks.bootstrap import RESAMPLES
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.grading import GradingTask
from panda.tasks.metadata import CheckpointMetadata
from panda.tasks.segmentation import SegmentationTask

log = logging.getLogger(__name__)


@dataclass
class Run:
    """One run under way.

    Attributes:
        cfg: The checked configuration.
        folder: `runs/<task>/<name or time>/`.
        resume: The checkpoint to go on from, or None.
        trainer: Lightning's trainer.
        sweep: The folder of the sweep that the run is a job of, or None.
        training: What was trained, once it was.
        failures: Slides that were passed over.
        notes: Sentences that a reader of the figures must know.
        clock: Measures the time of the run.
    """

    cfg: DictConfig
    folder: Path
    resume: Path | None
    trainer: pl.Trainer
    sweep: Path | None = None
    training: Training | None = None
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clock: Clock | None = None

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        """The checkpoint of the last whole epoch, to go on from."""
        return self.folder / "checkpoints" / "last.ckpt"

    def keep_splits(self, selection: Selection) -> None:
        """Write `splits.csv`; a resumed run has to have the one that is there.

        Raises:
            CheckpointError: If the split of the run that is resumed was another one.
            ManifestError: If its file cannot be read.
        """
        path = self.folder / "splits.csv"
        if self.resume and path.is_file() and (changed := selection.find_changes(path)):
            raise CheckpointError(
                f"resume={self.resume}: {path} has {len(changed)} slides in another split or group than today "
                f"({changed[0]} among them): bring table, groups and findings back, or start a new run"
            )
        selection.write(path)

    def describe(self) -> dict[str, Any]:
        """Return the fields of `CommonSummary`, at the end of the run."""
        assert self.clock is not None
        return {
            "schema": SCHEMA,
            "name": self.folder.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": self.cfg.seed,
            "device": str(self.trainer.strategy.root_device),
            "devices": self.trainer.world_size,
            "epochs": self.training.epochs if self.training else self.trainer.current_epoch,
            "seconds": round(self.clock.seconds, 1),
            "bootstrap": BootstrapSummary(resamples=RESAMPLES, seed=self.cfg.seed, level=0.95, unit="groups of slides"),
            "trained_by": self.training.trained_by if self.training else None,
            "notes": self.notes,
        }

    def fit(
        self, task: SegmentationTask | GradingTask, data: pl.LightningDataModule, learns_from: Mapping[str, Any]
    ) -> None:
        """Trains, goes on training, or takes over what another job of the sweep trained of just the same.

        Of two jobs at once that would train the same, one trains and the other waits for it.

        Args:
            task: With its network.
            data: With its loaders.
            learns_from: Identity of all that is learnt from, see `training_fingerprint`.

        Raises:
            CheckpointError: If the run that is resumed was of other slides, tiles or segmentation.
            KeyboardInterrupt: If it was interrupted.
        """
        if self.resume:
            _check_same(self.resume, task.metadata)
        device = str(self.trainer.strategy.root_device)
        fingerprint = training_fingerprint(self.cfg, task.metadata, learns_from, device)
        if self.sweep is None:
            self._train(task, data, fingerprint)
            return
        with hold_lock(self.sweep / f"training-{fingerprint[:16]}"):
            found = None if self.resume else find_training(self.sweep, fingerprint, self.folder)
            if found is None:
                self._train(task, data, fingerprint)
                return
        source, training = found
        self.training = take_over(source, training, self.folder, task.metadata)
        replay(read_metrics(source), self.trainer.loggers)
        replay_views(self.folder, self.trainer.loggers)
        said = f"trained by job {source.name}: settings that only touch evaluation differ, so its checkpoints are used"
        log.info("%s", said)
        self.notes.append(f"{said[0].upper()}{said[1:]}.")

    def _train(self, task: SegmentationTask | GradingTask, data: pl.LightningDataModule, fingerprint: str) -> None:
        weights = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
        log.info("training %.1f million weights on %s", weights / 1e6, self.trainer.strategy.root_device)
        if (devices := self.trainer.world_size) > 1:
            log.info("%d processes, a device each: a step takes %d batches", devices, devices)
        try:
            with warnings.catch_warnings(), joined(self.trainer):  # the callback `Quiet` adds filters
                self.trainer.fit(task, datamodule=data, ckpt_path=self.resume, weights_only=True)
        except SystemExit as stop:
            # Lightning answers Ctrl-C by closing what it opened and leaving the program.
            if not self.trainer.interrupted:
                raise
            raise KeyboardInterrupt from stop
        self.training = Training(fingerprint, self._epochs(), read_decided(self.best, type(task.metadata)))
        self.training.write(self.folder)

    def _epochs(self) -> int:
        """How many were trained; processes of their own leave it in their last checkpoint."""
        if self.trainer.world_size == 1:
            return self.trainer.current_epoch
        return int(torch.load(self.last, weights_only=True)["epoch"]) + 1


class Experiment(Protocol):
    """What a task does between a checked configuration and its figures."""

    monitor: str
    mode: str

    def run(self, run: Run) -> RunSummary:
        """Train and evaluate."""


def _check_same(resume: Path, today: CheckpointMetadata) -> None:
    """Refuse to resume a run with other data than it began with."""
    before = read_checkpoint(resume, type(today)).metadata.model_dump(mode="json", exclude={"network", *AFTER_TRAINING})
    now = today.model_dump(mode="json")
    changes = [_change(key, value, now[key]) for key, value in before.items() if value != now[key]]
    if changes:
        raise CheckpointError(
            f"resume={resume}: what the run learns from is no longer what it was ({'; '.join(changes)}): "
            "bring that back, or start a new run"
        )


def _change(key: str, before: Any, today: Any) -> str:
    if not isinstance(before, list):
        return f"{key} was {before}, is {today}"
    gone, new = sorted(set(before) - set(today)), sorted(set(today) - set(before))
    return f"{key}: {len(gone)} gone, {len(new)} new, {(gone + new)[0]} among them"
