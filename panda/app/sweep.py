"""After each job of a multirun: one table and one page over all its jobs."""

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig


class SweepPage(Callback):
    """Hydra callback that writes `sweep.csv` and `sweep.html` into the sweep's folder."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Called after each job: a sweep that is interrupted keeps the table of what was done."""
        if config.hydra.mode == RunMode.MULTIRUN:
            _write(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once, after the last job."""
        print(f"sweep: {_write(config)}")


def _write(config: DictConfig) -> Path:
    # Imported here: Hydra makes its callbacks before the doors know whether anything is to be drawn.
    from panda.report.sweep_page import write_sweep  # noqa: PLC0415

    return write_sweep(Path(config.hydra.sweep.dir))
