"""Write the table of a sweep after each job, and its page at the end."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from panda.app.entry_point import record_failed_jobs, refuse, remember_sweep
from panda.app.hydra_job import make_new_folder
from panda.settings import quote


class SweepPage(Callback):
    """Hydra callback that writes `sweep.csv` and `sweep.html` into the sweep's folder."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the sweep, before Hydra makes its folder and checks the jobs.

        An unnamed sweep gets a folder of its own here, which its jobs read from an override.
        """
        folder = Path(config.hydra.sweep.dir)
        if "name" in config and config.name is None:
            folder = make_new_folder(folder)
            with open_dict(config), read_write(config):
                config.hydra.sweep.dir = str(folder)
                config.hydra.overrides.hydra.append(shlex.split(quote(f"hydra.sweep.dir={folder}"))[0])
        remember_sweep(folder)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the table after each job, in the process that ran it, so that a killed sweep has one.

        The page is written at the end only, because its cost grows with the number of jobs.
        """
        if config.hydra.mode == RunMode.MULTIRUN:
            from panda.report.sweep_page import write_sweep_table  # noqa: PLC0415

            write_sweep_table(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the page and record failed jobs, after the last job."""
        # Imported here, because Hydra builds its callbacks even for --help.
        from panda.report.sweep_jobs import read_jobs  # noqa: PLC0415
        from panda.report.sweep_page import write_sweep  # noqa: PLC0415

        folder = Path(config.hydra.sweep.dir)
        record_failed_jobs(sum(job.error != "" or job.lost_slides > 0 for job in read_jobs(folder)))
        try:
            print(f"sweep: {write_sweep(folder)}")
        except OSError as error:  # Hydra would only warn, with exit status 0
            refuse(error, folder)
