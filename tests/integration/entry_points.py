"""Run an entry point from a test."""

import contextlib
import csv
import io
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from panda.app.entry_point import forget_refusals

REPOSITORY = Path(__file__).resolve().parents[2]


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Done:
    """Exit status and stderr of an entry point."""

    returncode: int
    stderr: str


def run_entry_point(name: str, folder: Path, *overrides: str) -> Done:
    """Run `python NAME.py …` in a folder, in this process: a new one would spend its time importing."""
    errors, here, arguments = io.StringIO(), Path.cwd(), sys.argv
    script = REPOSITORY / f"{name}.py"
    GlobalHydra.instance().clear()
    forget_refusals()
    os.chdir(folder)
    sys.argv = [str(script), *overrides]
    code: object = 0
    try:
        with contextlib.redirect_stderr(errors):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        code = end.code
    finally:
        os.chdir(here)
        sys.argv = arguments
        GlobalHydra.instance().clear()
    return Done(code if isinstance(code, int) else int(code is not None), errors.getvalue())
