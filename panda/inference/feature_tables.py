"""The tables of a folder of features: every slide in it, whichever run encoded its tiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from panda.data.failures import FAILURE_COLUMNS, Failure
from panda.data.rare_writing import RareWriting
from panda.data.slide_records import SlideRecords
from panda.files import hold_lock
from panda.inference.feature_output import FeatureOutput, FeatureRecord
from panda.tables import write_table

TABLE, FAILURES = "features.csv", "failures.csv"
_COLUMNS = ("slide_id", "file", "tiles", "dim", "mpp", "tile_um", "tile_px0", "tissue_how", "seconds", "notes")


class FeatureTables:
    """`features.csv` and `failures.csv` of a folder: its slides, whichever run encoded them.

    Failures are in the records of the folder, each until the slide succeeds.

    Args:
        folder: The folder.
        is_shard: Whether other processes encode the other slides; then the tables are not written during the run.

    Attributes:
        failed: Slides that failed in this run.
    """

    def __init__(self, folder: FeatureOutput, *, is_shard: bool = False) -> None:
        self.folder = folder
        self.failed: dict[str, Failure] = {}
        self._made_with = folder.settings.fingerprint
        self._records = SlideRecords(folder.path, folder.find_state)
        self._writing = RareWriting(never=is_shard)
        self._records.take_over_failures(folder.path / FAILURES, self._made_with, {})

    def add(self, record: FeatureRecord) -> None:
        """Add a slide whose features are complete, and its record too."""
        self.failed.pop(record.slide_id, None)
        self._writing.call(self.write)

    def fail(self, failure: Failure) -> None:
        """Add a failure."""
        self.failed[failure.slide_id] = failure
        self._records.append_failure(failure, self._made_with)
        self._writing.call(self.write)

    def list_failures(self) -> dict[str, Failure]:
        """Return the failures of slides that did not succeed since, of all processes, by slide."""
        self._records.read()
        return {
            found.slide_id: outcome.failure
            for found in self._records.iterate(())
            for outcome in found.outcomes
            if outcome.failure is not None and outcome.made_with == self._made_with
        }

    def has_all(self, slide_ids: Iterable[str]) -> bool:
        """Return whether each slide has its features or a failure."""
        return set(slide_ids) <= self.list_failures().keys() | self.folder.list_records().keys()

    def write(self) -> list[FeatureRecord]:
        """Write both tables, and return the records in `features.csv`, without slides that failed since."""
        path = self.folder.path / TABLE
        with hold_lock(path):
            failures = self.list_failures()
            records = [own for slide_id, own in self.folder.list_records().items() if slide_id not in failures]
            write_table(self.folder.path / FAILURES, map(asdict, failures.values()), FAILURE_COLUMNS)
            write_table(path, map(_make_row, records), _COLUMNS)
        return records


def _make_row(record: FeatureRecord) -> dict[str, Any]:
    values = record.model_dump(include=set(_COLUMNS)) | {"notes": " ".join(record.notes)}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
