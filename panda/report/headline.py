"""Print the figures of a run in two lines: `python -m panda.report.headline runs/segmentation/demo …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from panda.report.run_summary import GradingSummary, RunSummary, read_summary
from panda.report.table import find_format, format_value
from panda.report.trivial_answers import find_trivial_answer
from panda.tasks.figures import Figures

FIGURES = {
    "segmentation": (
        ("dice", "Dice"),
        ("dice_mean_slide", "mean Dice of slides with cancer"),
        ("slide_sensitivity", "sensitivity of slides"),
        ("slide_specificity", "specificity"),
    ),
    **dict.fromkeys(
        ("isup", "cancer"), (("qwk", "quadratic kappa"), ("accuracy", "accuracy"), ("auroc", "AUROC for cancer"))
    ),
    "classes": (("auroc_macro", "AUROC"), ("balanced_accuracy", "balanced accuracy"), ("kappa", "kappa")),
    "ordinal": (("qwk", "quadratic kappa"), ("accuracy", "accuracy"), ("auroc_macro", "AUROC")),
    "regression": (("r2", "R²"), ("mae", "mean absolute error")),
    "survival": (("concordance", "concordance"), ("events", "events")),
}


def format_headline(summary: RunSummary) -> str:
    """Write the figures of the test slides, or of validation if there are none, in a line."""
    split, scores = ("val", summary.val) if summary.test is None else ("test", summary.test)
    numbers = scores.numbers
    known = [(key, name) for key, name in FIGURES[summary.scoring] if key in numbers]
    named = [_name_value(scores, key, name) for key, name in known]
    slides = f" on {numbers['slides']} slides" if "slides" in numbers else ""
    at = f" at threshold {summary.threshold:.3f}" if summary.task == "segmentation" else ""
    what: str = summary.task
    if isinstance(summary, GradingSummary) and not summary.target.is_grade:
        what += f" of {summary.target.name}"
    return f"{what} ({split}{slides}{at}): {', '.join(named)}"


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
        summary, fault = read_summary(Path(folder))
        if summary is None:
            print(f"{folder} holds no finished run: {fault}", file=sys.stderr)
            status = 1
            continue
        print(f"{format_headline(summary)}\n  {Path(folder) / 'report.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
