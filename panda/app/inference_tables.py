"""The tables of an inference folder: every slide in it with the same provenance, whichever run mapped it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from panda.data.failures import FAILURE_COLUMNS, Failure
from panda.errors import PandaError
from panda.files import hold_lock
from panda.inference.slide_result import RESULT_FILE, SlideResult
from panda.tables import read_output_table, write_table

log = logging.getLogger(__name__)

NAMED = 20
"""Number of slides that a note names."""

ONLY_UNGRADED = "grading"
"""Stage of a failure that leaves the slide its row."""


@dataclass
class InferenceTables:
    """Results that a folder holds and results that one run adds to it.

    Only results with the same provenance enter the tables. A result of this run replaces an earlier one of the slide.
    `done` and `failed` are of this run, `earlier` are results of other runs with its provenance. `others` are slides
    whose results have another provenance or cannot be read.
    """

    folder: Path
    fingerprint: str
    done: dict[str, SlideResult] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    earlier: dict[str, SlideResult] = field(init=False)
    others: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.scan()

    def scan(self) -> None:
        """Read the results in the folders of the slides; warn of those that were edited or are of another version."""
        self.earlier, self.others = {}, []
        for folder in sorted(path.parent for path in self.folder.glob(f"*/{RESULT_FILE}")):
            try:
                result = SlideResult.read(folder)
            except (OSError, PandaError) as error:
                log.warning("%s", error)
                self.others.append(folder.name)
                continue
            if result.provenance.fingerprint == self.fingerprint:
                self.earlier[folder.name] = result
            else:
                self.others.append(folder.name)

    def add(self, result: SlideResult, ungraded: Failure | None = None) -> None:
        """Add a slide that was mapped, and the failure of its grading if there is one."""
        self.done[result.slide_id] = result
        self.failed.pop(result.slide_id, None)
        if ungraded:
            self.fail(ungraded)

    def fail(self, failure: Failure) -> None:
        """Add a failure and write the list of failures."""
        self.failed[failure.slide_id] = failure
        self.write_failures()

    def write_failures(self) -> dict[str, Mapping[str, str]]:
        """Write `failures.csv`, and return its lines by slide.

        The failure of an earlier run stays until the slide succeeds.
        """
        path, mark, columns = self.folder / "failures.csv", self.fingerprint[:12], (*FAILURE_COLUMNS, "made_with")
        with hold_lock(path):
            lines: dict[str, Mapping[str, str]] = {
                line["slide_id"]: line
                for line in read_output_table(path)
                if line.get("made_with") == mark and line.keys() == set(columns) and line["slide_id"] not in self.done
            }
            for slide_id, failure in self.failed.items():
                lines[slide_id] = {key: getattr(failure, key) for key in FAILURE_COLUMNS} | {"made_with": mark}
            write_table(path, [line for _, line in sorted(lines.items())], columns)
        return lines

    def write(self) -> list[SlideResult]:
        """Write both tables, and return the results in `quantification.csv`.

        A slide that failed since it was mapped is left out.
        """
        failures = self.write_failures()
        gone = {slide_id for slide_id, line in failures.items() if line["stage"] != ONLY_UNGRADED}
        results = [result for slide_id, result in sorted((self.earlier | self.done).items()) if slide_id not in gone]
        rows = [result.to_row() for result in results]
        table = self.folder / "quantification.csv"
        with hold_lock(table):
            write_table(table, rows, None if rows else ["slide_id"])
        return results

    def note(self) -> str:
        """Return a sentence about the slides with another provenance; empty if there are none."""
        if not self.others:
            return ""
        names = ", ".join(self.others[:NAMED]) + (" …" if len(self.others) > NAMED else "")
        one = len(self.others) == 1
        return (
            f"{len(self.others)} slide{'' if one else 's'} in this folder {'was' if one else 'were'} made with another "
            f"checkpoint, threshold or settings and {'is' if one else 'are'} not in the tables: {names}. "
            "Map them again, or give these results an output of their own."
        )
