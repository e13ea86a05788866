"""Write one page and table over all runs below a folder: `python -m panda.report.runs runs/`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from panda.choices import name_tool
from panda.errors import PandaError
from panda.report.page import require_folder
from panda.report.run_list import find_runs
from panda.report.runs_page import write_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Write `runs.html` and `runs.csv`, and print the states of the runs; return 1 and say why if there is none."""
    parser = argparse.ArgumentParser(
        prog=name_tool("panda.report.runs"),
        description="Write runs.html and runs.csv over all trainings below a folder: those scored on the same slides "
        "are ranked by validation.",
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="folder of runs (default: runs)")
    folder = parser.parse_args(arguments).folder
    try:
        require_folder(folder, "the folder that holds runs")
        if not (runs := find_runs(folder)):
            raise PandaError(f"{folder} has no training run in it: give the folder that holds them, such as runs/")
        if not runs[0].name:
            raise PandaError(f"{folder} is a run: give the folder that holds it")
        page = write_runs(folder, runs)
    except (PandaError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    counts = Counter(run.state for run in runs)
    print(f"{len(runs)} runs: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    print(f"page: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
