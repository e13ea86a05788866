"""Print the figures of a run in two lines: `python -m panda.report.headline runs/segmentation/demo …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from panda.report.run_summary import EvaluationSummary, GradingSummary, RunSummary, read_json_summary
from panda.report.table import find_format, format_value
from panda.report.trivial_answers import find_trivial_answer
from panda.tasks.figures import Figures

FIGURES = {
    "segmentation": (
        ("dice", "Dice"),
        ("dice_mean_slide", "mean Dice of slides with cancer"),
        ("slide_sensitivity", "sensitivity of slides"),
        ("slide_specificity", "specificity"),
        ("slide_auroc", "AUROC of slides"),
    ),
    **dict.fromkeys(
        ("isup", "cancer"), (("qwk", "quadratic kappa"), ("accuracy", "accuracy"), ("auroc", "AUROC for cancer"))
    ),
    "classes": (("auroc_macro", "AUROC"), ("balanced_accuracy", "balanced accuracy"), ("kappa", "kappa")),
    "ordinal": (("qwk", "quadratic kappa"), ("accuracy", "accuracy"), ("auroc_macro", "AUROC")),
    "regression": (("r2", "R²"), ("mae", "mean absolute error")),
    "survival": (("concordance", "concordance"), ("events", "events")),
}


def format_headline(summary: RunSummary | EvaluationSummary) -> str:
    """Write the figures of the test slides, or of validation if there are none, in a line."""
    found: Figures | None = summary.test
    split, scores = "test", found
    if not isinstance(summary, EvaluationSummary) and found is None:
        split, scores = "val", summary.val
    assert scores is not None
    numbers = scores.numbers
    known = [(key, name) for key, name in FIGURES[summary.scoring] if key in numbers]
    named = [_name_value(scores, key, name) for key, name in known]
    slides = f" on {numbers['slides']} slides" if "slides" in numbers else ""
    at = "" if isinstance(summary, GradingSummary) else f" at threshold {summary.threshold:.3f}"
    what: str = summary.task
    if isinstance(summary, GradingSummary) and not summary.target.is_grade:
        what += f" of {summary.target.name}"
    if isinstance(summary, EvaluationSummary):
        named += _name_more(summary)
    return f"{what} ({split}{slides}{at}): {', '.join(named)}"


def _name_more(summary: EvaluationSummary) -> list[str]:
    """Name the agreement of the grades, and whether the figures are those that the training promised."""
    named = []
    if summary.grades is not None:
        named.append(_name_value(summary.grades, "qwk", "quadratic kappa"))
    known = [one for one in summary.against_training if one.is_within is not None]
    if known:
        inside = sum(bool(one.is_within) for one in known)
        named.append(f"{inside} of {len(known)} figures within the intervals of the training's test")
    return named


def _name_value(scores: Figures, key: str, name: str) -> str:
    """Write a figure and, in the same measure, its trivial answer."""
    if not (text := format_value(scores.numbers[key], find_format(key))):
        return f"{name} undefined"
    trivial = find_trivial_answer(scores, key)
    return f"{name} {text}" + (f" ({trivial.describe(key)})" if trivial else "")


def main(folders: Sequence[str]) -> int:
    """Print headline and report of each run folder; return 1 and say why if one holds no finished run."""
    status = 0
    for folder in folders:
        summary, fault = read_json_summary(Path(folder))
        if summary is None:
            print(f"{folder} holds no finished run: {fault}", file=sys.stderr)
            status = 1
            continue
        print(f"{format_headline(summary)}\n  {Path(folder) / 'report.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
