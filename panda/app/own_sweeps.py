"""The sweeps that this process began, of which Hydra and launchers leave files when they end early."""

from __future__ import annotations

import contextlib
from pathlib import Path

from panda.app.launcher import SUBMITIT, has_submitted
from panda.errors import PandaError
from panda.files import remove, write_whole

MULTIRUN = "multirun.yaml"
"""The command of a sweep, which Hydra writes."""
_sweeps: dict[Path, bytes | None] = {}
_given: set[Path] = set()


def remember_sweep(folder: Path, *, is_new: bool) -> None:
    """Remember a sweep with its `multirun.yaml`, which Hydra overwrites before it checks the jobs.

    `is_new`: the folder was made for this sweep.
    """
    written = folder / MULTIRUN
    _sweeps[folder] = written.read_bytes() if written.is_file() else None
    if not is_new:
        _given.add(folder)


def list_sweeps() -> list[Path]:
    """Return the folders of the sweeps that were remembered."""
    return list(_sweeps)


def close_sweeps() -> None:
    """Write the pages of sweeps whose launcher was ended, if a job has left something."""
    for folder in _sweeps:
        if folder.is_dir() and any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()):
            from panda.report.any_sweep import read_sweep  # noqa: PLC0415

            restore_command(folder)
            with contextlib.suppress(OSError, PandaError):
                if (sweep := read_sweep(folder)).jobs:
                    sweep.write()


def restore_command(folder: Path) -> None:
    """Restore the `multirun.yaml` that a sweep began with, for its page to show it and no later or refused one."""
    with contextlib.suppress(OSError):  # of a full disk, which has a message already
        if (before := _sweeps.get(folder)) is not None:
            write_whole(folder / MULTIRUN, before)


def restore_sweeps() -> None:
    """Restore the `multirun.yaml` that each sweep began with, and remove the folder of a sweep that did not begin."""
    for folder, before in _sweeps.items():
        restore_command(folder)
        with contextlib.suppress(OSError):
            if (
                before is None
                and folder.is_dir()
                and {path.name for path in folder.iterdir()} <= {MULTIRUN, SUBMITIT}
                and not has_submitted(folder)
            ):
                remove(folder / MULTIRUN if folder in _given else folder)


def forget_sweeps() -> None:
    """Forget the sweeps, for a program that runs several entry points."""
    _sweeps.clear()
    _given.clear()
