"""Evaluate the slides of an inference that have labels, as a training evaluates its test slides."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from panda.data.kept_tables import keep_files
from panda.data.manifest import read_groups
from panda.errors import PandaError
from panda.files import write_json
from panda.inference.class_figures import RuleGradedSlide
from panda.inference.dataset_metrics import summarize
from panda.inference.grading_metrics import AttentionSplitFigures, GradedSlide, summarize_test_grades
from panda.inference.scored_row import make_scored_row
from panda.inference.segmentation_figures import SegmentationSplitFigures
from panda.inference.slide_result import SlideResult
from panda.inference.slide_score import SCORE_FILE, SlideScore, read_score
from panda.report.agreement import measure_agreement
from panda.report.error_table import ERROR_TABLE, CollectedErrors
from panda.report.inference_summary import InferenceSummary
from panda.report.run_summary import (
    SCHEMA,
    AreaAgreement,
    BootstrapSummary,
    EvaluationSummary,
    SegmentationSummary,
    TrainingComparison,
    read_json_summary,
    read_summary,
)
from panda.tables import OutputTable, read_output_table, write_table
from panda.tasks.bootstrap import RESAMPLES
from panda.tasks.figures import Figures, make_timestamp
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.classes import BINARY, ClassSet

COMPARED = ("dice", "dice_mean_slide", "slide_sensitivity", "slide_specificity", "slide_auroc")
"""Figures that are compared with those of the training's test slides."""
_TABLE = "test_slides.csv"
FILES = ("summary.json", _TABLE, ERROR_TABLE)
_SEED = 0
_RESULTS = "quantification.csv"
Scored = Sequence[tuple[SlideScore, SlideResult]]


def write_evaluation(folder: Path, inference: InferenceSummary, made_with: str) -> EvaluationSummary | None:
    """Write the files of `FILES` for the slides of a folder that have labels.

    An earlier evaluation against other labels is kept in `KEPT_TABLES`. A run without labels evaluates nothing, and an
    earlier evaluation stays where it is if the scores of its slides are unchanged.

    Args:
        folder: The output, with `quantification.csv` and a folder for each slide.
        inference: The settings of the run.
        made_with: Fingerprint of the settings.

    Returns:
        The evaluation; None if the run has no labels, or no slide has a score.

    Raises:
        ManifestError: If the table of groups cannot be read.
    """
    notes: list[str] = []
    scored = list(_read_slides(folder, notes))
    choice = _choose_threshold(inference)
    if inference.labels is None and _is_unchanged(folder, scored, choice):
        return None
    before, _ = read_json_summary(folder)
    if not scored or not isinstance(before, EvaluationSummary) or before.labels != inference.labels:
        keep_files(map(folder.joinpath, FILES), made_with)
    if not scored or inference.labels is None:
        return None
    if inference.groups is not None:
        scored = _apply_groups(scored, inference.groups, notes)
    classes = _read_classes(scored[0][1])
    summary = EvaluationSummary(
        **_describe(folder, notes),
        checkpoint=inference.checkpoint,
        grading_checkpoint=inference.grading_checkpoint,
        labels=inference.labels,
        threshold=choice.value,
        threshold_choice=choice,
        seen_in_training=sum(result.in_sample is not None for _, result in scored),
        test=(test := _summarize(scored, choice, classes)),
        grades=_summarize_grades(scored),
        agreement=_summarize_areas(scored),
        against_training=_compare_with_training(Path(inference.checkpoint), test, notes),
    )
    write_table(folder / _TABLE, _make_rows(scored, choice))
    CollectedErrors.read(folder / _RESULTS, folder).write(folder / ERROR_TABLE)
    write_json(folder / "summary.json", summary.to_dict())
    return summary


def _make_rows(scored: Scored, choice: ThresholdChoice) -> list[dict[str, Any]]:
    return [make_scored_row(*pair, choice.value, _read_classes(pair[1])) for pair in scored]


def _is_unchanged(folder: Path, scored: Scored, choice: ThresholdChoice) -> bool:
    """Return whether slides have the scores of the evaluation in a folder; their groups may be others."""

    def read(parent: Path) -> list[dict[str, str]]:
        return [{**row, "group": ""} for row in read_output_table(parent / _TABLE)]

    with tempfile.TemporaryDirectory() as made:
        write_table(Path(made) / _TABLE, _make_rows(scored, choice))
        return bool(scored) and read(folder) == read(Path(made))


def _describe(folder: Path, notes: list[str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": folder.name,
        "created": make_timestamp(),
        "bootstrap": BootstrapSummary(resamples=RESAMPLES, seed=_SEED, level=0.95, unit="groups of slides"),
        "notes": notes,
    }


def _read_slides(folder: Path, notes: list[str]) -> Iterator[tuple[SlideScore, SlideResult]]:
    """Yield score and result of each slide of the table that has labels; one that cannot be read is noted."""
    for row in OutputTable(folder / _RESULTS):
        if row.get("cancer_outside_tissue_px"):  # it has a number for each slide with labels
            home = folder / row["slide_id"]
            try:
                result = SlideResult.read(home)
                yield read_score(home / SCORE_FILE, _read_classes(result)), result
            except (OSError, PandaError) as error:
                notes.append(f"Not in these figures: {error}")


def _apply_groups(scored: Scored, table: str, notes: list[str]) -> list[tuple[SlideScore, SlideResult]]:
    """Give each slide its group of a table; one that the table lacks is a group of its own, which is noted."""
    groups, _ = read_groups(table, "groups")
    if absent := [score.record.slide_id for score, _ in scored if score.record.slide_id not in groups]:
        notes.append(f"{len(absent)} slides are not in {table}, such as {absent[0]}: each is a group of its own.")
    found = []
    for score, result in scored:
        record = replace(score.record, group=groups.get(score.record.slide_id, score.record.group))
        found.append((replace(score, record=record), result))
    return found


def _choose_threshold(inference: InferenceSummary) -> ThresholdChoice:
    """Return the threshold of all slides with its origin."""
    choice = inference.threshold_choice or ThresholdChoice.from_user(inference.threshold)
    own = choice.by_provider.get(inference.provider or "", choice)
    return ThresholdChoice(**own.model_dump(exclude={"by_provider"}))


def _read_classes(result: SlideResult) -> ClassSet:
    content = result.provenance.segmentation.get("classes")
    return BINARY if content is None else ClassSet.model_validate_json(json.dumps(content))


def _summarize(scored: Scored, choice: ThresholdChoice, classes: ClassSet) -> SegmentationSplitFigures:
    rule_grades = [
        RuleGradedSlide(score.record, result.rule_grade)
        for score, result in scored
        if result.rule_grade and not score.contradicts_grade
    ]
    return summarize([score for score, _ in scored], choice, _SEED, classes, rule_grades)


def _summarize_grades(scored: Scored) -> AttentionSplitFigures | None:
    """Compute the figures of the grades; None without a grader of grades, or a slide with both grades."""
    graded = []
    for score, result in scored:
        if result.grade is not None and result.grade.target.is_grade:
            values = result.grade.target.read_values(score.record)
            if values is not None:
                graded.append(GradedSlide(score.record, values, result.grade))
    return summarize_test_grades(graded, graded[0].grade.target.outputs, _SEED) if graded else None


def _summarize_areas(scored: Scored) -> AreaAgreement | None:
    gaps = [
        result.against_label.tumor_difference_mm2
        for _, result in scored
        if result.against_label and result.against_label.tumor_difference_mm2 is not None
    ]
    if len(gaps) < 3:
        return None
    mean, limit = measure_agreement(gaps)
    return AreaAgreement(
        slides=len(gaps), mean_difference_mm2=mean, lower_limit_mm2=mean - limit, upper_limit_mm2=mean + limit
    )


def _compare_with_training(checkpoint: Path, here: Figures, notes: list[str]) -> list[TrainingComparison]:
    """Compare figures with those of the test slides in the summary of the checkpoint's run, or note why not."""
    trained, fault = read_summary(checkpoint.parent.parent)
    if not isinstance(trained, SegmentationSummary) or trained.test is None:
        why = fault or "its run scored no test slides"
        notes.append(f"The figures are not compared with those of the training: {why}")
        return []
    found = []
    for key in COMPARED:
        own, test = here.numbers.get(key), trained.test.numbers.get(key)
        if own is not None and test is not None:
            ends = trained.test.find_interval(key)
            is_within = None if ends is None else ends[0] <= own <= ends[1]
            found.append(TrainingComparison(figure=key, here=own, test=test, test_interval=ends, is_within=is_within))
    return found
