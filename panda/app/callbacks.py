"""Callbacks that show the training, and that make a resumed run equal to an uninterrupted one, in any folder."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar

from panda.app.entry_point import set_up_logging
from panda.app.signals import handle_signals

log = logging.getLogger(__name__)


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints, which keep their best score after the run's folder was moved or renamed.

    Lightning forgets the score then, and the next epoch would replace the best one, even if it is worse.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with its paths in the current folder."""

        def relocate(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {
            key: relocate(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        best = {relocate(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class Patience(EarlyStopping):
    """Lightning's early stopping, which a resumed run neither forgets nor overrides.

    Lightning trains one more epoch after a stopped run is resumed, and takes the patience of the earlier session.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, except for the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a training that has already waited long enough."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar without the number that W&B gives a run."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the figures shown next to the bar."""
        return {key: value for key, value in super().get_metrics(trainer, pl_module).items() if key != "v_num"}


class EpochLines(Callback):
    """Logs a line for each complete epoch, to the terminal and to `run.log`."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._validated = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch before, because the task logs its figures after the hooks of callbacks at the end of one."""
        self._log_epoch(trainer)
        self._started, self._validated = time.monotonic(), False

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that this epoch has figures of validation."""
        self._validated = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the last epoch."""
        self._log_epoch(trainer)

    def _log_epoch(self, trainer: pl.Trainer) -> None:
        if self._started is None or not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self._started
        known = {key: trainer.callback_metrics[key] for key in ("train/loss",) if key in trainer.callback_metrics}
        figures = {
            key: float(value)
            for key, value in (known | trainer.progress_bar_metrics).items()
            if "/" in key and not key.endswith("_step") and (self._validated or not key.startswith("val/"))
        }
        listed = ", ".join(f"{key} {figure:.4g}" for key, figure in sorted(figures.items()))
        log.info("epoch %d of %s: %s, %.0f s", trainer.current_epoch, trainer.max_epochs, listed, seconds)


class LearningRateLogger(Callback):
    """Logs the learning rate of an epoch with its other figures. Lightning's own callback logs no epoch to W&B."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the learning rate before the schedule's first step of the epoch."""
        for optimizer in trainer.optimizers:
            pl_module.log(
                f"lr-{type(optimizer).__name__}", optimizer.param_groups[0]["lr"], on_step=False, on_epoch=True
            )


class WarningFilter(Callback):
    """Suppresses Lightning warnings that are expected here, in every training process."""

    IGNORED = (
        # A frozen encoder is in evaluation mode on purpose.
        ("Found .* in eval mode at the start of training", Warning),
        # Lightning's own use of deprecated torch functions, and a hint that small data cannot follow.
        (".*LeafSpec.*is deprecated", FutureWarning),
        ("The number of training batches .* is smaller than", Warning),
        # A resumed run writes to the folder it has.
        ("Checkpoint directory .* exists and is not empty", Warning),
        # Metrics of an epoch are summed over the devices before they are logged.
        (r"It is recommended to use .*sync_dist=True", Warning),
    )

    def __init__(self, debug: bool, *, spawned: bool = False) -> None:
        self.debug = debug
        self.spawned = spawned

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add the filters, which end with the training (see `panda.app.run.Run.fit`)."""
        if self.spawned:  # it has not run the entry point
            set_up_logging(self.debug)
        for message, category in self.IGNORED:
            warnings.filterwarnings("ignore", message=message, category=category)


class SignalHandling(Callback):
    """Sets the handlers of this package after Lightning has set its own, which ignore SIGTERM under SLURM.

    A spawned process, or a rank above 0, ignores the signals, because another process ends it.
    """

    def __init__(self, *, spawned: bool = False) -> None:
        self.spawned = spawned

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the handlers. This is the first hook after Lightning has set its own."""
        handle_signals(ignore=self.spawned or trainer.global_rank > 0)


class Tf32(Callback):
    """Lets products of fp32 matrices use TF32 on a GPU, until the training ends."""

    def __init__(self) -> None:
        self._before = torch.get_float32_matmul_precision()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Allow TF32, in each training process."""
        if trainer.strategy.root_device.type == "cuda":
            torch.set_float32_matmul_precision("high")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the precision of the process."""
        torch.set_float32_matmul_precision(self._before)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the precision of the process, whose next job may be another one."""
        torch.set_float32_matmul_precision(self._before)


class EpochSeed(Callback):
    """Seeds torch at the start of each epoch, so that a resumed run drops out as an uninterrupted one does."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed torch. The loaders have their own seeds already, and each device has its own dropout."""
        seeds = (self.seed, trainer.current_epoch, *((trainer.global_rank,) if trainer.global_rank else ()))
        torch.manual_seed(int(np.random.default_rng(seeds).integers(2**63)))


class Clock(Callback):
    """Counts the seconds of a run over all sessions that contribute to its weights.

    Time spent on an epoch that was cut off is not counted, because that work is lost. `started` is the session's
    `time.monotonic()`.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.before = 0.0

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return self.before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return the elapsed time, for a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the elapsed time from a resumed checkpoint."""
        self.before = float(state_dict["seconds"])
