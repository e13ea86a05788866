"""What training shows, and what makes a resumed run go on as if it had never stopped, wherever its folder lies now."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints, which keep their best score where the run's folder was moved or renamed.

    Lightning forgets the score there, and the next epoch, however bad, would replace the best one.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state over with its paths in today's folder."""

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


class SeedOfEpoch(Callback):
    """Seeds torch at the start of each epoch, so that dropout goes on where it stopped and repeats no epoch.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The loaders have their own seeds by then."""
        torch.manual_seed(int(np.random.default_rng((self.seed, trainer.current_epoch)).integers(2**63)))


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
