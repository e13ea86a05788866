"""Build Lightning's trainer of a run, with its loggers and callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import Logger

from panda.app.build import build
from panda.app.callbacks import Clock, EpochSeed, LearningRateLogger, MovableCheckpoint, ProgressBar, WarningFilter
from panda.app.dashboard import replay_views
from panda.app.hydra_job import is_multirun
from panda.app.run import Experiment
from panda.app.tracking import read_metrics, replay_metrics, set_wandb_aside
from panda.app.training_reuse import list_software_versions
from panda.tasks.checkpoint import AtomicCheckpointIO


def build_trainer(
    cfg: DictConfig, folder: Path, experiment: Experiment, clock: Clock, resume: Path | None = None
) -> pl.Trainer:
    """Build the trainer of a run with its loggers and callbacks.

    Metrics and views of a resumed run are logged again. `resume` is its checkpoint.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    loggers = _resume_loggers(cfg, plain, folder, clock, resume)
    monitor, mode = experiment.monitor, experiment.mode
    callbacks: list[Callback] = [
        WarningFilter(cfg.debug is True),
        clock,
        EpochSeed(cfg.seed),
        MovableCheckpoint(
            dirpath=folder / "checkpoints",
            filename="best",
            monitor=monitor,
            mode=mode,
            enable_version_counter=False,
        ),
        # Lightning's save_last follows the best checkpoint and would leave an older epoch to resume from.
        MovableCheckpoint(
            dirpath=folder / "checkpoints", filename="last", monitor=None, save_top_k=1, enable_version_counter=False
        ),
        EarlyStopping(monitor=monitor, mode=mode, patience=cfg.task.patience, check_finite=False),
        LearningRateLogger(),
        ProgressBar(refresh_rate=5),
    ]
    trainer: pl.Trainer = build(
        plain,
        "trainer",
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(folder),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders split an epoch themselves
        enable_model_summary=False,
    )
    return trainer


def _resume_loggers(
    cfg: DictConfig, plain: Mapping[str, Any], folder: Path, clock: Clock, resume: Path | None
) -> list[Logger]:
    """Build the loggers. In a resumed run, restore the clock and log again what was logged before."""
    begun = torch.load(resume, weights_only=True) if resume else None
    kept = read_metrics(folder, begun["global_step"]) if begun else []  # before a logger empties the file
    if begun:
        # Lightning restores the clock too, but only in the training processes.
        clock.load_state_dict(begun["callbacks"][clock.state_key])
        set_wandb_aside(folder)
    loggers: list[Logger] = build(plain, "logger").build_loggers(
        folder,
        name=folder.name,
        task=cfg.task.name,
        # A resumed job still belongs to its sweep.
        group=folder.parent.name if is_multirun() or folder.parent.name.startswith("sweep-") else None,
        config={**plain, **list_software_versions()},
    )
    replay_metrics(kept, loggers)
    if begun:
        replay_views(folder, loggers, begun["epoch"] + 1)
    return loggers
