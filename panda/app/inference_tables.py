"""The tables of an inference folder: every slide in it with the same provenance, whichever run mapped it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from panda.data.failures import FAILURE_COLUMNS, Failure
from panda.data.rare_writing import RareWriting
from panda.data.slide_records import NamedSlides, Outcome, RunRecord, SlideRecords, SlideState
from panda.data.slide_state import read_state
from panda.errors import PandaError
from panda.files import hold_lock
from panda.inference.slide_result import RESULT_FILE, SlideResult
from panda.report.inference_summary import INFERENCE_FILE, InferenceSummary
from panda.report.slide_page import PAGE
from panda.tables import PARQUET, RowSpool, write_rows

log = logging.getLogger(__name__)

ONLY_UNGRADED = "grading"
"""Stage of a failure that leaves the slide its row."""

SHOWN = 20
"""Number of slides whose figures are logged."""


@dataclass(frozen=True)
class TableContents:
    """What the tables of a folder hold.

    Attributes:
        rows: Number of slides in `quantification.csv`.
        failed: Number of slides of the run in `failures.csv`, which also holds failures of other runs.
        missing: Slides of the run that are in neither.
        others: Slides whose results have another provenance or cannot be read.
    """

    rows: int
    failed: int
    missing: NamedSlides
    others: NamedSlides

    def describe_others(self) -> str:
        """Return a sentence about the slides that are not in the tables; empty if there are none."""
        others, one = self.others, self.others.count == 1
        if not others.count:
            return ""
        return (
            f"{others.count} slide{'' if one else 's'} in this folder {'was' if one else 'were'} made with another "
            f"checkpoint, threshold or settings and {'is' if one else 'are'} not in the tables: {others}. "
            "Map them again, or give these results an output of their own."
        )

    def describe_missing(self) -> str:
        """Return a sentence about the slides of the run without a result; empty if there are none."""
        missing = self.missing
        return f"Slides without a result yet: {missing.count}, {missing}." if missing.count else ""


class InferenceTables:
    """The tables of a folder, and the records of a run that adds slides to it.

    Only results with the same provenance enter the tables. Other processes may add slides at the same time.

    Args:
        folder: The folder.
        made_with: Fingerprint of the provenance.
        is_shard: Whether other processes map the other slides; then the tables are not written during the run.

    Attributes:
        shown: The first slides that this run mapped.
        failed: Slides that failed in this run.
    """

    def __init__(self, folder: Path, made_with: str, *, is_shard: bool = False) -> None:
        self.folder = folder
        self.made_with = made_with
        self.shown: list[SlideResult] = []
        self.failed: dict[str, Failure] = {}
        self._keys: Mapping[str, str] = {}
        self._records = SlideRecords(folder, self._find_state)
        self._writing = RareWriting(never=is_shard)
        self._records.take_over_failures(folder / "failures.csv", made_with, {"made_with": made_with[:12]})

    def find_finished(self, keys: Mapping[str, str]) -> set[str]:
        """Return the slides that are finished, before any of them is opened.

        Args:
            keys: What `panda.app.slide_keys.find_keys` returns.
        """
        self._keys = keys
        self._records.read()
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
        self._writing.call(self.write)

    def fail(self, failure: Failure) -> None:
        """Add a failure."""
        self._record_failure(failure)
        self._writing.call(self.write)

    def _record_failure(self, failure: Failure) -> None:
        self.failed[failure.slide_id] = failure
        self._records.append_failure(failure, self.made_with)

    @staticmethod
    def _describe(result: SlideResult, state: str, key: str = "") -> Outcome:
        made_with, row = result.provenance.fingerprint, result.to_row()
        return Outcome(slide_id=result.slide_id, made_with=made_with, state=state, key=key, row=row)

    def write_run(self, slide_ids: Iterable[str], summary: InferenceSummary, command: str) -> RunRecord:
        """Record what this run makes, of all slides, also those of other shards; a later call replaces it."""
        return self._records.write_run(slide_ids, self.made_with, summary.model_dump(mode="json"), command)

    @staticmethod
    def find_last_run(folder: Path, command: str | None = None) -> RunRecord | None:
        """Return the run in a folder that recorded itself last, of one command or of any; None without one."""
        return SlideRecords(folder, lambda _: "").find_last_run(command)

    def has_all(self, run: RunRecord) -> bool:
        """Return whether each slide of a run has a result or a failure."""
        self._records.read()
        return self._records.has_all(run)

    def mark_collected(self, run: RunRecord) -> None:
        """Record that tables and page of a run were written; see `are_collected`."""
        self._records.mark_collected(run)

    def are_collected(self, run: RunRecord) -> bool:
        """Return whether tables and page of a run exist, and nothing was recorded since."""
        self._records.read()
        made = ("quantification.csv", "failures.csv")
        tables = all(
            any((self.folder / name).with_suffix(kind).is_file() for kind in (".csv", PARQUET)) for name in made
        )
        pages = all((self.folder / name).is_file() for name in (INFERENCE_FILE, "report.html"))
        return tables and pages and self._records.is_collected(run)

    def write(self, run: RunRecord | None = None) -> TableContents:
        """Write `quantification.csv` and `failures.csv` from the records.

        A slide that failed since it was mapped is left out of `quantification.csv`.

        Args:
            run: The run whose slides are missing if they are in neither table.
        """
        others, failed_of_run = NamedSlides(), 0
        self._records.read()
        if run:
            self._records.expect(run)
        table = self.folder / "quantification.csv"
        with hold_lock(table), RowSpool(self.folder) as rows, RowSpool(self.folder) as failures:
            for found in self._records.iterate(self._list_slides()):
                own = [one for one in self._complete(found) if one.made_with == self.made_with]
                failed = next((one.failure for one in own if one.failure), None)
                row = next((one.row for one in own if one.row is not None), None)
                if failed is not None:
                    failed_of_run += self._records.settle(found.slide_id)
                    failures.add(asdict(failed) | {"made_with": self.made_with[:12]})
                if row is not None and (failed is None or failed.stage == ONLY_UNGRADED):
                    self._records.settle(found.slide_id)
                    rows.add(row)
                elif row is None and found.state:
                    others.add(found.slide_id)
            write_rows(self.folder / "failures.csv", failures, (*FAILURE_COLUMNS, "made_with"))
            write_rows(table, rows, ["slide_id"])
            return TableContents(len(rows), failed_of_run, self._records.list_missing(), others)

    def _find_state(self, slide_id: str) -> str:
        return read_state(self.folder / slide_id, RESULT_FILE, (PAGE,))

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
        if result.slide_id != found.slide_id:
            folder = self.folder / found.slide_id
            log.warning("%s: it has the results of slide %s: give it another name", folder, result.slide_id)
            return found.outcomes
        outcome = self._describe(result, found.state)
        if self._records.find_state(found.slide_id) == found.state:
            self._records.append(outcome)
        return (*found.outcomes, outcome)
