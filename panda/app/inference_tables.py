"""The tables of an inference folder: every slide in it with the same provenance, whichever run mapped it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

from omegaconf import DictConfig

from panda.app.collection import collect
from panda.app.slide_tables import SlideTables, parse_summary
from panda.data.mapped_slide import RESULT_FILE
from panda.data.run_records import RunRecord
from panda.data.slide_records import Outcome
from panda.data.slide_state import read_state
from panda.errors import PandaError
from panda.files import remove_leftovers
from panda.inference.slide_result import SlideResult
from panda.report.evaluation import FILES, write_evaluation
from panda.report.grade_notes import describe_mark
from panda.report.headline import format_headline
from panda.report.inference_page import write_inference_page
from panda.report.inference_summary import INFERENCE_FILE, InferenceSummary
from panda.report.slide_page import PAGE
from panda.report.trivial_answers import list_summary_alarms

log = logging.getLogger(__name__)


def collect_maps(cfg: DictConfig) -> None:
    """Write tables and page of maps of slides, see `collect`."""
    collect(cfg, InferenceTables)


class InferenceTables(SlideTables[SlideResult]):
    """`quantification.csv` and `failures.csv` of a folder of maps."""

    command: ClassVar[str] = "infer"
    table: ClassVar[str] = "quantification.csv"
    summary: ClassVar[str] = INFERENCE_FILE
    beside: ClassVar[Sequence[str]] = FILES

    @classmethod
    def from_run(cls, folder: Path, run: RunRecord) -> Self:
        """See `SlideTables.from_run`."""
        parse_summary(folder, run, InferenceSummary)
        return cls(folder, run.made_with)

    def write_summary(self, run: RunRecord, notes: Sequence[str]) -> None:
        """Write `inference.json`, and the evaluation against labels, see `SlideTables.write_summary`."""
        summary = parse_summary(self.folder, run, InferenceSummary)
        remove_leftovers(self.folder, INFERENCE_FILE)
        summary.model_copy(update={"notes": [*summary.notes, *notes]}).write(self.folder)
        evaluation = write_evaluation(self.folder, summary, self.made_with)
        if evaluation is not None:
            log.info("%s", format_headline(evaluation))
            for alarm in list_summary_alarms(evaluation):
                log.warning("%s", alarm.text)

    def write_page(self) -> Path:
        """See `SlideTables.write_page`."""
        return write_inference_page(self.folder)

    def _find_state(self, slide_id: str) -> str:
        return read_state(self.folder / slide_id, RESULT_FILE, (PAGE,))

    def _list_slides(self) -> Iterator[str]:
        with os.scandir(self.folder) as entries:
            yield from (entry.name for entry in entries if entry.is_dir())

    def _read_outcome(self, slide_id: str, state: str) -> Outcome:
        folder = self.folder / slide_id
        result = SlideResult.read(folder)
        if result.slide_id != slide_id:
            raise PandaError(f"{folder}: it has the results of slide {result.slide_id}: give it another name")
        return self._make_outcome(result, state, "")

    def _make_outcome(self, result: SlideResult, state: str, key: str) -> Outcome:
        made_with, row = result.provenance.fingerprint, result.to_row()
        return Outcome(slide_id=result.slide_id, made_with=made_with, state=state, key=key, row=row)

    def _describe(self, result: SlideResult) -> str:
        area = "area unknown (no µm/px)" if result.tumor_mm2 is None else f"{result.tumor_mm2:.3f} mm²"
        percent = result.tumor_percent_of_tissue
        share = "–" if percent is None else f"{percent:.2f} %"
        grade = "" if result.provenance.grader is None else ", not graded"
        if result.grade is not None:
            grade = f", {result.grade.describe_with_name()}"
            grade += f" ({mark})" if (mark := describe_mark(result.grade)) else ""
        if (rule := result.rule_grade) is not None:
            grade += f", Gleason {rule.score} (ISUP {rule.isup}) by areas" if rule.score else ", no Gleason score"
        held = [f"{own.name} {own.percent_of_tumor:.0f} %" for own in result.classes if own.percent_of_tumor]
        classes = f" ({', '.join(held)})" if held else ""
        return f"{result.slide_id}: tumour {share} of tissue, {area}{classes}, {result.num_regions} regions{grade}"
