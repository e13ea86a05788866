"""End the jobs of a sweep, of trainings or of maps, and write the table and page of the whole."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from panda.app.entry_point import guard, list_refusals, record_failed_jobs, refuse
from panda.app.hydra_job import find_output_folder, has_arguments, is_typed, make_new_folder
from panda.app.launcher import REFUSED
from panda.app.own_sweeps import remember_sweep, restore_command
from panda.app.ranks import find_launch
from panda.app.signals import name_signal
from panda.errors import PandaError
from panda.files import remove, write_whole
from panda.settings import quote


class SweepPage(Callback):
    """Hydra callback of the jobs of a sweep, and of the whole sweep, which gets `sweep.csv` and `sweep.html`."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the sweep, before Hydra makes its folder and checks the jobs.

        An unnamed sweep gets a folder of its own here, which its jobs read from an override.
        """
        folder = Path(config.hydra.sweep.dir)
        is_new = not folder.exists()
        if _trains(config) and config.name is None:
            folder, is_new = make_new_folder(folder), True
            with open_dict(config), read_write(config):
                config.hydra.sweep.dir = str(folder)
                config.hydra.overrides.hydra.append(shlex.split(quote(f"hydra.sweep.dir={folder}"))[0])
        remember_sweep(folder, is_new=is_new)
        remove(folder / REFUSED)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Run the jobs that wait for the training of this one, in the process that ran it."""
        if config.hydra.mode == RunMode.MULTIRUN and not name_signal() and not find_launch().rank:
            if _trains(config):
                from panda.app.shared_training import run_registered  # noqa: PLC0415
                from panda.app.train import train  # noqa: PLC0415

                typed = list(config.allow_packages) if is_typed("allow_packages") else []
                run_registered(guard(train), typed)
            if not has_arguments() and (refusals := list_refusals()):
                # The process that started the sweep sees no difference to a job without a figure.
                name = find_output_folder().name
                write_whole(Path(config.hydra.sweep.dir) / REFUSED / name, "\n".join(refusals))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the page and record failed jobs, after the last job.

        Jobs of `infer.py` that only add slides to one output have no folders of their own, and no page of a sweep.
        """
        # Imported here, because Hydra builds its callbacks even for --help.
        from panda.report.any_sweep import read_sweep  # noqa: PLC0415
        from panda.report.run_folder import make_natural_key, read_text  # noqa: PLC0415

        folder = Path(config.hydra.sweep.dir)
        refused: dict[str, list[str]] = {}
        for file in sorted((folder / REFUSED).glob("[!.]*"), key=lambda path: make_natural_key(path.name)):
            refused.setdefault(read_text(file), []).append(file.name)
        for reason, names in refused.items():
            refuse(PandaError(f"job{'s' * (len(names) > 1)} {', '.join(names)}: {reason}"), folder)
        if not _trains(config) and not folder.is_dir():
            return
        restore_command(folder)
        sweep = read_sweep(folder)
        if _trains(config):
            record_failed_jobs(sweep.failed)
        elif not sweep.jobs:
            return
        print("\n".join(sweep.describe()))
        try:
            print(f"sweep: {sweep.write()}")
        except OSError as error:  # Hydra would only warn, with exit status 0
            refuse(error, folder)


def _trains(config: DictConfig) -> bool:
    """Return whether the jobs are trainings. Maps of an earlier command may be in their output too."""
    return "name" in config
