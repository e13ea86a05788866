"""The tables of an output folder: every slide in it that was made with the same settings, whichever run made it."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from panda.data.failures import FAILURE_COLUMNS, Failure
from panda.data.kept_tables import KEPT_TABLES, keep_table
from panda.data.rare_writing import RareWriting
from panda.data.run_records import RunRecord
from panda.data.slide_records import NamedSlides, Outcome, SlideRecords, SlideState
from panda.errors import PandaError
from panda.files import hold_lock
from panda.stored import Plain, describe_faults
from panda.tables import PARQUET, RowSpool, write_rows

Result_contra = TypeVar("Result_contra", bound="NamedResult", contravariant=True)
Model = TypeVar("Model", bound=Plain)

log = logging.getLogger(__name__)

ONLY_UNGRADED = "grading"
"""Stage of a failure that leaves the slide its row."""
FAILURES, PAGE = "failures.csv", "report.html"
SHOWN = 20
"""Number of slides that are logged."""


class NamedResult(Protocol):
    """What a command made of a slide."""

    @property
    def slide_id(self) -> str:
        """Name of the slide."""


@dataclass(frozen=True)
class TableContents:
    """What the tables of a folder hold.

    Attributes:
        rows: Number of slides in the table of results.
        failed: Number of slides of the run in `failures.csv`, which also holds failures of other runs.
        missing: Slides of the run that are in neither.
        others: Slides whose results have other settings or cannot be read.
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
            f"network, threshold or settings and {'is' if one else 'are'} not in the tables: {others}. The "
            f"tables of such runs are in {KEPT_TABLES}. Run them again, or give these results an output of their own."
        )

    def describe_missing(self) -> str:
        """Return a sentence about the slides of the run without a result; empty if there are none."""
        missing = self.missing
        return f"Slides without a result yet: {missing.count}, {missing}." if missing.count else ""


class SlideTables(ABC, Generic[Result_contra]):
    """The tables of a folder, and the records of a run that adds slides to it.

    Only results of the same settings enter the tables. Other processes may add slides at the same time.

    Args:
        folder: The folder.
        made_with: Fingerprint of the settings.
        is_shard: Whether other processes do the other slides; then the tables are not written during the run.

    Attributes:
        shown: The first slides that this run did, a line each.
        failed: Slides that failed in this run.
    """

    command: ClassVar[str]
    """The entry point, which also names the log."""
    table: ClassVar[str]
    """Name of the table of results."""
    summary: ClassVar[str]
    """Name of the file with the settings."""
    beside: ClassVar[Sequence[str]] = ()
    """Names of further files of the results of these settings."""

    def __init__(self, folder: Path, made_with: str, *, is_shard: bool = False) -> None:
        self.folder = folder
        self.made_with = made_with
        self.shown: list[str] = []
        self.failed: dict[str, Failure] = {}
        self._keys: Mapping[str, str] = {}
        self._records = SlideRecords(folder, self._find_state)
        self._writing = RareWriting(never=is_shard)

    @classmethod
    @abstractmethod
    def from_run(cls, folder: Path, run: RunRecord) -> Self:
        """Return the tables of a run that recorded itself in a folder.

        Raises:
            PandaError: If another version recorded it.
        """

    @abstractmethod
    def write_summary(self, run: RunRecord, notes: Sequence[str]) -> None:
        """Write the settings of a run, with further notes for the reader of the results."""

    @abstractmethod
    def write_page(self) -> Path:
        """Write the page from the tables and the summary, and return its path."""

    @abstractmethod
    def _find_state(self, slide_id: str) -> str:
        """Return a text that changes with the files of a slide; empty if they are not complete."""

    @abstractmethod
    def _list_slides(self) -> Iterator[str]:
        """Yield the names that may be those of slides with results."""

    @abstractmethod
    def _read_outcome(self, slide_id: str, state: str) -> Outcome:
        """Read the result of a slide from its files, which have a state.

        Raises:
            OSError: If they cannot be read.
            PandaError: If they are damaged.
        """

    @abstractmethod
    def _make_outcome(self, result: Result_contra, state: str, key: str) -> Outcome:
        """Return the outcome of a slide whose files have a state."""

    @abstractmethod
    def _describe(self, result: Result_contra) -> str:
        """Return the figures of a slide that are read first, as one line of the log."""

    @property
    def _old_columns(self) -> dict[str, str]:
        """Columns of a table of failures of an older version beside the usual ones, with the values that count."""
        return {"made_with": self.made_with[:12]}

    def find_finished(self, keys: Mapping[str, str], *, any_label: bool = False) -> set[str]:
        """Return the slides that are finished, before any of them is opened.

        Args:
            keys: What `panda.app.slide_keys` finds.
            any_label: Whether slides that were scored against labels are finished without them too.
        """
        self._keys = keys
        self._records.read()
        return self._records.find_finished(keys, self.made_with, any_end=any_label)

    def add(self, result: Result_contra, failure: Failure | None = None) -> None:
        """Add a slide that is done, and the failure of its last step if there is one."""
        if len(self.shown) < SHOWN:
            self.shown.append(self._describe(result))
        slide_id = result.slide_id
        self.failed.pop(slide_id, None)
        key = self._keys.get(slide_id, "")
        self._records.append(self._make_outcome(result, self._records.find_state(slide_id), key))
        if failure:
            self._record_failure(failure)
        self._writing.call(self.write)

    def fail(self, failure: Failure) -> None:
        """Add a failure."""
        self._record_failure(failure)
        self._writing.call(self.write)

    def _record_failure(self, failure: Failure) -> None:
        self.failed[failure.slide_id] = failure
        self._records.append_failure(failure, self.made_with)

    def write_run(self, slide_ids: Iterable[str], summary: Plain, command: str = "") -> RunRecord:
        """Record what this run makes, of all slides, also those of other shards; a later call replaces it.

        Args:
            slide_ids: The slides.
            summary: The settings with their date, and notes.
            command: Fingerprint of the keys that decide the settings, if these are not known before the work.
        """
        self._records.take_over_failures(self.folder / FAILURES, self.made_with, self._old_columns)
        return self._records.runs.write(slide_ids, self.made_with, summary.model_dump(mode="json"), command)

    @classmethod
    def open_last(cls, folder: Path) -> tuple[Self, RunRecord]:
        """Return the tables of the run in a folder that recorded itself last, and that run.

        Raises:
            PandaError: If there is none.
        """
        run = cls.find_last_run(folder)
        if run is None:
            raise PandaError(f"{folder}: no run is recorded; run its command again, finished slides are not opened")
        return cls.from_run(folder, run), run

    @staticmethod
    def find_last_run(folder: Path, command: str | None = None) -> RunRecord | None:
        """Return the run in a folder that recorded itself last, of one command or of any; None without one."""
        return SlideRecords(folder, lambda _: "").runs.find_last(command)

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
        tables = all(
            any((self.folder / name).with_suffix(kind).is_file() for kind in (".csv", PARQUET))
            for name in (self.table, FAILURES)
        )
        pages = all((self.folder / name).is_file() for name in (self.summary, PAGE))
        return tables and pages and self._records.is_collected(run)

    def write(self, run: RunRecord | None = None) -> TableContents:
        """Write the table of results and `failures.csv` from the records.

        A slide that failed since it was done is left out of the results. The table of other settings is kept.

        Args:
            run: The run whose slides are missing if they are in neither table.
        """
        others, failed_of_run = NamedSlides(), 0
        self._records.read()
        if run:
            self._records.expect(run)
        table = self.folder / self.table
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
            keep_table(table, self.made_with, self.beside)
            write_rows(self.folder / FAILURES, failures, (*FAILURE_COLUMNS, "made_with"))
            write_rows(table, rows, ["slide_id"])
            return TableContents(len(rows), failed_of_run, self._records.list_missing(), others)

    def _complete(self, found: SlideState) -> tuple[Outcome, ...]:
        """Return the outcomes of a slide; without a row, read its result, and record it if it can be read."""
        if not found.state or any(one.row is not None for one in found.outcomes):
            return found.outcomes
        try:
            outcome = self._read_outcome(found.slide_id, found.state)
        except (OSError, PandaError) as error:
            log.warning("%s", error)
            return found.outcomes
        if self._records.find_state(found.slide_id) == found.state:
            self._records.append(outcome)
        return (*found.outcomes, outcome)


def parse_summary(folder: Path, run: RunRecord, kind: type[Model]) -> Model:
    """Return the settings that a run recorded in a folder.

    Raises:
        PandaError: If another version recorded them.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(run.summary), strict=True)
    except ValidationError as error:
        raise PandaError(
            f"{folder}: a record of a run is of another version ({describe_faults(error)}): run it again"
        ) from error
