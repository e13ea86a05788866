"""Compare figures with trivial answers, which need no network, and find what must not be overlooked in a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from panda.inference.grading_metrics import GradingFigures
from panda.inference.slide_score import CALLED_PERCENT
from panda.report.run_summary import EvaluationSummary, RunSummary
from panda.report.table import UNITS, find_format, format_value, name_figure
from panda.tasks.figures import Figures

LESS_IS_BETTER = frozenset({"fp_mm2_benign_slides", "nll", "ece", "aurc", "selective_risk", "mae"})
MOST_FALSE_ALARMS = 0.25
"""Share of the cancer-free slides from which a run that calls them cancer is marked."""
_NEARLY_ALL_PERCENT = 95.0
"""Share of the tissue, %, from which a run calls nearly all of it cancer."""
_CHANCE = {
    **dict.fromkeys(
        ("auroc", "auroc_significant", "auroc_macro", "slide_auroc", "pixel_auroc", "attention_auroc", "concordance"),
        0.5,
    ),
    **dict.fromkeys(("qwk", "kappa", "r2", "pearson", "spearman", "rule_qwk"), 0.0),
}
_STORED = {
    **{key: f"all_tissue_{key}" for name in ("dice", "iou", "precision") for key in (name, f"{name}_mean_slide")},
    "fp_mm2_benign_slides": "all_tissue_fp_mm2_benign_slides",
    "cancer_attended": "cancer_of_tiles",
    "mae": "median_mae",
}
_JUDGED = (
    *("dice", "dice_mean_slide"),
    *("qwk", "accuracy", "balanced_accuracy", "auroc", "auroc_significant", "auroc_macro", "kappa"),
    *("r2", "mae", "concordance"),
)
"""Figures that must beat their trivial answer."""


@dataclass(frozen=True)
class Alarm:
    """What must not be overlooked: its kind in a few words, and a sentence."""

    kind: str
    text: str


@dataclass(frozen=True)
class TrivialAnswer:
    """The value of a figure for a trivial answer, and the answer in words."""

    value: float
    name: str

    def describe(self, key: str) -> str:
        """Return the answer with its value in the format of a figure."""
        kind = find_format(key)
        return f"{self.name}: {format_value(self.value, 'headline' if kind == 'score' else kind)}{UNITS.get(kind, '')}"


def find_trivial_answer(scores: Figures, key: str) -> TrivialAnswer | None:
    """Return the trivial answer of a figure in the same measure, or None if it has none."""
    if key in _STORED:
        value = scores.numbers.get(_STORED[key])
        name = "median for all" if key == "mae" else "all tiles alike" if key == "cancer_attended" else "all tissue"
        return None if value is None else TrivialAnswer(value, name)
    if key in _CHANCE:
        return TrivialAnswer(_CHANCE[key], "mean for all" if key == "r2" else "chance")
    if key == "pr_auc" and (percent := scores.numbers.get("cancer_percent_of_tissue")) is not None:
        return TrivialAnswer(percent / 100, "chance")
    made = _OF_COUNTS.get(key)
    given = [sum(row) for row in getattr(scores, "confusion", None) or [] if isinstance(row, list)]
    return TrivialAnswer(made(given), "commonest class for all") if made and any(given) else None


_OF_COUNTS: Mapping[str, Callable[[list[int]], float]] = {
    "accuracy": lambda given: max(given) / sum(given),
    "balanced_accuracy": lambda given: 1 / sum(count > 0 for count in given),
}
"""Figures of the answer that is always the commonest class, from the number of slides of each given class."""


def list_summary_alarms(summary: RunSummary | EvaluationSummary) -> list[Alarm]:
    """Say what must not be overlooked in the figures of test slides, or of slides that `infer.py labels=…` scored."""
    return [*find_seen_slides(summary), *(list_alarms(summary.test) if summary.test else [])]


def find_seen_slides(summary: RunSummary | EvaluationSummary) -> Iterator[Alarm]:
    """Say how many slides of an evaluation were used in the training, if any."""
    if isinstance(summary, EvaluationSummary) and (seen := summary.seen_in_training):
        slides = summary.test.slides + summary.test.contradicting_slides
        yield Alarm(
            f"{seen} of {slides} slides used in the training",
            f"{seen} of {slides} slides with labels were used in the training: these figures are too good, and say "
            "nothing certain about new slides.",
        )


def list_alarms(scores: Figures) -> list[Alarm]:
    """Say what must not be overlooked: a figure that beats no trivial answer, or many false alarms."""
    return [*_compare_with_trivial(scores), *_find_all_called(scores), *_find_false_alarms(scores)]


def _compare_with_trivial(scores: Figures) -> Iterator[Alarm]:
    lost: dict[str, list[str]] = {}
    for key in _JUDGED:
        value, trivial = scores.numbers.get(key), find_trivial_answer(scores, key)
        if value is None or trivial is None:
            continue
        gain = trivial.value - value if key in LESS_IS_BETTER else value - trivial.value
        if gain <= 0:
            text = f"{name_figure(key)} {format_value(value)}, trivial {format_value(trivial.value)}"
            lost.setdefault(trivial.name, []).append(text)
    for name, texts in lost.items():
        yield Alarm("no better than trivial", f"No better than a trivial answer ({name}): {'; '.join(texts)}.")


def _find_all_called(scores: Figures) -> Iterator[Alarm]:
    called, labelled = (scores.numbers.get(f"{name}_percent_of_tissue") for name in ("called", "cancer"))
    if called is not None and labelled is not None and called >= _NEARLY_ALL_PERCENT > labelled:
        yield Alarm(
            "calls nearly all tissue",
            f"Nearly all tissue is called cancer: {format_value(called, 'percent')} % of it, of which "
            f"{format_value(labelled, 'percent')} % is labelled.",
        )


def _find_false_alarms(scores: Figures) -> Iterator[Alarm]:
    specificity, benign = scores.numbers.get("slide_specificity"), scores.numbers.get("benign_slides")
    what = f"more than {CALLED_PERCENT:g} % of their tissue"
    if isinstance(scores, GradingFigures) and scores.confusion and (total := sum(scores.confusion[0])):
        specificity, benign, what = scores.confusion[0][0] / total, total, "by their grade"
    if specificity is not None and benign and 1 - specificity > MOST_FALSE_ALARMS:
        false = round((1 - specificity) * benign)
        yield Alarm(
            f"{false} of {benign:.0f} false alarms",
            f"False alarms: {false} of {benign:.0f} cancer-free slides are called cancer ({what}). More than "
            f"{MOST_FALSE_ALARMS:.0%} are marked.",
        )
