"""The command that an output folder belongs to. Commands write files of the same names, such as `report.html`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from panda.settings import Settings, Text, format_value, rule

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


class OutputKeys(Settings):
    """The keys of a command that writes into a folder.

    Attributes:
        entry_point: The command.
        output: The folder.
        run_dir: The folder of this job, which a multirun makes below the output.
    """

    node: ClassVar[str] = ""
    entry_point: ClassVar[str]

    output: Text
    run_dir: Text

    @rule
    def _check_output(self) -> Iterator[str]:
        folder, setting = Path(self.run_dir), f"output={format_value(self.run_dir)}"
        if folder.exists() and not folder.is_dir():
            yield f"{setting} is a file; give a folder"
        yield from find_other_command(setting, folder, self.entry_point)
