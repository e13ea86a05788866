"""Grade the slides or patients of a split with a trained network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from panda.app.feature_grading import FeatureGrading
from panda.app.grading_config import GradingConfig
from panda.app.patient_grading import PatientGrading
from panda.app.run import Run
from panda.app.slide_grading import SlideGrading
from panda.data.bagset import BagItem
from panda.data.manifest import SlideRecord
from panda.data.patients import choose_labelled, group_bags
from panda.data.targets import TargetSpec
from panda.inference.feature_grader import FeatureGrader
from panda.inference.grade import GradeRecord
from panda.inference.grader import GradingPredictor
from panda.inference.grading_metrics import GradedSlide
from panda.inference.slide_loop import SlidePrefetcher, get_slide_id, run_over_items, run_over_slides
from panda.report.patient_table import PATIENTS_TABLE
from panda.tables import write_table


def grade_split(
    run: Run, cfg: GradingConfig, grader: GradingPredictor | FeatureGrader, items: Sequence[BagItem], split: str
) -> list[GradedSlide]:
    """Grade the slides or patients of bags; test slides get folders with their pages.

    Returns:
        The grades with the labels. A patient stands under its name, in place of a slide.
    """
    folder, options = run.folder / "slides" if split == "test" else None, cfg.data_module.settings.slide_options
    grading: SlideGrading | FeatureGrading
    if isinstance(grader, FeatureGrader):
        files = {item.record.slide_id: item.features for item in items if item.features is not None}
        grading = FeatureGrading(grader, files, options, folder)
    else:
        grading = SlideGrading(grader, cfg.guidance, cfg.quantify, options, cfg.colour_map, folder, run.failures)
    grade = _grade_patients if cfg.task.bag == "patient" else _grade_slides
    found = grade(run, cfg, grading, [item.record for item in items], f"grades of {split}")
    if unusable := grading.unusable_masks:
        run.notes.append(
            f"The label masks of {len(unusable)} graded slides cannot be used, so their attention was not scored. "
            f"The first: {unusable[0]}"
        )
    return [GradedSlide(record, read_values(record, cfg.target), own) for record, own in found]


def read_values(record: SlideRecord, target: TargetSpec) -> tuple[float, ...]:
    """Return the label of a slide, which slides of a bag have, see `TargetSpec.read_values`."""
    values = target.read_values(record)
    assert values is not None  # a bag without a label is refused
    return values


def _grade_slides(
    run: Run, cfg: GradingConfig, grading: SlideGrading | FeatureGrading, records: Sequence[SlideRecord], stage: str
) -> list[tuple[SlideRecord, GradeRecord]]:
    if isinstance(grading, FeatureGrading):
        return run_over_items(records, get_slide_id, stage, grading.grade_slide, run.failures.append)
    ahead = cfg.engine.thread_count
    found = run_over_slides(
        records, grading.slide_options, stage, grading.grade_slide, run.failures.append, ahead=ahead
    )
    return [graded for graded in found if graded is not None]


def _grade_patients(
    run: Run, cfg: GradingConfig, grading: SlideGrading | FeatureGrading, records: Sequence[SlideRecord], stage: str
) -> list[tuple[SlideRecord, GradeRecord]]:
    bags = group_bags(records, lambda record: record, "patient")
    with ExitStack() as stack:
        if isinstance(grading, FeatureGrading):
            open_part = grading.open_part
        else:
            ordered = [record for own in bags.values() for record in own]
            prefetcher = SlidePrefetcher(ordered, grading.open_slide, cfg.engine.thread_count)
            open_part = partial(grading.open_part, stack.enter_context(prefetcher))
        shown = grading.folder is not None
        patients = PatientGrading(grading.grader, open_part, stage, run.failures.append, shown)
        graded = patients.grade_all(bags)
    if shown:
        write_table(run.folder / PATIENTS_TABLE, patients.rows)
    labelled = {name: choose_labelled(bags[name], cfg.target) for name in graded}
    return [(dataclasses.replace(record, slide_id=name), graded[name]) for name, record in labelled.items()]
