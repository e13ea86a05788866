"""Write table and page of a sweep from its folder: `python -m panda.report.sweep FOLDER`.

It can be run at any time, also while jobs run or after the process that started them has ended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from panda.choices import name_tool
from panda.errors import PandaError
from panda.report.any_sweep import read_sweep
from panda.report.page import require_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Write table and page, print the states of the jobs; return 0 if all are done or pruned and lost no slides."""
    parser = argparse.ArgumentParser(
        prog=name_tool("panda.report.sweep"), description="Write sweep.csv and sweep.html from the folder of a sweep."
    )
    parser.add_argument("folder", type=Path, help="runs/<task>/sweep-NAME, or the output of infer.py -m")
    folder = parser.parse_args(arguments).folder
    try:
        require_folder(folder)
        if (folder / "config.yaml").is_file():
            raise PandaError(f"{folder} is a run: give the folder of a sweep, runs/<task>/sweep-NAME")
        sweep = read_sweep(folder)
        if not sweep.jobs and not folder.resolve().name.startswith("sweep-"):
            raise PandaError(
                f"{folder} has no jobs of a sweep: give the folder of a sweep, runs/<task>/sweep-NAME, or the output "
                "of infer.py -m"
            )
        page = sweep.write()
    except (PandaError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print("\n".join(sweep.describe()))
    print(f"sweep: {page}")
    return int(not sweep.jobs or bool(sweep.failed))


if __name__ == "__main__":
    sys.exit(main())
