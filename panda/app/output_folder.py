"""The command that an output folder belongs to. Commands write files of the same names, such as `report.html`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MARKS = {
    "checkpoints": ("train", "a training run"),
    "inference.json": ("infer", "results of infer.py"),
    "features.json": ("features", "results of features.py"),
    "audit.csv": ("audit", "an audit"),
    "audit.json": ("audit", "an audit"),
}
"""File or folder that a command leaves in its output, with the command and what its output is."""


def find_other_command(setting: str, folder: Path, entry_point: str) -> Iterator[str]:
    """Yield the fault of an output folder that has results of another command.

    Args:
        setting: The key of the folder, with its value.
        folder: The folder, which need not exist.
        entry_point: The command that is to write there.
    """
    for mark, (command, what) in _MARKS.items():
        if command != entry_point and (folder / mark).exists():
            yield f"{setting} is the folder of {what}: give a folder of its own"
            return
