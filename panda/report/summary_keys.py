"""What `summary.json` holds, key by key: what docs/summary.md is made of, and files are checked against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

SCHEMA = 3


@dataclass(frozen=True)
class Key:
    """One key of an object.

    Args:
        name: The key.
        kind: One of `KINDS`, the title of a `Block`, or a title followed by ` by name`.
        meaning: In a sentence.
        unit: Of numbers that have one.
        null: When it is null; empty where it never is.
        absent: When it is left out; empty where it never is.
    """

    name: str
    kind: str
    meaning: str
    unit: str = ""
    null: str = ""
    absent: str = ""


@dataclass(frozen=True)
class Block:
    """One object: its title, what it is, its keys, and another object all of whose keys it has too."""

    title: str
    about: str
    own: tuple[Key, ...]
    base: Block | None = None

    @property
    def keys(self) -> tuple[Key, ...]:
        """All its keys."""
        return (*(self.base.keys if self.base else ()), *self.own)


KINDS: dict[str, Any] = {
    "text": str,
    "whole number": int,
    "count": NonNegativeInt,
    "number": float,
    "share": Annotated[float, Field(ge=0, le=1)],
    "[low, high]": Annotated[list[float], Field(min_length=2, max_length=2)],
    "list of texts": list[str],
    "counts by name": dict[str, NonNegativeInt],
    "texts by name": dict[str, str],
    "object": dict[str, Any],
    "list of objects": list[dict[str, Any]],
    "matrix of counts": list[list[NonNegativeInt]],
}

_NO_CANCER = "no labelled cancer in tissue"
_LONE = "fewer than two groups of slides bear on it, or the figure is null"
_POOLED = {
    "dice": "2 TP / (2 TP + FP + FN) over the pixels of all slides together; the pixels' F1 is the same number",
    "iou": "TP / (TP + FP + FN), likewise",
    "precision": "TP / (TP + FP), likewise",
    "recall": "TP / (TP + FN), likewise",
}


def _with_interval(name: str, kind: str, meaning: str, unit: str, null: str) -> tuple[Key, Key]:
    return (
        Key(name, kind, meaning, unit, null),
        Key(f"{name}_interval", "[low, high]", f"95 % bootstrap interval of `{name}`", unit, _LONE),
    )


def _pooled(name: str, meaning: str) -> tuple[Key, Key]:
    null = _NO_CANCER + ("; nothing was predicted" if name == "precision" else "")
    return _with_interval(name, "share", meaning, "", null)


def _mean_of_slides(name: str) -> tuple[Key, Key]:
    more = "; slides where nothing was predicted have none and are left out" if name == "precision" else ""
    null = "no slide has one"
    return _with_interval(
        f"{name}_mean_slide", "share", f"mean `{name}` of the slides with labelled cancer in tissue{more}", "", null
    )


_PIXELS = Block(
    "figures of segmentation",
    "Pixels of tissue on blended canvases, at the threshold of `threshold_choice`; a slide without labelled cancer has "
    "no Dice, and its false-positive area is given instead.",
    (
        Key("slides", "count", "slides that were scored"),
        Key("slides_with_cancer", "count", "those with labelled cancer in tissue"),
        Key("benign_slides", "count", "those without any labelled cancer"),
        Key("groups", "count", "groups (patients or near-duplicates) of the slides, which the bootstrap draws"),
        *(key for name, meaning in _POOLED.items() for key in _pooled(name, meaning)),
        *(key for name in _POOLED for key in _mean_of_slides(name)),
        *_with_interval(
            "pr_auc",
            "share",
            "average precision over pixels: area under the precision-recall curve, at any threshold",
            "",
            _NO_CANCER,
        ),
        *_with_interval(
            "pixel_auroc", "share", "area under the ROC curve over pixels", "", f"{_NO_CANCER}, or no other tissue"
        ),
        *_with_interval(
            "fp_mm2_benign_slides",
            "number",
            "mean area called cancer on slides without any labelled cancer, before the clean-up",
            "mm²",
            "there is no such slide, or µm/px of one is unknown",
        ),
        Key("no_interval", "texts by name", "figure to the reason why it has no interval"),
        Key("cancer_percent_of_tissue", "number", "labelled cancer: what `pr_auc` is by chance", "%", "no tissue"),
        Key("all_tissue_dice", "share", "`dice` of calling all tissue cancer", "", _NO_CANCER),
        Key("cancer_outside_tissue_px", "count", "labelled cancer where no tissue was found: it is in no score", "px"),
        Key("cancer_outside_tissue_mm2", "number", "its area", "mm²", "µm/px of such a slide is unknown"),
        Key("cancer_outside_tissue_percent", "number", "its share of the labelled cancer", "%", "no labelled cancer"),
    ),
)  # fmt: skip
_PARTS = Block(
    "figures of segmentation and their parts",
    "Of all slides of a split.",
    (
        Key("by_provider", f"{_PIXELS.title} by name", "the same for each provider's slides"),
        Key("by_grade", f"{_PIXELS.title} by name", 'the same for each ISUP grade, "0" to "5", or "none"'),
    ),
    _PIXELS,
)
_PATCHES = Block(
    "figures of split patches",
    "With `data=one_slide` there is no validation slide.",
    (
        Key("dice", "share", "pooled Dice over validation patches at their best threshold", "", "it was given"),
        Key("of", "text", "what was scored"),
    ),
)  # fmt: skip
_GRADES_OF_PROVIDER = Block(
    "figures of grading",
    "Whole slides, each with the class of the greatest probability.",
    (
        Key("slides", "count", "slides that were graded"),
        *_with_interval(
            "qwk",
            "number",
            "Cohen's kappa with quadratic weights",
            "",
            "truth and prediction are of one class, or no slide was graded",
        ),
        *_with_interval("accuracy", "share", "share of slides given their class", "", "no slide was graded"),
        *_with_interval("auroc", "share", "AUROC, cancer against none", "", "all slides are on one side"),
        *_with_interval("auroc_significant", "share", "AUROC, ISUP 2 and above", "", "likewise, or `target` is cancer"),
        Key("confusion", "matrix of counts", "slides: a row a true class, a column a predicted one"),
    ),
)
_GRADES = Block(
    "figures of grading and their parts",
    "Of all slides of a split.",
    (Key("by_provider", f"{_GRADES_OF_PROVIDER.title} by name", "the same for each provider's slides"),),
    _GRADES_OF_PROVIDER,
)
_ATTENTION_OF_PROVIDER = Block(
    "figures of grading and attention",
    "Attention is held against the label masks of test slides.",
    (
        *_with_interval(
            "attention_auroc",
            "share",
            "AUROC of a tile's attention for tiles of which a tenth or more is labelled cancer; mean over slides",
            "",
            "no slide has a mask with both kinds of tiles",
        ),
        *_with_interval(
            "cancer_attended",
            "share",
            "labelled cancer in the tiles, weighed by attention; mean over slides whose tiles have some",
            "",
            "no slide has a mask with cancer",
        ),
        *_with_interval("cancer_of_tiles", "share", "the same, each tile alike", "", "likewise"),
    ),
    _GRADES_OF_PROVIDER,
)
_ATTENTION = Block(
    "figures of grading, attention and their parts",
    "Of all test slides.",
    (Key("by_provider", f"{_ATTENTION_OF_PROVIDER.title} by name", "the same for each provider's slides"),),
    _ATTENTION_OF_PROVIDER,
)
_OF_PROVIDER = Block(
    "threshold of a provider",
    "Chosen on that provider's validation slides alone.",
    (
        Key("value", "share", "a pixel is cancer where its probability is at least this"),
        Key(
            "criterion",
            "text",
            "what was best there: dice_pooled, dice_mean_slide, f1, youden or cost; default or given where nothing was "
            "searched, all_providers where a provider takes the threshold of all",
        ),
        Key("score", "number", "the criterion's value there", "", "nothing was searched"),
        Key("chosen_on", "text", "the slides it was chosen on, or why there was no search"),
        Key("date", "text", "ISO 8601, UTC"),
        Key("cost_ratio", "number", "false-positive pixels that one missed cancer pixel is worth", "", "not cost"),
        Key("interval", "[low, high]", "95 % bootstrap interval of the value", "", "`interval_note` says why"),
        Key("interval_note", "text", "why there is no interval; else empty"),
    ),
)  # fmt: skip
_CHOICE = Block(
    "threshold_choice",
    "Chosen on all validation slides; the checkpoint carries the same.",
    (Key("by_provider", f"{_OF_PROVIDER.title} by name", "empty but with `threshold_per_provider=true`"),),
    _OF_PROVIDER,
)
_ERRORS = Block(
    "calibration of a split",
    "Over pixels of tissue.",
    (
        Key("ece", "share", "mean distance of probability and share of cancer, over bins", "", "no pixels"),
        Key("nll", "number", "mean negative log-likelihood of a pixel", "nat", "no pixels"),
        Key("ece_scaled", "share", "`ece` at the temperature", "", "no pixels or no temperature"),
        Key("nll_scaled", "number", "`nll` at the temperature", "nat", "no pixels or no temperature"),
    ),
)  # fmt: skip
_CALIBRATION = Block(
    "calibration",
    "Of probabilities in 1,000 bins. Maps, thresholds and scores use the probabilities as the network gives them: the "
    "temperature changes their order nowhere, so the threshold would move with it and every mask stay as it is.",
    (
        Key("value", "number", "T: sigmoid(logit(p) / T) is most likely on validation", "", "`note` says why"),
        Key("note", "text", "why there is no temperature; else empty"),
        Key("chosen_on", "text", "the slides it was fitted on"),
        Key("date", "text", "ISO 8601, UTC"),
        Key("bins", "count", "bins of equal width that `ece` is taken over"),
        Key("val", _ERRORS.title, "on validation, where T was fitted"),
        Key("test", _ERRORS.title, "on the test slides", "", "the test slides were not scored"),
    ),
)  # fmt: skip
_BOOTSTRAP = Block(
    "bootstrap",
    "How the intervals are made: percentiles of the figure over whole groups of slides drawn anew with replacement; "
    "draws where the figure is undefined are left out.",
    (
        Key("resamples", "count", "how many times is drawn"),
        Key("seed", "count", "of the drawing"),
        Key("level", "share", "share of the draws that an interval spans"),
        Key("unit", "text", "what is drawn"),
    ),
)
_DATA_OF_GRADING = Block(
    "data (grading)",
    "What the slides were.",
    (
        Key("root", "text", "folder of the data"),
        Key("slides", "counts by name", "slides of each split"),
        Key("left_out", "counts by name", "reason to slides"),
        Key(
            "colours",
            "text",
            "what was done to the colours of all slides, and of training patches",
            absent="the run was made before it was kept",
        ),
        Key("groups", "text", "what keeps the splits apart"),
    ),
)
_DATA = Block(
    "data (segmentation)",
    "What the slides were.",
    (
        Key("store", "text", "folder of the patches"),
        Key("settings", "object", "how patches were cut: keys of `data`"),
        Key("split", "text", "holdout, or patches of one slide"),
        Key("seed", "whole number", "of the split"),
        Key("patches", "counts by name", "patches of each split"),
        Key("tumor_patches", "counts by name", "those with cancer"),
        Key("failed", "list of objects", "slides that failed: slide_id, stage, error, message"),
    ),
    _DATA_OF_GRADING,
)
_NOT_TESTED = "the test slides were not scored"
_RUN = Block(
    "summary",
    "The file of any run.",
    (
        Key("schema", "whole number", f"of this description: {SCHEMA}"),
        Key("task", "text", "segmentation or grading"),
        Key("name", "text", "of the run's folder"),
        Key("created", "text", "ISO 8601, UTC, of the run's end"),
        Key("seed", "count", "of weights, loaders, augmentation"),
        Key("device", "text", "that it was trained on"),
        Key("devices", "count", "devices that shared the training", absent="the run was made before it was kept"),
        Key("epochs", "count", "that were trained"),
        Key("seconds", "number", "over all sessions that the weights come from", "s"),
        Key("trained_by", "text", "job of the sweep whose weights were evaluated anew", "", "the run trained itself"),
        Key("bootstrap", _BOOTSTRAP.title, "how intervals are made"),
        Key("notes", "list of texts", "what a reader of the figures has to know"),
    ),
)
SEGMENTATION = Block(
    "summary of segmentation",
    "The file of a run of `task=segmentation`.",
    (
        Key("threshold", "share", "the threshold, that of all providers"),
        Key("threshold_choice", _CHOICE.title, "where it comes from"),
        Key("calibration", _CALIBRATION.title, "how far probabilities can be believed", "", "`data=one_slide`"),
        Key("data", _DATA.title, "what the slides were"),
        Key("val", f"{_PARTS.title} or {_PATCHES.title}", "on validation: epoch and threshold were chosen there"),
        Key("test", _PARTS.title, "on the test slides", absent=_NOT_TESTED),
    ),
    _RUN,
)
GRADING = Block(
    "summary of grading",
    "The file of a run of `task=grading`.",
    (
        Key("threshold", "share", "of the guiding segmentation", "", "none guides the tiles, or one a fold does"),
        Key("target", "text", "isup or cancer"),
        Key("tiles", "object", "how tiles were chosen: keys of `tiles`"),
        Key("data", _DATA_OF_GRADING.title, "what the slides were"),
        Key("val", _GRADES.title, "on validation: the epoch was chosen there"),
        Key("test", _ATTENTION.title, "on the test slides", absent=_NOT_TESTED),
    ),
    _RUN,
)
BLOCKS = (
    _RUN, SEGMENTATION, GRADING, _BOOTSTRAP, _DATA_OF_GRADING, _DATA, _CHOICE, _OF_PROVIDER, _CALIBRATION, _ERRORS,
    _PARTS, _PIXELS, _PATCHES, _GRADES, _ATTENTION, _ATTENTION_OF_PROVIDER, _GRADES_OF_PROVIDER,
)  # fmt: skip
"""Every object, each before those that it holds."""
