"""A multirun's table after each of its jobs, and its page at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from panda.app.entry_point import refuse, sweep_begins, sweep_ends


class SweepPage(Callback):
    """Hydra callback that writes `sweep.csv` and `sweep.html` into the sweep's folder."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once, before Hydra makes the folder and looks at the jobs."""
        sweep_begins(Path(config.hydra.sweep.dir))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Called after each job, in the process that ran it: a sweep that is killed keeps the table of what was done.

        The page is left for the end: drawn after each of many jobs, it would cost more with every one.
        """
        if config.hydra.mode == RunMode.MULTIRUN:
            from panda.report.sweep_page import write_sweep_table  # noqa: PLC0415

            write_sweep_table(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once, after the last job."""
        # Imported here: Hydra makes its callbacks before the doors know whether anything is to be drawn.
        from panda.report.sweep_jobs import read_jobs  # noqa: PLC0415
        from panda.report.sweep_page import write_sweep  # noqa: PLC0415

        folder = Path(config.hydra.sweep.dir)
        sweep_ends(sum(job.error != "" or job.lost_slides > 0 for job in read_jobs(folder)))
        try:
            print(f"sweep: {write_sweep(folder)}")
        except OSError as error:  # Hydra would make a warning of it, and the exit status 0
            refuse(error, folder)
