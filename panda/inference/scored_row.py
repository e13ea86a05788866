"""The row of a scored slide in `test_slides.csv`, of a training and of an evaluation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from panda.inference.slide_result import SlideResult
from panda.inference.slide_score import SlideScore
from panda.wsi.classes import ClassSet

_QUANTIFIED = {"tumor_percent_of_tissue", "tumor_mm2", "tissue_mm2", "num_regions"}
"""Columns that come from the quantification."""


def make_scored_row(score: SlideScore, result: SlideResult, threshold: float, classes: ClassSet) -> dict[str, Any]:
    """Return the metrics of a slide at a threshold, and its quantification."""
    own = result.model_dump(include=_QUANTIFIED) | result.list_rule_columns()
    own |= result.list_class_areas() | score.list_class_columns(threshold, classes)
    return asdict(score.compute_metrics(threshold)) | own
