"""The operating point of a segmentation run: threshold, temperature and Gleason rule, chosen on validation slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from panda.app.run import Run
from panda.app.training_reuse import SCORES
from panda.data.datamodule import DataSettings
from panda.data.manifest import SlideRecord
from panda.errors import PandaError
from panda.files import remove
from panda.inference.class_figures import RuleGradedSlide
from panda.inference.evaluate import fingerprint_score, open_label, score_canvas
from panda.inference.predictor import SegmentationPredictor
from panda.inference.rule_grade import RuleGrader
from panda.inference.slide_loop import make_tile_callback, run_over_slides
from panda.inference.slide_score import SlideScore, collect_histograms, pool_tissue, read_scores, write_scores
from panda.report.curves import write_calibration, write_threshold_curve
from panda.tables import write_table
from panda.tasks.calibration import RELIABILITY_BINS, Calibration, Temperature, fit_temperature, score_calibration
from panda.tasks.checkpoint import update_metadata
from panda.tasks.gleason_search import FEWEST_GRADED, GleasonRuleChoice, GleasonRuleSettings, search_gleason_rule
from panda.tasks.metadata import SegmentationMetadata
from panda.tasks.threshold import ThresholdChoice, search_threshold
from panda.wsi.classes import ClassSet
from panda.wsi.gleason import explain_no_score
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

CHOICE_KEYS = ("criterion", "cost_ratio", "threshold_per_provider")
"""Keys by which the threshold is chosen."""


@dataclass(frozen=True)
class OperatingPoint:
    """What was chosen on validation and is in the best checkpoint, and the scores of the validation slides.

    Attributes:
        threshold: The threshold.
        temperature: The temperature, None without validation slides.
        gleason_rule: The rule from areas to a Gleason score, None with one class of cancer.
        validated: Scores of the validation slides.
    """

    threshold: ThresholdChoice
    temperature: Temperature | None
    gleason_rule: GleasonRuleChoice | None
    validated: list[SlideScore]


def freeze_operating_point(
    run: Run,
    data: DataSettings,
    predictor: SegmentationPredictor,
    val: Sequence[SlideRecord],
    gleason: GleasonRuleSettings,
) -> OperatingPoint:
    """Choose threshold, temperature and Gleason rule on validation and write them into the best checkpoint.

    Validation slides are mapped as in inference and scored on their blended canvases. If the patches of one slide
    were split, there is no validation slide: the threshold found on the best epoch's validation patches stays, and
    there is no temperature.
    """
    scores = [] if data.split == "patches" else _score_validation(run, data, predictor, val)
    histograms = collect_histograms(scores)
    chosen_on = f"{len(histograms)} validation slides, blended canvases, tissue only"
    choice = predictor.threshold
    if run.cfg.threshold != "auto":
        choice = ThresholdChoice.from_user(float(run.cfg.threshold))
    elif scores:
        choice = search_threshold(
            histograms,
            run.cfg.criterion,
            chosen_on,
            cost_ratio=run.cfg.cost_ratio,
            groups={score.record.slide_id: score.record.group for score in scores},
            providers=_list_providers(scores) if run.cfg.threshold_per_provider else None,
            seed=run.cfg.seed,
        )
    temperature = None
    if scores:
        rows = [_list_columns(score, choice, predictor.metadata.classes) for score in scores]
        write_table(run.folder / "val_slides.csv", rows)
        write_threshold_curve(histograms, choice, run.folder, _list_providers(scores))
        temperature = fit_temperature(pool_tissue(scores), chosen_on, choice.date)
    rule = choose_gleason_rule(gleason, predictor.metadata.classes, scores, choice)
    if rule is not None and rule.is_default:
        run.notes.append(f"The limits of the Gleason rule are the default ones, because they were {rule.chosen_on}.")
    update_metadata(
        run.best,
        SegmentationMetadata,
        threshold=choice,
        precision=predictor.settings.precision,
        tta=predictor.settings.tta,
        calibration=temperature,
        gleason_rule=rule,
    )
    return OperatingPoint(choice, temperature, rule, scores)


def _list_columns(score: SlideScore, choice: ThresholdChoice, classes: ClassSet) -> dict[str, Any]:
    threshold = choice.value_for(score.record.provider)
    return asdict(score.compute_metrics(threshold)) | score.list_class_columns(threshold, classes)


def choose_gleason_rule(
    settings: GleasonRuleSettings, classes: ClassSet, scores: Sequence[SlideScore], choice: ThresholdChoice
) -> GleasonRuleChoice | None:
    """Choose the rule from areas to a Gleason score on validation slides; None with one class of cancer.

    Areas are those of the map at the threshold, before the clean-up, as in the search of the threshold.
    """
    if classes.is_binary:
        return None
    if reason := explain_no_score(classes.patterns):
        return GleasonRuleChoice.from_settings(settings, reason)
    areas, grades = [], []
    for score in scores:
        grade, found = score.record.isup_grade, _measure_areas(score, classes, choice)
        if grade is not None and found is not None and not score.contradicts_grade:
            areas.append(found)
            grades.append(grade)
    where = f"{len(scores)} validation slides" if len(areas) < FEWEST_GRADED else f"{len(areas)} validation slides"
    return search_gleason_rule(areas, grades, settings, where)


def grade_by_rule(scores: Sequence[SlideScore], classes: ClassSet, frozen: OperatingPoint) -> list[RuleGradedSlide]:
    """Grade slides by the pixels of their scores; empty with one class of cancer."""
    found = []
    for score in scores:
        grader = RuleGrader.from_choice(classes, frozen.gleason_rule, frozen.threshold, score.record.provider)
        if grader is not None and not score.contradicts_grade:
            found.append(RuleGradedSlide(score.record, grader.grade_score(score)))
    return found


def _measure_areas(score: SlideScore, classes: ClassSet, choice: ThresholdChoice) -> dict[int, float] | None:
    """Return the area of each Gleason pattern on a slide in mm², None if µm/px is unknown."""
    pixels = score.confuse_classes(choice.value_for(score.record.provider)).sum(axis=0)
    patterns = {number: classes.patterns[name][0] for number, name in enumerate(classes.names) if number}
    areas = {pattern: score.compute_mm2(pixels[number]) for number, pattern in patterns.items()}
    known = {pattern: area for pattern, area in areas.items() if area is not None}
    return known if known.keys() == areas.keys() else None


def _score_validation(
    run: Run, data: DataSettings, predictor: SegmentationPredictor, val: Sequence[SlideRecord]
) -> list[SlideScore]:
    """Map and score the validation slides. Scores that another job of the sweep stored are read instead."""
    canvases = run.folder / "validation"
    stored, scored = read_scores(run.folder / SCORES, predictor.classes), dict[str, SlideScore]()

    def score(record: SlideRecord, slide: Slide, tissue: TissueMap, bar: tqdm[Any]) -> SlideScore:
        try:
            with open_label(record, slide, predictor.metadata.label_maps) as mask:
                key = fingerprint_score(predictor, slide, record)
                if key in stored:
                    scored[key] = SlideScore(record, *stored[key])
                    return scored[key]
                canvas = predictor.predict(slide, tissue, canvases / f"{record.slide_id}.zarr", make_tile_callback(bar))
                ignore = predictor.metadata.ignore_background
                scored[key] = score_canvas(canvas, slide, mask, tissue, record, ignore_background=ignore)
                return scored[key]
        finally:
            remove(canvases)  # the canvases of a large split would fill the disk

    results = run_over_slides(val, data.slide_options, "validation", score, run.failures.append)
    if not results:
        raise PandaError(f"no validation slide could be scored: {run.failures[-1].message}")
    write_scores(run.folder / SCORES, scored)
    return results


def _list_providers(scores: Sequence[SlideScore]) -> dict[str, str]:
    return {score.record.slide_id: score.record.provider for score in scores}


def note_unknown_providers(choice: ThresholdChoice, scores: Sequence[SlideScore]) -> list[str]:
    """Return a note for each provider without a threshold of its own, because it has no validation slides."""
    unknown = sorted(set(_list_providers(scores).values()) - set(choice.by_provider)) if choice.by_provider else []
    return [
        f"No validation slide is of {provider}: its slides were scored at the threshold of all providers."
        for provider in unknown
    ]


def calibrate(folder: Path, temperature: Temperature, splits: Mapping[str, Sequence[SlideScore]]) -> Calibration:
    """Measure the calibration on `validation` and `test`, and write `calibration.csv` and `.png`."""
    hists = {split: pool_tissue(scores) for split, scores in splits.items()}
    write_calibration(hists, temperature.value, folder)
    found = {split: score_calibration(hist, temperature.value) for split, hist in hists.items()}
    return Calibration(
        **temperature.model_dump(), bins=RELIABILITY_BINS, val=found["validation"], test=found.get("test")
    )
