"""The tables of a folder of features: every slide in it, whichever run encoded its tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

from omegaconf import DictConfig

from panda.app.collection import collect
from panda.app.slide_tables import SlideTables, parse_summary
from panda.data.run_records import RunRecord
from panda.data.slide_records import Outcome, RowValue
from panda.inference.feature_output import SUMMARY, TABLE, FeatureOutput, FeatureRecord, FeatureSummary
from panda.report.features_page import write_features_page

_COLUMNS = ("slide_id", "file", "tiles", "dim", "mpp", "tile_um", "tile_px0", "tissue_how", "seconds", "notes")


def collect_features(cfg: DictConfig) -> None:
    """Write tables and page of features, see `collect`."""
    collect(cfg, FeatureTables)


class FeatureTables(SlideTables[FeatureRecord]):
    """`features.csv` and `failures.csv` of a folder of features.

    Args:
        output: The folder.
        is_shard: See `SlideTables`.
    """

    command: ClassVar[str] = "features"
    table: ClassVar[str] = TABLE
    summary: ClassVar[str] = SUMMARY

    def __init__(self, output: FeatureOutput, *, is_shard: bool = False) -> None:
        self.output = output
        super().__init__(output.path, output.settings.fingerprint, is_shard=is_shard)

    @classmethod
    def from_run(cls, folder: Path, run: RunRecord) -> Self:
        """See `SlideTables.from_run`."""
        return cls(FeatureOutput(folder, parse_summary(folder, run, FeatureSummary)))

    def write_summary(self, run: RunRecord, notes: Sequence[str]) -> None:
        """Write `features.json`, see `SlideTables.write_summary`."""
        summary = parse_summary(self.folder, run, FeatureSummary)
        self.output.write_summary(summary.model_copy(update={"notes": [*summary.notes, *notes]}))

    def write_page(self) -> Path:
        """See `SlideTables.write_page`."""
        return write_features_page(self.folder)

    @property
    def _old_columns(self) -> dict[str, str]:
        return {}

    def _find_state(self, slide_id: str) -> str:
        return self.output.find_state(slide_id)

    def _list_slides(self) -> Iterator[str]:
        return self.output.list_slides()

    def _read_outcome(self, slide_id: str, state: str) -> Outcome:
        return self._make_outcome(self.output.read_record(slide_id), state, "")

    def _make_outcome(self, result: FeatureRecord, state: str, key: str) -> Outcome:
        row = _make_row(result)
        return Outcome(slide_id=result.slide_id, made_with=result.made_with, state=state, key=key, row=row)

    def _describe(self, result: FeatureRecord) -> str:
        scale = "unknown µm/px" if result.mpp is None else f"{result.mpp:.4g} µm/px"
        return f"{result.slide_id}: {result.tiles:,} tiles at {scale}"


def _make_row(record: FeatureRecord) -> dict[str, RowValue]:
    values = record.model_dump(include=set(_COLUMNS)) | {"notes": " ".join(record.notes)}
    return {key: round(value, 4) if isinstance(value := values[key], float) else value for key in _COLUMNS}
