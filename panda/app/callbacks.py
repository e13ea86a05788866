"""What training shows, and what makes a resumed run go on as if it had never stopped, wherever its folder lies now."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar

from panda.app.entry_point import set_up_logging


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints, which keep their best score where the run's folder was moved or renamed.

    Lightning forgets the score there, and the next epoch, however bad, would replace the best one.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over with its paths in today's folder."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class Bar(TQDMProgressBar):
    """Lightning's progress bar without the number that W&B gives a run."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The figures behind the bar."""
        return {key: value for key, value in super().get_metrics(trainer, pl_module).items() if key != "v_num"}


class LearningRate(Callback):
    """Logs the epoch's learning rate beside its other figures; Lightning's own has no epoch in W&B."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the schedule's first step of the epoch."""
        for optimizer in trainer.optimizers:
            pl_module.log(
                f"lr-{type(optimizer).__name__}", optimizer.param_groups[0]["lr"], on_step=False, on_epoch=True
            )


class Quiet(Callback):
    """Silences what Lightning warns of and is as it should be, in each process that trains.

    Args:
        debug: Of the run: tells all the same what Lightning tells of the hardware.
    """

    IGNORED = (
        # A frozen encoder is in evaluation mode on purpose.
        ("Found .* in eval mode at the start of training", Warning),
        # Lightning's own use of what torch deprecates, and a hint that small data cannot follow.
        (".*LeafSpec.*is deprecated", FutureWarning),
        ("The number of training batches .* is smaller than", Warning),
        # That of a run which is resumed.
        ("Checkpoint directory .* exists and is not empty", Warning),
        # Figures of an epoch come from metrics that were added up over devices before.
        (r"It is recommended to use .*sync_dist=True", Warning),
    )

    def __init__(self, debug: bool) -> None:
        self.debug = debug

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The filters end with the training, see `panda.app.run.Run.fit`."""
        if trainer.world_size > 1:  # in a process of its own, which knows nothing of the door
            set_up_logging(self.debug)
        for message, category in self.IGNORED:
            warnings.filterwarnings("ignore", message=message, category=category)


class SeedOfEpoch(Callback):
    """Seeds torch at the start of each epoch, so that dropout goes on where it stopped and repeats no epoch.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The loaders have their own seeds by then. Of several devices each drops out by its own."""
        of = (self.seed, trainer.current_epoch, *((trainer.global_rank,) if trainer.global_rank else ()))
        torch.manual_seed(int(np.random.default_rng(of).integers(2**63)))


class Clock(Callback):
    """Counts the seconds of a run over all sessions that its weights come from.

    What was spent on an epoch that was cut off is not counted: that work is lost.

    Args:
        started: `time.monotonic()` at the start of this session.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.before = 0.0

    @property
    def seconds(self) -> float:
        """Until now."""
        return self.before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Into each checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint that is gone on from."""
        self.before = float(state_dict["seconds"])
