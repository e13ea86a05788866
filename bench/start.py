"""Part d: time until the project is imported, and until its entry points print their usage."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import panda
from bench.results import Results
from bench.worker import time_work

ROOT = Path(panda.__file__).parents[1]
COMMANDS = {
    "import panda": ["-c", "import panda"],
    "train.py --help": ["train.py", "--help"],
    "infer.py --help": ["infer.py", "--help"],
    "features.py --help": ["features.py", "--help"],
}
KEYS = {
    "import panda": "import_panda_s",
    "train.py --help": "train_help_s",
    "infer.py --help": "infer_help_s",
    "features.py --help": "features_help_s",
}
TIMEOUT_S = 120.0


def measure(rounds: int, results: Results) -> None:
    """Time the commands in turn, after one round that is not counted.

    Args:
        rounds: How many times each.
        results: Gets the rows, in s.

    Raises:
        subprocess.CalledProcessError: If a command failed.
    """
    for turn in range(-1, rounds):
        for case, arguments in COMMANDS.items():
            seconds, _ = time_work(partial(_run, arguments))
            if turn >= 0:
                results.add("start", "panda", case, seconds)


def _run(arguments: list[str]) -> int:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=TIMEOUT_S, check=True).returncode
