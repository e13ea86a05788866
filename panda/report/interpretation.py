"""What the figures of a run mean, in plain sentences, from its summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from panda.report.run_folder import mapping, number, sequence
from panda.report.slide_page import Card
from panda.report.table import UNITS, figure_kind, figure_name, show

# First the figures that are read first.
HEADLINES = {
    "segmentation": (
        "dice_mean_slide",
        "dice",
        "iou",
        "precision",
        "recall",
        "fp_mm2_benign_slides",
        "all_tissue_dice",
    ),
    "isup": ("qwk", "accuracy", "auroc_significant", "auroc"),
    "cancer": ("auroc", "accuracy"),
}
LESS_IS_BETTER = frozenset({"fp_mm2_benign_slides"})
CRITERIA = {
    "dice_pooled": "pooled Dice",
    "dice_mean_slide": "mean Dice per slide",
    "f1": "F1 over pixels (pooled Dice)",
    "youden": "Youden's J",
    "cost": "cost",
}
"""What a threshold was searched for, in words."""
_FEW = 20
_OUTSIDE = 0.5
"""Share in % of the labelled cancer beyond which what lies outside the tissue found is shown."""
_WHY_NONE = {
    "fp_mm2_benign_slides": "needs benign slides of known µm/px",
    "auroc": "needs slides with and without cancer",
    "auroc_significant": "needs slides on both sides of ISUP 2",
}


def why_none(scores: dict[str, Any], key: str) -> str:
    """Say why a figure of a split is missing.

    Args:
        scores: Of the split.
        key: Of the figure.
    """
    return _WHY_NONE.get(key, "undefined on these slides") if key in scores else "was not recorded"


def headline_keys(summary: dict[str, Any]) -> tuple[str, ...]:
    """Name the figures that matter for the run's task, the most important first."""
    if summary.get("task") != "grading":
        return HEADLINES["segmentation"]
    return HEADLINES["cancer" if summary.get("target") == "cancer" else "isup"]


def interval(scores: dict[str, Any], key: str) -> tuple[float, float] | None:
    """Find the 95 % interval of a figure.

    Args:
        scores: Figures of a split.
        key: The figure; its interval is `<key>_interval`.
    """
    ends = scores.get(f"{key}_interval")
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    low, high = number(ends[0]), number(ends[1])
    return None if low is None or high is None else (low, high)


def interval_text(ends: tuple[float, float] | None, kind: str = "score") -> str:
    """Write an interval, such as `0.66 to 0.83`; empty for None.

    Args:
        ends: Low and high.
        kind: Of the figure, as for :func:`panda.report.table.show`; a score's interval has 2 decimals.
    """
    kind = "headline" if kind == "score" else kind
    return "" if ends is None else f"{show(ends[0], kind)} to {show(ends[1], kind)}"


def scored_split(summary: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Choose the split whose figures lead the page: the test split where it was scored, else validation."""
    test, val = mapping(summary.get("test")), mapping(summary.get("val"))
    return ("test", test) if test else ("validation", val)


def headline_cards(summary: dict[str, Any]) -> list[Card]:
    """Make the cards of the figures that are read first."""
    _, scores = scored_split(summary)
    cards: list[Card] = []
    for key in headline_keys(summary):
        kind = figure_kind(key)
        text = show(scores.get(key), "headline" if kind == "score" else kind)
        if not text and len(cards) >= 2 and key not in scores:
            continue
        big = len(cards) < 2
        ends = interval(scores, key)
        under = f"95 % interval {interval_text(ends, kind)}" if ends else ""
        if not text:
            under = why_none(scores, key)
        elif big and not ends:
            under = str(mapping(scores.get("no_interval")).get(key) or "no interval was recorded")
        cards.append(Card(figure_name(key), text, UNITS.get(kind, "").strip(), under, big))
    if _much_outside(scores):
        key = "cancer_outside_tissue_percent"
        cards.insert(2, Card(figure_name(key), show(scores[key], "percent"), "%", "enters none of these figures"))
    return cards


def meaning(summary: dict[str, Any]) -> list[str]:
    """Say what the figures at the head of the page are, and what they are not.

    Args:
        summary: The run's summary; any part of it may be missing.

    Returns:
        Sentences in paragraphs.
    """
    split, scores = scored_split(summary)
    if not scores:
        return ["No figures: neither the validation nor the test split was scored in this run."]
    slides = number(scores.get("slides"))
    counted = "test slides" if slides is None else f"{slides:.0f} test slide{'s' * (slides != 1)}"
    which = f"On {counted} that took no part in training or in any choice"
    if any("test slide" in str(note) for note in sequence(summary.get("notes"))):
        which = f"On {counted}, of which the notes above say more"
    if split == "validation":
        what = "best epoch was" if summary.get("task") == "grading" else "best epoch and the threshold were"
        first = (
            f"This run has no test split, so the figures above are those of validation. The {what} chosen on the same "
            "slides: they flatter, and say nothing certain of new slides."
        )
    elif summary.get("task") == "grading":
        first = f"{which}: {_grading_words(scores, headline_keys(summary))}"
    else:
        first = f"{which}: {_segmentation_words(scores)}"
    return [
        first,
        *_outside_words(scores),
        *_threshold_words(summary),
        *_calibration_words(summary),
        *_doubts(split, slides),
    ]


def _much_outside(scores: dict[str, Any]) -> bool:
    """Whether so much labelled cancer lies outside the tissue found that Dice alone would mislead."""
    return (number(scores.get("cancer_outside_tissue_percent")) or 0) > _OUTSIDE


def _outside_words(scores: dict[str, Any]) -> list[str]:
    if not _much_outside(scores):
        return []
    share, area = (show(scores.get(f"cancer_outside_tissue_{unit}"), unit) for unit in ("percent", "mm2"))
    return [
        f"{share} % of the labelled cancer{area and f' ({area} mm²)'} lies where no tissue was found: it enters no "
        "score, neither as found nor as missed. The table of slides says where."
    ]


def _of(scores: dict[str, Any], key: str) -> str:
    ends = interval(scores, key)
    range_text = f" (95 % bootstrap interval {interval_text(ends)})" if ends else ""
    return f"{show(scores.get(key), 'headline')}{range_text}"


def _segmentation_words(scores: dict[str, Any]) -> str:
    if number(scores.get("dice_mean_slide")) is None and number(scores.get("dice")) is None:
        return "no Dice is defined, for want of labelled or predicted tumour."
    key = "dice_mean_slide" if number(scores.get("dice_mean_slide")) is not None else "dice"
    what = "a mean Dice per slide of" if key == "dice_mean_slide" else "a pooled Dice of"
    text = f"the predicted tumour overlaps the label with {what} {_of(scores, key)}."
    baseline = number(scores.get("all_tissue_dice"))
    if baseline is not None:
        text += f" Calling all tissue tumour would give {baseline:.2f}."
    return text


def _grading_words(scores: dict[str, Any], keys: Sequence[str]) -> str:
    words = {
        "qwk": "predicted and given grades agree with a quadratic weighted κ of {}",
        "accuracy": "{} of the slides got the right class",
        "auroc": "AUROC of cancer against benign is {}",
    }
    parts = []
    for key in keys:
        if key in words and (value := number(scores.get(key))) is not None:
            parts.append(words[key].format(f"{value:.0%}" if key == "accuracy" else _of(scores, key)))
    return ("; ".join(parts) or "no figure is defined") + "."


def _threshold_words(summary: dict[str, Any]) -> list[str]:
    choice = mapping(summary.get("threshold_choice"))
    value = number(choice.get("value", summary.get("threshold")))
    if value is None or summary.get("task") == "grading":
        return []
    text = f"A pixel counts as tumour from a probability of {value:.3g}"
    criterion = choice.get("criterion")
    if criterion not in CRITERIA:
        why = f" ({choice['chosen_on']})" if choice.get("chosen_on") else ""
        return [f"{text}; it was not searched for{why}."]
    if choice.get("chosen_on"):
        text += f", chosen on {choice['chosen_on']}"
    text += f", for the {'least' if criterion == 'cost' else 'best'} {CRITERIA[criterion]}"
    told = [f"{show(choice['score'], 'headline')} there"] if number(choice.get("score")) is not None else []
    if number(choice.get("cost_ratio")) is not None:
        told.append(f"a missed cancer pixel counts as {choice['cost_ratio']:g} false ones")
    text += f" ({'; '.join(told)})." if told else "."
    if ends := interval({"value_interval": choice.get("interval")}, "value"):
        text += f" On other such slides it might have come out from {show(ends[0])} to {show(ends[1])} (95 % interval)."
    own = {name: mapping(found) for name, found in mapping(choice.get("by_provider")).items()}
    if own:
        each = []
        for name, found in own.items():
            ends = interval({"value_interval": found.get("interval")}, "value")
            span = f" ({show(ends[0])} to {show(ends[1])})" if ends else ""
            each.append(f"{name} {show(found.get('value'))}{span}")
        text += f" Each provider's slides are scored at its own threshold: {', '.join(each)}."
    return [text]


def _calibration_words(summary: dict[str, Any]) -> list[str]:
    """How far probabilities are from shares, and that the maps show them as they are."""
    found = mapping(summary.get("calibration"))
    errors = {name: mapping(found.get(split)) for split, name in (("val", "validation"), ("test", "the test slides"))}
    plain = [f"{show(e['ece'])} on {name}" for name, e in errors.items() if number(e.get("ece")) is not None]
    if not plain:
        return []
    text = f"Probabilities differ from the share of cancer among pixels by {' and '.join(plain)} (calibration error)"
    temperature = number(found.get("value"))
    if temperature is None:
        return [f"{text}; no temperature would mend that ({found.get('note')})."]
    scaled = [
        f"{show(e.get('ece_scaled'))} on {name}" for name, e in errors.items() if number(e.get("ece")) is not None
    ]
    return [
        f"{text}; at the temperature {temperature:.2f}, fitted on validation, by {' and '.join(scaled)}. The maps show "
        "probabilities as the network gives them: a temperature would move the threshold too, and change no mask."
    ]


def _doubts(split: str, slides: float | None) -> list[str]:
    if slides is None or slides >= _FEW or split != "test":
        return []
    return [
        f"With {slides:.0f} slide{'s' * (slides != 1)} the figures are coarse: read them as a check that things "
        "work, not as a measure of how well."
    ]
