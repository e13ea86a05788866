"""The tables of an inference folder: every slide in it with the same provenance, whichever run mapped it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from panda.app.inference_config import InferenceConfig
from panda.data.failures import FAILURE_COLUMNS, Failure
from panda.data.slide_records import Outcome, SlideRecords, SlideState, make_text, read_state
from panda.errors import PandaError
from panda.files import fingerprint, hold_lock, identity
from panda.inference.slide_result import RESULT_FILE, SlideResult
from panda.report.slide_page import PAGE
from panda.tables import RowSpool, read_output_table, write_table

log = logging.getLogger(__name__)

NAMED = 20
"""Number of slides that a note names."""

ONLY_UNGRADED = "grading"
"""Stage of a failure that leaves the slide its row."""

SHOWN = 20
"""Number of slides whose figures are logged."""

_PAUSE = 30
"""Least time between two writings of the tables during a run, in times that the last one took."""


@dataclass
class Others:
    """Slides whose results have another provenance or cannot be read: their number, and the first names."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, slide_id: str) -> None:
        """Count a slide."""
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(slide_id)

    def describe(self) -> str:
        """Return a sentence about them; empty if there are none."""
        if not self.count:
            return ""
        names, one = ", ".join(self.named) + (" …" if self.count > NAMED else ""), self.count == 1
        return (
            f"{self.count} slide{'' if one else 's'} in this folder {'was' if one else 'were'} made with another "
            f"checkpoint, threshold or settings and {'is' if one else 'are'} not in the tables: {names}. "
            "Map them again, or give these results an output of their own."
        )


def find_keys(config: InferenceConfig, made_with: str) -> dict[str, str]:
    """Return a hash of everything that determines the files of a slide, by slide; empty if its file is missing.

    Slides are not opened. A slide counts by name, size and time of change, and so does its label mask.

    Args:
        config: The configuration.
        made_with: Fingerprint of the provenance.
    """
    networks = {"segmentation": config.segmentation.metadata, "grader": config.grading and config.grading.metadata}
    settings = fingerprint(
        {key: network and network.model_dump(mode="json") for key, network in networks.items()}
        | {"made_with": made_with, "colour_map": config.colour_map, "version": version("panda-wsi")}
    )

    def find_key(path: Path) -> str:
        record = config.labelled.get(path.stem)
        try:
            label = record and {
                "mask": record.mask_path and identity(record.mask_path),
                **{key: getattr(record, key) for key in ("slide_id", "provider", "isup_grade")},
            }
            return fingerprint({"settings": settings, "slide": identity(path), "label": label})
        except (OSError, UnicodeEncodeError):
            return ""  # it fails when it is opened

    return {path.stem: find_key(path) for path in config.slide_list.paths}


class InferenceTables:
    """The tables of a folder, and the records of a run that adds slides to it.

    Only results with the same provenance enter the tables. Other processes may add slides at the same time.

    Args:
        folder: The folder.
        made_with: Fingerprint of the provenance.

    Attributes:
        shown: The first slides that this run mapped.
        failed: Slides that failed in this run.
    """

    def __init__(self, folder: Path, made_with: str) -> None:
        self.folder = folder
        self.made_with = made_with
        self.shown: list[SlideResult] = []
        self.failed: dict[str, Failure] = {}
        self._keys: Mapping[str, str] = {}
        self._records = SlideRecords(folder, lambda slide_id: read_state(folder / slide_id, RESULT_FILE, (PAGE,)))
        self._next_writing = 0.0

    def find_finished(self, keys: Mapping[str, str]) -> set[str]:
        """Return the slides that are finished, before any of them is opened.

        Args:
            keys: What `find_keys` returns.
        """
        self._keys = keys
        self._read_records()
        return self._records.find_finished(keys, self.made_with)

    def add(self, result: SlideResult, ungraded: Failure | None = None) -> None:
        """Add a slide that was mapped, and the failure of its grading if there is one."""
        if len(self.shown) < SHOWN:
            self.shown.append(result)
        self.failed.pop(result.slide_id, None)
        key = self._keys.get(result.slide_id, "")
        self._records.append(self._describe(result, self._records.find_state(result.slide_id), key))
        if ungraded:
            self._record_failure(ungraded)
        self._write_in_time()

    def fail(self, failure: Failure) -> None:
        """Add a failure."""
        self._record_failure(failure)
        self._write_in_time()

    def _record_failure(self, failure: Failure) -> None:
        self.failed[failure.slide_id] = failure
        state = self._records.find_state(failure.slide_id)
        plain = Failure(**{key: make_text(text) for key, text in asdict(failure).items()})
        self._records.append(Outcome(slide_id=plain.slide_id, made_with=self.made_with, state=state, failure=plain))

    @staticmethod
    def _describe(result: SlideResult, state: str, key: str = "") -> Outcome:
        made_with, row = result.provenance.fingerprint, result.to_row()
        return Outcome(slide_id=result.slide_id, made_with=made_with, state=state, key=key, row=row)

    def _write_in_time(self) -> None:
        """Write the tables, unless they were written a short time ago, so that a killed run leaves them."""
        if (started := time.monotonic()) >= self._next_writing:
            self.write()
            now = time.monotonic()
            self._next_writing = now + _PAUSE * (now - started)

    def write(self) -> Others:
        """Write `quantification.csv` and `failures.csv` from the records, and return the slides that are in neither.

        A slide that failed since it was mapped is left out of `quantification.csv`.
        """
        others = Others()
        self._read_records()
        table = self.folder / "quantification.csv"
        with hold_lock(table), RowSpool(self.folder) as rows, RowSpool(self.folder) as failures:
            for found in self._records.iterate(self._list_slides()):
                own = [one for one in self._complete(found) if one.made_with == self.made_with]
                failed = next((one.failure for one in own if one.failure), None)
                row = next((one.row for one in own if one.row is not None), None)
                if failed is not None:
                    failures.add(asdict(failed) | {"made_with": self.made_with[:12]})
                if row is not None and (failed is None or failed.stage == ONLY_UNGRADED):
                    rows.add(row)
                elif row is None and found.state:
                    others.add(found.slide_id)
            write_table(self.folder / "failures.csv", failures, (*FAILURE_COLUMNS, "made_with"))
            write_table(table, rows, list(rows.columns) or ["slide_id"])
        return others

    def _list_slides(self) -> Iterator[str]:
        """Yield the names of the folders that may be those of slides."""
        with os.scandir(self.folder) as entries:
            yield from (entry.name for entry in entries if entry.is_dir())

    def _complete(self, found: SlideState) -> tuple[Outcome, ...]:
        """Return the outcomes of a slide; without a row, read its result, and record it if it can be read."""
        if not found.state or any(one.row is not None for one in found.outcomes):
            return found.outcomes
        try:
            result = SlideResult.read(self.folder / found.slide_id)
        except (OSError, PandaError) as error:
            log.warning("%s", error)
            return found.outcomes
        outcome = self._describe(result, found.state)
        if outcome.slide_id == found.slide_id and self._records.find_state(found.slide_id) == found.state:
            self._records.append(outcome)
        return (*found.outcomes, outcome)

    def _read_records(self) -> None:
        """Read the records; a folder without any may hold the failures of an older version."""
        if not self._records.folder.exists():
            for line in read_output_table(self.folder / "failures.csv"):
                if line.get("made_with") == self.made_with[:12] and line.keys() == {*FAILURE_COLUMNS, "made_with"}:
                    failure = Failure(**{key: line[key] for key in FAILURE_COLUMNS})
                    state = self._records.find_state(failure.slide_id)
                    self._records.append(
                        Outcome(slide_id=failure.slide_id, made_with=self.made_with, state=state, failure=failure)
                    )
        self._records.read()
