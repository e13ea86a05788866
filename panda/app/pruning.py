"""Stop a training whose epochs are worse than those of others."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import pytorch_lightning as pl

from panda.errors import PandaError

Report = Callable[[int, float], bool]
"""Takes an epoch from 0 on and its figure, the larger the better; returns whether to stop."""
report_epoch: ContextVar[Report | None] = ContextVar("report_epoch", default=None)
"""Where the epochs of the training of this context are reported; None if nowhere."""


class Pruned(PandaError):
    """A training was stopped, because its epochs are worse than those of others."""


class Pruning(pl.Callback):
    """Reports the figure of each epoch, and stops the training by `Pruned`.

    Args:
        report: See `Report`.
        monitor: Name of the figure.
        mode: `max` if a large figure is good, otherwise `min`.
    """

    def __init__(self, report: Report, monitor: str, mode: str) -> None:
        self.report, self.monitor, self.sign = report, monitor, 1.0 if mode == "max" else -1.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the figure, if the epoch was validated."""
        figure = trainer.callback_metrics.get(self.monitor)
        epoch = trainer.current_epoch
        if figure is not None and self.report(epoch, self.sign * float(figure)):
            raise Pruned(
                f"pruned: {self.monitor} of epoch {epoch} is {float(figure):.4g}, worse than most other trials"
            )
