"""Make whole summaries of runs from the few figures that a test is about."""

from collections.abc import Mapping
from typing import Any

from panda.inference.grading_metrics import (
    AttentionFigures,
    AttentionSplitFigures,
    GradingFigures,
    GradingSplitFigures,
)
from panda.inference.segmentation_figures import SegmentationFigures, SegmentationSplitFigures
from panda.report.run_summary import EvaluationSummary, PatchFigures, RunSummary, parse_summary
from panda.tasks.figures import Figures

_PARTS: dict[type[Figures], type[Figures]] = {
    SegmentationSplitFigures: SegmentationFigures,
    GradingSplitFigures: GradingFigures,
    AttentionSplitFigures: AttentionFigures,
}
_BLANK: dict[str, Any] = {
    "slides": 0, "slides_with_cancer": 0, "benign_slides": 0, "contradicting_slides": 0, "groups": 0,
    "no_interval": {}, "confusion": [],
    "cancer_outside_tissue_px": 0,
}  # fmt: skip
_CHOICE = {
    "value": 0.5, "criterion": "given", "score": None, "chosen_on": "no slides",
    "date": "2026-01-01T00:00:00Z", "cost_ratio": None,
    "interval": None, "interval_note": "", "by_provider": {},
}  # fmt: skip
_DATA: dict[str, Any] = {"root": "data", "slides": {}, "left_out": {}, "groups": "by slide"}
_PATCHES = {
    "store": "", "settings": {}, "split": "holdout", "seed": 0, "patches": {}, "tumor_patches": {}, "failed": [],
}  # fmt: skip


def fill(model: type[Figures], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the figures of a split with null or 0 if they are not given; other keys are kept."""
    content = {name: _BLANK.get(name) for name in model.model_fields} | dict(given)
    for by in {"by_provider", "by_grade"} & set(model.model_fields):
        content[by] = {name: fill(_PARTS[model], part) for name, part in (given.get(by) or {}).items()}
    return content


def fill_summary(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a whole `summary.json`; `test: None` leaves the test slides out."""
    task = given.get("task", "segmentation")
    content: dict[str, Any] = {
        "schema": 4, "task": task, "name": "run", "created": "2026-01-01T00:00:00Z",
        "seed": 0, "device": "cpu", "epochs": 1,
        "seconds": 1.0, "trained_by": None, "notes": [], "threshold": 0.5, "val": {},
        "bootstrap": {"resamples": 2000, "seed": 0, "level": 0.95, "unit": "groups of slides"},
    } | dict(given)  # fmt: skip
    content["data"] = _DATA | (_PATCHES if task == "segmentation" else {}) | content.get("data", {})
    if task == "segmentation":
        content["threshold_choice"] = _CHOICE | content.get("threshold_choice", {})
        content.setdefault("calibration", None)
        content.pop("target", None)
        models: tuple[type[Figures], type[Figures]] = (SegmentationSplitFigures, SegmentationSplitFigures)
    else:
        content = {"target": "isup", "tiles": {}} | content
        for key in ("threshold_choice", "calibration"):
            content.pop(key, None)
        for key in set(content["data"]) - {*_DATA, "colours"}:
            del content["data"][key]
        models = (GradingSplitFigures, AttentionSplitFigures)
    for split, model in zip(("val", "test"), models, strict=True):
        scores = content.get(split)
        if scores is None:
            content.pop(split, None)
        else:
            content[split] = fill(PatchFigures if "of" in scores else model, scores)
    return content


def make_summary(given: Mapping[str, Any]) -> RunSummary:
    """Return the summary of a run."""
    summary, faults = parse_summary(fill_summary(given))
    assert summary is not None, faults
    assert not isinstance(summary, EvaluationSummary)
    return summary
