"""Explain the figures of a run in plain sentences, from its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from panda.report.run_summary import GradingSummary, RunSummary, SegmentationSummary
from panda.report.slide_page import Card
from panda.report.table import UNITS, find_format, format_value, name_figure
from panda.report.trivial_answers import find_trivial_answer, list_alarms
from panda.tasks.calibration import Calibration
from panda.tasks.figures import Figures
from panda.tasks.threshold import CRITERIA, ThresholdChoice

Numbers = Mapping[str, float | None]

# First the figures that are read first.
HEADLINES = {
    "segmentation": (
        "dice", "dice_mean_slide", "iou", "precision", "recall", "fp_mm2_benign_slides", "slide_specificity",
        "slide_sensitivity",
    ),
    "isup": ("qwk", "accuracy", "auroc_significant", "auroc"),
    "cancer": ("auroc", "accuracy"),
    "classes": ("auroc_macro", "balanced_accuracy", "accuracy", "kappa"),
    "ordinal": ("qwk", "accuracy", "balanced_accuracy", "auroc_macro"),
    "regression": ("r2", "mae", "spearman", "pearson"),
    "survival": ("concordance",),
}  # fmt: skip
_FEW_SLIDES = 20
_MUCH_OUTSIDE = 0.5
"""Share in % of the labelled cancer from which the cancer outside the tissue found is shown."""
_WHY_NONE = {
    "fp_mm2_benign_slides": "needs benign slides of known µm/px",
    "auroc": "needs slides with and without cancer",
    "auroc_significant": "needs slides on both sides of ISUP 2",
    "auroc_macro": "needs slides of two classes",
    "concordance": "needs an event before the time of another slide",
    **dict.fromkeys(("r2", "pearson", "spearman"), "needs slides with different numbers"),
}


def explain_missing(scores: Figures | None, key: str) -> str:
    """Say why a figure of a split is missing; the split is None if it was not scored."""
    recorded = scores is not None and key in scores.numbers
    return _WHY_NONE.get(key, "undefined on these slides") if recorded else "was not recorded"


def list_headlines(summary: RunSummary | None) -> tuple[str, ...]:
    """Name the figures that matter for the run's task, the most important first."""
    if not isinstance(summary, GradingSummary):
        return HEADLINES["segmentation"]
    return HEADLINES[summary.scoring]


def format_interval(ends: tuple[float, float] | None, kind: str = "score") -> str:
    """Write an interval in the format of its figure, such as `0.66 to 0.83` for a score; empty for None."""
    kind = "headline" if kind == "score" else kind
    return "" if ends is None else f"{format_value(ends[0], kind)} to {format_value(ends[1], kind)}"


def choose_split(summary: RunSummary) -> tuple[str, Figures]:
    """Choose the split whose figures lead the page: the test split if it was scored, otherwise validation."""
    return ("test", summary.test) if summary.test is not None else ("validation", summary.val)


def make_cards(summary: RunSummary) -> list[Card]:
    """Make the cards of the figures that are read first."""
    return make_figure_cards(choose_split(summary)[1], list_headlines(summary))


def make_figure_cards(scores: Figures, keys: Sequence[str]) -> list[Card]:
    """Make cards of figures, each over its interval and its trivial answer."""
    numbers = scores.numbers
    cards: list[Card] = []
    for key in keys:
        kind = find_format(key)
        text = format_value(numbers.get(key), "headline" if kind == "score" else kind)
        if not text and len(cards) >= 2 and key not in numbers:
            continue
        big = len(cards) < 2
        ends = scores.find_interval(key)
        under = f"95 % interval {format_interval(ends, kind)}" if ends else ""
        if not text:
            under = explain_missing(scores, key)
        elif big and not ends:
            under = scores.explain_no_interval(key) or "no interval: fewer than five groups of slides, or undefined"
        if text and (trivial := find_trivial_answer(scores, key)):
            under = "; ".join(filter(None, (under, trivial.describe(key))))
        cards.append(Card(name_figure(key), text, UNITS.get(kind, "").strip(), under, big))
    if "rule_qwk" in numbers:
        span = format_interval(scores.find_interval("rule_qwk"))
        under = f"95 % interval {span}" if span else "against the given ISUP grades"
        cards.append(Card(name_figure("rule_qwk"), format_value(numbers["rule_qwk"], "headline"), under=under))
    if _has_much_outside(numbers):
        key = "cancer_outside_tissue_percent"
        cards.insert(2, Card(name_figure(key), format_value(numbers[key], "percent"), "%", "counts as missed"))
    return cards


def find_alarms(summary: RunSummary) -> list[str]:
    """Say what must not be overlooked in the figures that lead the page."""
    split, scores = choose_split(summary)
    return [f"On {'the test slides' if split == 'test' else split}: {alarm.text}" for alarm in list_alarms(scores)]


def explain_figures(summary: RunSummary) -> list[str]:
    """Say in paragraphs what the figures at the head of the page mean, and what they do not mean."""
    split, scores = choose_split(summary)
    numbers = scores.numbers
    slides = numbers.get("slides")
    counted = "test slides" if slides is None else f"{slides:.0f} test slide{'s' * (slides != 1)}"
    which = f"On {counted} that were not used in training or in any choice"
    if any("test slide" in note for note in summary.notes):
        which = f"On {counted}, of which the notes above say more"
    if split == "validation":
        what = "best epoch was" if summary.task == "grading" else "best epoch and the threshold were"
        first = (
            f"This run has no test split, so the figures above are those of validation. The {what} chosen on the same "
            "slides. The figures are therefore too good and say nothing certain about new slides."
        )
    elif summary.task == "grading":
        first = f"{which}: {_explain_grading(scores, list_headlines(summary))}"
    else:
        first = f"{which}: {explain_segmentation(scores)}"
    paragraphs = [first, *explain_outside(numbers)]
    if isinstance(summary, SegmentationSummary):
        paragraphs += [_explain_threshold(summary.threshold_choice), *_explain_calibration(summary.calibration)]
    return [*paragraphs, *_explain_doubts(split, slides)]


def _has_much_outside(numbers: Numbers) -> bool:
    """Return whether so much labelled cancer is outside the tissue found that Dice alone would mislead."""
    return (numbers.get("cancer_outside_tissue_percent") or 0) > _MUCH_OUTSIDE


def explain_outside(numbers: Numbers) -> list[str]:
    """Say how much labelled cancer is outside the tissue found, if it is much."""
    if not _has_much_outside(numbers):
        return []
    share, area = (format_value(numbers.get(f"cancer_outside_tissue_{unit}"), unit) for unit in ("percent", "mm2"))
    return [
        f"{share} % of the labelled cancer{area and f' ({area} mm²)'} is outside the tissue found. It counts "
        "as missed. The table of slides says on which slides it is."
    ]


def _format_with_interval(scores: Figures, key: str) -> str:
    ends = scores.find_interval(key)
    range_text = f" (95 % bootstrap interval {format_interval(ends)})" if ends else ""
    return f"{format_value(scores.numbers[key], 'headline')}{range_text}"


def explain_segmentation(scores: Figures) -> str:
    """Say how well a prediction overlaps the label, and what the trivial answer would give."""
    words = {
        "dice": "the predicted tumour overlaps the label with a Dice of {} over the pixels of all slides",
        "dice_mean_slide": "The mean Dice of the slides with cancer is {}",
    }
    parts = []
    for key, text in words.items():
        if scores.numbers.get(key) is not None:
            part = text.format(_format_with_interval(scores, key))
            if trivial := find_trivial_answer(scores, key):
                part += f"; calling all tissue tumour would give {trivial.value:.2f}"
            parts.append(part)
    return f"{'. '.join(parts)}." if parts else "no Dice is defined, because there is no labelled cancer."


def _explain_grading(scores: Figures, keys: Sequence[str]) -> str:
    words = {
        "qwk": "predicted and given grades agree with a quadratic weighted κ of {}",
        "accuracy": "{} of the slides got the right class",
        "auroc": "AUROC of cancer against benign is {}",
        "auroc_macro": "AUROC of a class against all others is {}, on average over the classes",
        "balanced_accuracy": "{} of the slides of a class got it, on average over the classes",
        "r2": "R² of the predicted numbers is {}, if 1 is perfect and 0 is no better than their mean",
        "mae": "they are off by {} on average",
        "concordance": "the concordance index is {}: how often, of two slides, the one with the earlier event has the "
        "higher predicted risk. Chance gives 0.5",
    }
    parts = []
    for key in keys:
        if key in words and (value := scores.numbers.get(key)) is not None:
            parts.append(words[key].format(f"{value:.0%}" if key == "accuracy" else _format_with_interval(scores, key)))
    return ("; ".join(parts) or "no figure is defined") + "."


def _explain_threshold(choice: ThresholdChoice) -> str:
    text = f"A pixel counts as tumour from a probability of {choice.value:.3g}"
    criterion = CRITERIA.get(choice.criterion)
    if criterion is None:
        return f"{text}. The threshold was not searched ({choice.chosen_on})."
    best = "lowest" if criterion.lowest_is_best else "best"
    text += f", chosen on {choice.chosen_on}, for the {best} {criterion.label}"
    details = [f"{format_value(choice.score, 'headline')} there"] if choice.score is not None else []
    if choice.cost_ratio is not None:
        details.append(f"a missed cancer pixel counts as {choice.cost_ratio:g} false ones")
    text += f" ({'; '.join(details)})." if details else "."
    if choice.interval:
        text += f" On other such slides it could have been {_format_range(choice.interval)} (95 % interval)."
    if choice.by_provider:
        own = [
            f"{name} {format_value(found.value)}" + (f" ({_format_range(found.interval)})" if found.interval else "")
            for name, found in choice.by_provider.items()
        ]
        text += f" Each provider's slides are scored at its own threshold: {', '.join(own)}."
    return text


def _format_range(ends: tuple[float, float]) -> str:
    return f"{format_value(ends[0])} to {format_value(ends[1])}"


def _explain_calibration(found: Calibration | None) -> list[str]:
    """Say how far probabilities are from shares, and that the maps show them unchanged."""
    if found is None:
        return []
    splits = [("validation", found.val), *([("the test slides", found.test)] if found.test else [])]
    known = [(name, errors) for name, errors in splits if errors.ece is not None]
    if not known:
        return []
    unscaled = " and ".join(f"{format_value(errors.ece)} on {name}" for name, errors in known)
    text = f"Probabilities differ from the share of cancer among pixels by {unscaled} (calibration error)"
    if found.value is None:
        return [f"{text}. No temperature corrects that ({found.note})."]
    scaled = " and ".join(f"{format_value(errors.ece_scaled)} on {name}" for name, errors in known)
    return [
        f"{text}. At the temperature {found.value:.2f}, fitted on validation, they differ by {scaled}. The maps show "
        "the probabilities of the network unchanged: a temperature would also move the threshold and change no mask."
    ]


def _explain_doubts(split: str, slides: float | None) -> list[str]:
    if slides is None or slides >= _FEW_SLIDES or split != "test":
        return []
    return [
        f"With {slides:.0f} slide{'s' * (slides != 1)} the figures are coarse. Read them as a check that everything "
        "works, not as a measure of how well."
    ]
