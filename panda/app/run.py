"""One run: its folder, its trainer, and the fields of its summary."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import nn

from panda.app.callbacks import Clock
from panda.app.dashboard import Dashboard, find_dashboard, replay_views
from panda.app.distributed import join_processes
from panda.app.joint_training import make_joint, share_training
from panda.app.rank_group import RankGroup
from panda.app.software import find_commit
from panda.app.tracking import read_metrics, replay_metrics
from panda.app.train_config import TrainConfig
from panda.app.training_reuse import (
    Training,
    find_training,
    fingerprint_training,
    record_training,
    take_over,
)
from panda.data.datamodule import PatchDataModule
from panda.data.failures import Failure
from panda.data.loaders import count_workers
from panda.errors import PandaError
from panda.report.run_folder import read_text
from panda.report.run_summary import SCHEMA, BootstrapSummary, RunSummary
from panda.tasks.bootstrap import RESAMPLES
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.figures import make_timestamp
from panda.tasks.grading import GradingTask
from panda.tasks.metadata import CheckpointMetadata, TrainedResolution
from panda.tasks.segmentation import SegmentationTask

log = logging.getLogger(__name__)


@dataclass
class Run:
    """One run.

    Attributes:
        folder: `runs/<task>/<name or time>/`.
        resume: The checkpoint that is resumed, or None.
        sweep: The folder of the sweep if the run is a job of one.
        notes: Sentences that a reader of the figures must know.
        held: Holds the training against other jobs of the sweep until it is finished.
        group: The ranks that train together, if srun or torchrun started them.
    """

    cfg: TrainConfig
    folder: Path
    resume: Path | None
    trainer: pl.Trainer
    sweep: Path | None = None
    training: Training | None = None
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clock: Clock | None = None
    held: ExitStack = field(default_factory=ExitStack)
    group: RankGroup | None = None

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def dashboard(self) -> Dashboard | None:
        """Where the run is logged beside `metrics.csv`, if anywhere."""
        return find_dashboard(self.trainer.loggers)

    @property
    def last(self) -> Path:
        """The checkpoint of the last complete epoch, which can be resumed."""
        return self.folder / "checkpoints" / "last.ckpt"

    def describe(self) -> dict[str, Any]:
        """Return the fields of `CommonSummary`, at the end of the run."""
        assert self.clock is not None
        return {
            "schema": SCHEMA,
            "name": self.folder.name,
            "created": make_timestamp(),
            "seed": self.cfg.seed,
            "device": str(self.trainer.strategy.root_device),
            "devices": self.trainer.world_size,
            "epochs": self.training.epochs if self.training else self.trainer.current_epoch,
            "seconds": round(self.clock.seconds, 1),
            "bootstrap": BootstrapSummary(resamples=RESAMPLES, seed=self.cfg.seed, level=0.95, unit="groups of slides"),
            "trained_by": self.training.trained_by if self.training else None,
            "notes": self.notes,
            "overrides": read_text(self.folder / "overrides.txt").splitlines(),
            "commit": find_commit(),
            "lost_slides": len(self.failures),
        }

    def log_summary(self, summary: RunSummary, pictures: Mapping[str, Path], **about: Any) -> None:
        """Log figures, pictures and checkpoints. `about` is the metadata of the checkpoints."""
        if (dashboard := self.dashboard) is not None:
            dashboard.log_pictures(pictures)
            dashboard.log_figures(summary)
            if self.cfg.logger.logs_checkpoints:
                dashboard.log_checkpoints(self.best.parent, about)

    def fit(
        self, task: SegmentationTask | GradingTask, data: pl.LightningDataModule, learns_from: Mapping[str, Any]
    ) -> None:
        """Train, resume a training, or reuse the training of another job of the sweep with the same fingerprint.

        Afterwards the training is let go, see `panda.app.shared_training`. `panda.app.resume_point` checks a resumed
        run before. `fingerprint_training` describes `learns_from`.
        """
        device = str(self.trainer.strategy.root_device)
        fingerprint = fingerprint_training(self.cfg, task.metadata, learns_from, device)
        found = None
        if self.sweep is not None and not self.resume:
            found = find_training(self.sweep, fingerprint, self.folder, task.metadata)
        if found is None:
            self._train(task, data, fingerprint)
            self.held.close()
            return
        self.held.close()
        source, training = found
        self.training = take_over(source, training, self.folder, task.metadata)
        replay_metrics(read_metrics(source), self.trainer.loggers)
        replay_views(self.folder, self.trainer.loggers)
        note = f"trained by job {source.name}, whose checkpoints are used: only settings of the evaluation differ"
        log.info("%s", note)
        self.notes.append(f"{note[0].upper()}{note[1:]}.")

    def _train(self, task: SegmentationTask | GradingTask, data: pl.LightningDataModule, fingerprint: str) -> None:
        weights = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
        workers = count_workers(self.cfg.data.num_workers, self.trainer)
        log.info(
            "training %.1f million weights on %s in %s; %d loader processes (data.num_workers=%s)",
            weights / 1e6,
            self.trainer.strategy.root_device,
            self.trainer.precision,
            workers,
            self.cfg.data.num_workers,
        )
        if (devices := self.trainer.world_size) > 1:
            log.info("%d processes with one device each: a step takes %d batches", devices, devices)
        try:
            with (
                warnings.catch_warnings(),  # `WarningFilter` adds filters
                join_processes(self.trainer),
                self._share(task, data),
            ):
                self.trainer.fit(task, datamodule=data, ckpt_path=self.resume, weights_only=True)
        except SystemExit as stop:
            # Lightning exits the program on Ctrl-C.
            if not self.trainer.interrupted:
                raise
            raise KeyboardInterrupt from stop
        best = read_checkpoint(self.best, type(task.metadata)).metadata
        self.training = record_training(self.folder, fingerprint, self._count_epochs(), best)

    def _share(self, task: pl.LightningModule, data: pl.LightningDataModule) -> AbstractContextManager[None]:
        """Let the other ranks enter the training, if there are any."""
        if self.group is None:
            if self.cfg.trainer.is_joint and self.trainer.world_size > 1:
                raise PandaError("the ranks ended with the job before, whose training cannot be used: sweep again")
            return nullcontext()
        given = {"settings": self.cfg.trainer, "resume": self.resume, "seed": self.cfg.seed}
        return share_training(self.group, make_joint(self.trainer, task=task, data=data, **given), self.folder)

    def _count_epochs(self) -> int:
        """Return the number of trained epochs, which several processes leave in their last checkpoint."""
        if self.trainer.world_size == 1:
            return self.trainer.current_epoch
        return int(torch.load(self.last, weights_only=True)["epoch"]) + 1


class Experiment(Protocol):
    """The part of a run that depends on the task."""

    monitor: str
    mode: str
    data: PatchDataModule

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""

    @property
    def kind(self) -> type[CheckpointMetadata]:
        """What its checkpoints store."""

    @property
    def segmentation(self) -> tuple[str, ...]:
        """Fingerprints of the segmentations that guide the tiles."""

    @property
    def feature_files(self) -> Mapping[str, Path] | None:
        """Slide id to the file of features that is learned from instead of the slide; None for slides."""

    @property
    def failures(self) -> Sequence[Failure]:
        """The slides that `prepare` could not use."""

    def prepare(self) -> CheckpointMetadata:
        """Make all that is trained on, outside the folder of the run, unless it was made before.

        Returns:
            What checkpoints of this training store.
        """

    def run(self, run: Run) -> RunSummary:
        """Train and evaluate."""


def note_level(resolution: TrainedResolution, notes: list[str]) -> None:
    """Log which µm/px the level of a training means, and add it to the notes if the slides differ."""
    if text := resolution.describe_level():
        log.log(logging.WARNING if resolution.is_mixed else logging.INFO, "%s", text)
        if " to " in text:
            notes.append(text)
