"""Say what ended the launcher of a sweep. Its jobs can be in other processes, and outlive it."""

from __future__ import annotations

from pathlib import Path

from panda.choices import name_tool
from panda.settings import format_override

SUBMITIT = ".submitit"
"""Folder of a sweep with the files of submitit."""
REFUSED = f"{SUBMITIT}/refused"
"""Folder with a file for each job that was refused in a process of its own, with the reason."""


def has_submitted(sweep: Path) -> bool:
    """Return whether a launcher has given jobs of a sweep to other processes."""
    return any(sweep.glob(f"{SUBMITIT}/*/*_submitted.pkl"))


def advise_sweep(sweep: Path) -> str:
    """Return what a user can do with a sweep whose jobs may still run."""
    trains = sweep.name.startswith("sweep-")  # the output of infer.py has a name of its own
    named = " with " + format_override(f"name={sweep.name.removeprefix('sweep-')}") if trains else ""
    return (
        f"the other jobs continue; {name_tool('panda.report.sweep')} {sweep} shows all at any time, and the same "
        f"command{named} continues those that have ended too early"
    )


def explain_launcher(error: Exception, sweep: Path) -> str | None:
    """Return in a sentence why submitit ended, or None if it is another error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RuntimeError) and 'Could not detect "srun"' in str(error):
        return (
            "hydra/launcher=slurm: this machine has no srun, so it is no part of a SLURM cluster: run the command on a "
            "login node, or use hydra/launcher=submitit_local"
        )
    if not type(error).__module__.startswith("submitit"):
        return None
    if has_submitted(sweep):
        return f"a job ended without a result ({lines[0]}): {advise_sweep(sweep)}"
    said = [line for line in lines if "error:" in line or "fatal:" in line] or lines
    return (
        f"hydra/launcher: the scheduler refused the jobs ({said[-1]}): correct hydra.launcher.partition or another of "
        "its keys"
    )
