"""The tables of a folder of features: every slide in it, whichever run encoded its tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from panda.data.failures import FAILURE_COLUMNS, Failure
from panda.files import hold_lock
from panda.inference.feature_output import FeatureOutput, FeatureRecord
from panda.tables import read_output_table, write_table

TABLE, FAILURES = "features.csv", "failures.csv"
_COLUMNS = ("slide_id", "file", "tiles", "dim", "mpp", "tile_um", "tile_px0", "tissue_how", "seconds", "notes")


@dataclass
class FeatureTables:
    """`features.csv` and `failures.csv` of a folder: its slides, whichever run encoded them.

    `done` and `failed` are of this run.
    """

    folder: FeatureOutput
    done: dict[str, FeatureRecord] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    earlier: dict[str, FeatureRecord] = field(init=False)

    def __post_init__(self) -> None:
        self.scan()

    def scan(self) -> None:
        """Read the records of the folder."""
        self.earlier = self.folder.list_records()

    def add(self, record: FeatureRecord) -> None:
        """Add a slide whose features are complete."""
        self.done[record.slide_id] = record
        self.failed.pop(record.slide_id, None)

    def fail(self, failure: Failure) -> None:
        """Add a failure and write the list of failures."""
        self.failed[failure.slide_id] = failure
        self._write_failures()

    def _write_failures(self) -> set[str]:
        """Write `failures.csv`, and return its slides. The failure of an earlier run stays until the slide succeeds."""
        path = self.folder.path / FAILURES
        with hold_lock(path):
            lines: dict[str, Mapping[str, str]] = {
                line["slide_id"]: line
                for line in read_output_table(path)
                if line.keys() == set(FAILURE_COLUMNS) and line["slide_id"] not in self.done
            }
            lines |= {slide_id: asdict(failure) for slide_id, failure in self.failed.items()}
            write_table(path, [line for _, line in sorted(lines.items())], FAILURE_COLUMNS)
        return set(lines)

    def write(self) -> list[FeatureRecord]:
        """Write both tables, and return the records in `features.csv`, without slides that failed since."""
        failed = self._write_failures()
        records = [own for slide_id, own in sorted((self.earlier | self.done).items()) if slide_id not in failed]
        rows = [_make_row(own) for own in records]
        path = self.folder.path / TABLE
        with hold_lock(path):
            write_table(path, rows, _COLUMNS)
        return records


def _make_row(record: FeatureRecord) -> dict[str, Any]:
    values = record.model_dump(include=set(_COLUMNS)) | {"notes": " ".join(record.notes)}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
