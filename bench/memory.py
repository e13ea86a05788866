"""Part c: the most memory that extraction takes, on a small and a large slide, each in a fresh process.

Run as a program it cuts one slide and prints its own figures: `python -m bench.memory SIDE`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.project import DEFAULT_STORE, settings
from bench.results import Results
from bench.slides import CACHE, shared_tiles_slide
from panda.data.extraction import extract_store

SIDES = {"10k": 10_000, "100k": 100_000}
NAME = f"panda {DEFAULT_STORE}"
TIMEOUT_S = 1800.0


def name_case(side: str) -> str:
    """Return the row's name for a key of `SIDES`."""
    return f"a slide of {side} x {side} px"


def measure(rounds: int, results: Results) -> None:
    """Cut both slides in turn, each time in a fresh process.

    Args:
        rounds: How many times each.
        results: Gets the rows, in MiB.

    Raises:
        RuntimeError: If an extraction failed.
    """
    in_processes("bench.memory", NAME, rounds, results)


def in_processes(module: str, name: str, rounds: int, results: Results) -> None:
    """Let a program take both slides in turn, each time in a fresh process.

    Args:
        module: Run with the slide's side, it ends by printing its peak, what it was before and its tiles, as JSON.
        name: Of the contender.
        rounds: How many times each.
        results: Gets the rows, in MiB.

    Raises:
        RuntimeError: If the program failed.
    """
    for side in SIDES.values():
        shared_tiles_slide(side)
    for _ in range(rounds):
        for key, side in SIDES.items():
            command = [sys.executable, "-m", module, str(side)]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            if ran.returncode:
                raise RuntimeError(f"{module} failed on the slide of {side} px: {ran.stderr.strip()}")
            peak, before, tiles = json.loads(ran.stdout.splitlines()[-1])
            results.add("memory", name, name_case(key), peak, f"{before:.0f} MiB before it began, {tiles} tiles")


def main(side: int) -> None:
    """Cut a slide and print, in MiB, the peak of this process, what it was before, and the number of tiles."""
    record = shared_tiles_slide(side)
    before = peak_mib()
    with tempfile.TemporaryDirectory(dir=CACHE) as out:
        done = extract_store([record], settings(DEFAULT_STORE), out, CACHE, workers=1, progress=False)
    if done.failures:
        sys.exit(done.failures[0].message)
    print(json.dumps([peak_mib(), before, len(done.slides[record.slide_id])]))


def peak_mib() -> float:
    """Return the peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # ru_maxrss would count what the parent had when it started this process
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


if __name__ == "__main__":
    main(int(sys.argv[1]))
