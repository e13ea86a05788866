"""The parts of a run's page about classes of cancer: their scores, and the grades that follow from their areas."""

from __future__ import annotations

from typing import Any

from panda.inference.class_figures import (
    UNNAMED,
    ClassConfusion,
    ClassFigures,
    ClassSplitFigures,
    RuleGradeSplitFigures,
)
from panda.inference.segmentation_figures import SegmentationSplitFigures
from panda.report.confusion import ConfusionTable, lay_out_confusion
from panda.report.figure_tables import make_part_table
from panda.report.grade_notes import explain_rule
from panda.report.interpretation import choose_split, format_interval
from panda.report.run_summary import RunSummary, SegmentationSummary
from panda.report.table import format_value
from panda.wsi.gleason import GRADES, list_class_names


def lay_out_classes(summary: RunSummary) -> dict[str, Any] | None:
    """Return the parts of the page about classes of cancer; None for a run with one class."""
    _, scores = choose_split(summary)
    if not isinstance(summary, SegmentationSummary) or not isinstance(scores, SegmentationSplitFigures):
        return None
    if (found := scores.classes) is None:
        return None
    agreement, by_provider, rule = None, make_part_table({}, "Provider", str), []
    if (graded := scores.rule_grade) is not None and summary.gleason_rule is not None:
        rule = [_explain_agreement(graded), explain_rule(summary.gleason_rule)]
        names = list_class_names("isup", GRADES)
        if graded.slides:
            agreement = lay_out_confusion(graded.confusion, names, names, "given ↓   by areas →")
            by_provider = make_part_table(graded.by_provider, "Provider", str)
    return {
        "meaning": _explain_classes(found),
        "table": make_part_table(_name_parts(found), "Class", str),
        "confusion": _lay_out_areas(found.confusion),
        "any_cancer": UNNAMED in found.confusion.labels,
        "agreement": agreement,
        "rule": rule,
        "by_provider": by_provider,
    }


def _name_parts(found: ClassSplitFigures) -> dict[str, ClassFigures]:
    """Return the scores of each class, and those by provider too if several name classes."""
    naming = {name: part for name, part in found.by_provider.items() if part.by_class}
    parts = dict(found.by_class)
    if len(naming) > 1:
        parts |= {f"{name}, {at}": one for at, part in naming.items() for name, one in part.by_class.items()}
    return parts


def _explain_classes(found: ClassSplitFigures) -> list[str]:
    """Say which labels the scores of the classes are over."""
    silent = [name for name, part in found.by_provider.items() if not part.by_class]
    text = (
        f"Dice of a class is over the pixels whose label names their class: {found.slides} "
        f"slide{'s' * (found.slides != 1)} of {found.groups} group{'s' * (found.groups != 1)}."
    )
    if not found.slides:
        text = "No label of these slides names a class of cancer, so no class has a Dice."
    if silent and found.slides:
        text += f" The labels of {' and '.join(silent)} say cancer or not, and enter only the figures of all cancer."
    return [text]


def _explain_agreement(graded: RuleGradeSplitFigures) -> str:
    """Say how well the grades by the rule agree with the given ones."""
    if not graded.slides:
        lacking = f" ({graded.without_score} graded slides have none)" if graded.without_score else ""
        return f"No slide has a given grade and a Gleason score from its areas{lacking}."
    ends = format_interval(graded.qwk_interval)
    kappa = "is undefined" if graded.qwk is None else f"is {format_value(graded.qwk, 'headline')}"
    kappa += f" (95 % bootstrap interval {ends})" if ends else ""
    return (
        f"Of {graded.slides} graded slides, {graded.accuracy:.0%} get the given ISUP grade from the areas of their "
        f"patterns, and quadratic κ {kappa}. The given grade is within the grades of the threshold band on "
        f"{graded.within_band:.0%}."
    )


def _lay_out_areas(found: ClassConfusion) -> ConfusionTable | None:
    """Lay out the areas of labelled and predicted classes; None if they are unknown."""
    if found.mm2 is None:
        return None
    return lay_out_confusion(found.mm2, found.labels, found.predicted, "labelled ↓   predicted →", "mm2")
