"""The tables of an inference's folder: every slide in it that was made alike, whichever run mapped it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panda.data.failures import FAILURE_COLUMNS, Failure
from panda.files import hold_lock, read_output_table, write_table
from panda.inference.slide_mapper import row_of

NAMED = 20
"""Slides that a note names."""

ONLY_UNGRADED = "grading"
"""Stage of a failure that leaves the slide its row."""


@dataclass
class Results:
    """What lies in a folder and what one run adds to it.

    A slide's own folder says what its figures were made with; only what was made alike enters the tables. What
    a run says of a slide replaces what an earlier one said.

    Attributes:
        folder: Gets `quantification.csv` and `failures.csv`, and holds one folder a slide.
        made_with: Fingerprint of checkpoints and settings.
        done: Rows of this run by slide.
        failed: Failures of this run by slide.
        earlier: Rows of earlier runs by slide, as far as made alike.
        others: Slides whose folders were made with something else.
    """

    folder: Path
    made_with: str
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    earlier: dict[str, dict[str, Any]] = field(init=False)
    others: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.scan()

    def scan(self) -> None:
        """Read the slides' folders."""
        self.earlier, self.others = {}, []
        for path in sorted(self.folder.glob("*/quantification.json")):
            try:
                facts = json.loads(path.read_text(encoding="utf-8"))
                if facts["made_with"]["fingerprint"] == self.made_with:
                    self.earlier[path.parent.name] = row_of(facts)
                    continue
            except (OSError, ValueError, KeyError, TypeError):
                pass  # of an older version, or altered: whatever made it, it is not known to be alike
            self.others.append(path.parent.name)

    def add(self, row: dict[str, Any], ungraded: Failure | None = None) -> None:
        """Take over a slide that was mapped, and perhaps not graded."""
        slide_id = row["slide_id"]
        self.done[slide_id] = row
        self.failed.pop(slide_id, None)
        if ungraded:
            self.fail(ungraded)

    def fail(self, failure: Failure) -> None:
        """Take over a failure, and writes the list of them."""
        self.failed[failure.slide_id] = failure
        self.write_failures()

    def write_failures(self) -> dict[str, Mapping[str, Any]]:
        """Write `failures.csv`: one line a slide, those of earlier runs until the slide succeeds.

        Returns:
            Its lines by slide.
        """
        path, mark = self.folder / "failures.csv", self.made_with[:12]
        with hold_lock(path):
            lines: dict[str, Mapping[str, Any]] = {
                line["slide_id"]: line
                for line in read_output_table(path)
                if line.get("made_with") == mark and line.get("slide_id") and line["slide_id"] not in self.done
            }
            for slide_id, failure in self.failed.items():
                lines[slide_id] = {key: getattr(failure, key) for key in FAILURE_COLUMNS} | {"made_with": mark}
            write_table(path, list(lines.values()), [*FAILURE_COLUMNS, "made_with"])
        return lines

    def write(self) -> list[dict[str, Any]]:
        """Write both tables.

        Returns:
            The rows of `quantification.csv`, by slide: without a slide that failed since it was mapped.
        """
        failures = self.write_failures()
        gone = {slide_id for slide_id, line in failures.items() if line["stage"] != ONLY_UNGRADED}
        rows = [row for slide_id, row in sorted((self.earlier | self.done).items()) if slide_id not in gone]
        write_table(self.folder / "quantification.csv", rows, None if rows else ["slide_id"])
        return rows

    def note(self) -> str:
        """A sentence about the slides that were made with something else; empty where there are none."""
        if not self.others:
            return ""
        names = ", ".join(self.others[:NAMED]) + (" …" if len(self.others) > NAMED else "")
        one = len(self.others) == 1
        return (
            f"{len(self.others)} slide{'' if one else 's'} in this folder {'was' if one else 'were'} made with another "
            f"checkpoint, threshold or settings and {'is' if one else 'are'} not in the tables: {names}. "
            "Map them again, or give these results an output of their own."
        )
