"""Grade the slides of feature files with a checkpoint: grades, pages of slides and a report, without maps."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from panda.app.entry_point import SomeSlidesFailed, log_to_file, make_folder
from panda.app.feature_grading import FeatureGrading
from panda.app.inference_config import FeatureInferenceConfig
from panda.app.patient_grading import PatientGrading
from panda.app.software import describe_making
from panda.data.failures import Failure, write_failures
from panda.data.feature_folder import list_unknown
from panda.inference.feature_grader import FeatureGrader
from panda.inference.grade import GradeRecord, list_grade_columns
from panda.inference.slide_loop import get_slide_id, run_over_items
from panda.inference.slide_result import TableRow
from panda.report.grades_page import GRADES_TABLE, FeatureInferenceSummary, write_grades_page
from panda.report.inference_summary import LastRun
from panda.settings import format_value
from panda.stored import InSample
from panda.tables import write_table
from panda.tasks.figures import make_timestamp

log = logging.getLogger(__name__)


def infer_from_features(config: FeatureInferenceConfig) -> None:
    """Grade the slide of every feature file, continue after bad ones, and write the report.

    Raises:
        SomeSlidesFailed: If any slide could not be graded, after all others are done.
    """
    started = time.monotonic()
    files, images, folder = config.files, config.images, Path(config.run_dir)
    grader = FeatureGrader(config.grading, config.engine)
    make_folder(folder)
    log_to_file(folder / "infer.log")
    log.info("features=%s: %d files, %d with their slides", config.features, len(files), len(files.keys() & images))
    grading = FeatureGrading(grader, files, config.slide_options, folder)
    failures: list[Failure] = []

    def fail(failure: Failure) -> None:
        failures.append(failure)
        write_failures(folder / "failures.csv", failures)

    write_failures(folder / "failures.csv", failures)
    if config.bags is None:
        graded = dict(run_over_items(config.records, get_slide_id, "grades", grading.grade_slide, fail))
    else:
        patients = PatientGrading(grader, grading.open_part, "grades", fail, shown=True)
        found = patients.grade_all(config.bags)
        graded = {record: grade for name, grade in found.items() for record in config.bags[name]}
    rows = [
        _make_row(record.slide_id, grade, grader.metadata.find_role(record.slide_id))
        for record, grade in graded.items()
    ]
    write_table(folder / GRADES_TABLE, rows, None if rows else ["slide_id"])
    notes = [*list_unknown(grading.origins), *(config.list_patient_notes() or grader.list_bag_notes())]
    if images and (absent := len(files.keys() - images)):
        given = format_value(config.slides)
        notes.append(f"{absent} of {len(files)} slides are not among slides={given}, so no picture shows them.")
    for note in notes:
        log.warning("%s", note)
    FeatureInferenceSummary(
        grading_checkpoint=str(config.grading.path),
        features=config.features,
        slides=format_value(config.slides) if config.slides else None,
        target=grader.metadata.target,
        origin=grader.origin,
        tiles=grader.metadata.tiles.k,
        device=str(config.engine.torch_device),
        date=make_timestamp(),
        last_run=LastRun(slides=len(files), failed=len(failures), seconds=round(time.monotonic() - started, 1)),
        notes=notes,
        **dict(describe_making()),
    ).write(folder)
    log.info("report: %s", write_grades_page(folder))
    if failures:
        but = "; the others are done" if rows else ""
        raise SomeSlidesFailed(f"{len(failures)} of {len(files)} slides failed: see {folder / 'failures.csv'}{but}")


def _make_row(slide_id: str, grade: GradeRecord, role: InSample | None) -> TableRow:
    """Return the row of a slide in the table of grades."""
    row: TableRow = {"slide_id": slide_id}
    if grade.patient is not None:
        row["patient"] = grade.patient
    row |= list_grade_columns(grade.target, grade)
    row |= grade.list_confidence()
    return row | {"in_sample": role}
