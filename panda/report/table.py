"""Write figures for readers, and lay out the tables of the pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from panda.inference.slide_result import CLASS_AREA
from panda.report.run_folder import Picture, parse_number

# Name of each figure on a page, and its format.
FIGURES: dict[str, tuple[str, str]] = {
    "dice_mean_slide": ("Dice, mean over slides", "score"),
    "dice": ("Dice, all pixels pooled", "score"),
    "iou": ("IoU", "score"),
    "precision": ("Precision", "score"),
    "recall": ("Recall", "score"),
    "pr_auc": ("Average precision, pixels in 1,000 bins", "score"),
    "pixel_auroc": ("AUROC, pixels in 1,000 bins", "score"),
    "iou_mean_slide": ("IoU, mean over slides", "score"),
    "precision_mean_slide": ("Precision, mean over slides", "score"),
    "recall_mean_slide": ("Recall, mean over slides", "score"),
    "fp_mm2_benign_slides": ("False alarms on benign slides", "mm2"),
    "cancer_percent_of_tissue": ("Labelled cancer, share of tissue", "percent"),
    "called_percent_of_tissue": ("Called cancer, share of tissue", "percent"),
    "slide_sensitivity": ("Sensitivity, slides with cancer", "score"),
    "slide_specificity": ("Specificity, benign slides", "score"),
    "slide_auroc": ("AUROC, slides", "score"),
    "all_tissue_dice": ("Dice, all pixels pooled, if all tissue were called tumour", "score"),
    "all_tissue_iou": ("IoU, if all tissue were called tumour", "score"),
    "all_tissue_precision": ("Precision, if all tissue were called tumour", "score"),
    "all_tissue_dice_mean_slide": ("Dice, mean over slides, if all tissue were called tumour", "score"),
    "all_tissue_iou_mean_slide": ("IoU, mean over slides, if all tissue were called tumour", "score"),
    "all_tissue_precision_mean_slide": ("Precision, mean over slides, if all tissue were called tumour", "score"),
    "all_tissue_fp_mm2_benign_slides": ("Tissue of benign slides", "mm2"),
    "median_mae": ("Mean absolute error of the median", "score"),
    "cancer_outside_tissue_percent": ("Labelled cancer outside the tissue", "percent"),
    "cancer_outside_tissue_mm2": ("Labelled cancer outside the tissue", "mm2"),
    "cancer_outside_tissue_px": ("Labelled cancer outside the tissue, px of the map", "count"),
    "qwk": ("Quadratic weighted κ", "score"),
    "accuracy": ("Accuracy", "score"),
    "auroc": ("AUROC, cancer against benign", "score"),
    "auroc_significant": ("AUROC, ISUP 2 and above", "score"),
    "ece": ("Calibration error", "score"),
    "nll": ("Negative log-likelihood", "score"),
    "aurc": ("Area under the risk-coverage curve", "score"),
    "coverage": ("Slides certain enough to grade", "score"),
    "selective_risk": ("Wrong classes among these", "score"),
    "confidence": ("Confidence", "headline"),
    "mark": ("Mark", "text"),
    "patient": ("Patient", "text"),
    "tiles": ("Tiles", "count"),
    "attention": ("Attention", "headline"),
    "attention_auroc": ("AUROC of attention, tiles with cancer", "score"),
    "cancer_attended": ("Labelled cancer in tiles, by attention", "score"),
    "cancer_of_tiles": ("Labelled cancer in tiles, each alike", "score"),
    "auroc_macro": ("AUROC, a class against the others", "score"),
    "balanced_accuracy": ("Balanced accuracy", "score"),
    "kappa": ("Cohen's κ", "score"),
    "r2": ("R²", "score"),
    "mae": ("Mean absolute error", "score"),
    "pearson": ("Pearson's r", "score"),
    "spearman": ("Spearman's ρ", "score"),
    "concordance": ("Concordance index", "score"),
    "events": ("Slides with an event", "count"),
    "loss": ("Loss", "score"),
    "slides": ("Slides", "count"),
    "slides_with_cancer": ("Slides with labelled cancer", "count"),
    "benign_slides": ("Benign slides", "count"),
    "contradicting_slides": ("Slides with a grade and no labelled cancer, not scored", "count"),
    "groups": ("Groups of slides", "count"),
    "threshold": ("Threshold", "score"),
    "tumor_percent_of_tissue": ("Tumour, share of tissue", "percent"),
    "tumor_mm2": ("Tumour", "mm2"),
    "true_tumor_mm2": ("Labelled tumour", "mm2"),
    "tumor_difference_mm2": ("Tumour less label", "mm2"),
    "tissue_mm2": ("Tissue", "mm2"),
    "fp_mm2": ("False alarms", "mm2"),
    "tissue_how": ("Tissue found as", "text"),
    "unscored_tissue_px": ("Tissue not scored, px of the map", "count"),
    "num_regions": ("Regions", "count"),
    "isup_grade": ("ISUP grade", "count"),
    "predicted": ("Predicted", "count"),
    "label": ("Given", "count"),
    "given_class": ("Given", "text"),
    "predicted_class": ("Predicted", "text"),
    "time": ("Time", "count"),
    "event": ("Event", "count"),
    "isup_predicted": ("Predicted ISUP", "count"),
    "cancer_predicted": ("Predicted cancer", "count"),
    "in_sample": ("Seen in", "text"),
    "rule_score": ("Gleason by areas", "text"),
    "rule_isup": ("ISUP by areas", "count"),
    "rule_band": ("ISUP in the threshold band", "text"),
    "rule_qwk": ("κ of the grade by areas", "score"),
    "rule_accuracy": ("Accuracy of the grade by areas", "score"),
    "within_band": ("Given grade in the threshold band", "score"),
    "without_score": ("Slides without Gleason score", "count"),
    "labelled_mm2": ("Labelled", "mm2"),
    "predicted_mm2": ("Predicted", "mm2"),
    **{f"p{k}": (f"P({k})", "headline") for k in range(6)},
    "provider": ("Provider", "text"),
    "slide_id": ("Slide", "id"),
}
CLASS_DICE = "dice_"
"""Begins the key of the Dice of a class."""
UNITS = {"mm2": " mm²", "percent": " %"}
_UNSET = {"", "none", "null", "nan"}


def name_figure(key: str) -> str:
    """Name a figure: a known one by its name, those of a class by the class, another by its key with blanks."""
    if key in FIGURES:
        return FIGURES[key][0]
    if key.startswith(CLASS_DICE):
        return f"Dice of {key.removeprefix(CLASS_DICE)}"
    if key.startswith(CLASS_AREA) and key.endswith("_mm2"):
        return key.removeprefix(CLASS_AREA).removesuffix("_mm2")
    return key.replace("_", " ").replace("mm2", "mm²")


def find_format(key: str) -> str:
    """Return the format of a figure, see `format_value`."""
    by_end = {
        "mm2": "mm2",
        "percent": "percent",
        "percent_of_tumor": "percent",
        "percent_of_tissue": "percent",
        "_px": "count",
        "_predicted": "value",
        "_risk": "value",
    }
    return FIGURES[key][1] if key in FIGURES else next((by_end[end] for end in by_end if key.endswith(end)), "score")


def format_value(value: Any, kind: str = "score") -> str:
    """Write a number, its text or another value with a sensible precision; empty if there is no value.

    Kinds are `score` (3 decimals), `headline` (2 decimals), `mm2`, `percent` (0 to 100), `count`, `seconds`, `text` or
    `id` (as they are), and `value` (4 digits of a number, or a text). Only `seconds` get their unit.
    """
    figure = parse_number(value)
    if kind in {"text", "id"} or (kind == "value" and figure is None):
        return "" if value is None or str(value).lower() in _UNSET else str(value)
    return "" if figure is None else _FORMATS[kind](figure)


def _format_area(figure: float) -> str:
    if 0 < abs(figure) < 0.0005:
        return "<0.001"
    return f"{figure:.3f}" if abs(figure) < 0.1 else f"{figure:.2f}" if abs(figure) < 100 else f"{figure:,.0f}"


def _format_duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


_FORMATS: dict[str, Callable[[float], str]] = {
    "score": lambda figure: f"{figure:.3f}" if abs(figure) < 100 else f"{figure:,.1f}",
    "value": "{:.4g}".format,
    "headline": "{:.2f}".format,
    "count": lambda figure: f"{figure:,.0f}" if figure == int(figure) else f"{figure:,.2f}",
    "mm2": _format_area,
    "percent": lambda figure: "<0.1" if 0 < figure < 0.05 else f"{figure:.1f}",
    "seconds": _format_duration,
}


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: Text; an empty one is shown as a dash.
        sort: Sort key of the cell; None for the text.
        why: Tooltip: why there is no value, or more about it.
        picture: Picture instead of the text.
        style: Classes: `num`, `id`, `bad`, `pre`.
        under: Smaller text below, such as an interval.
        is_button: Whether the text is a button for a script of the page.
        swatch: Colour of a square before the text, as `#rrggbb`.
    """

    text: str = ""
    sort: float | str | None = None
    why: str = ""
    href: str = ""
    picture: Picture | None = None
    style: str = ""
    under: str = ""
    is_button: bool = False
    swatch: str = ""


@dataclass(frozen=True)
class Head:
    """The head of a column: its label, its unit, and whether the column holds figures."""

    label: str
    unit: str = ""
    figures: bool = False


@dataclass(frozen=True)
class Table:
    """A table of a page with a note below it. A click on a head sorts it if it is `sortable`."""

    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = True
    note: str = ""

    @property
    def dashes(self) -> list[str]:
        """Return why figures are missing: one line for each reason, with its columns."""
        reasons: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for head, cell in zip(self.heads, row, strict=True):
                if cell.why and not cell.text and not cell.picture:
                    reasons.setdefault(cell.why, {})[head.label] = None
        return [f"{', '.join(filter(None, labels)) or 'Picture'}: {why}." for why, labels in reasons.items()]


def make_head(key: str, name: str = "") -> Head:
    """Make the head of a figure's column, with `name` instead of its usual name if given."""
    kind = find_format(key)
    return Head(name or name_figure(key), UNITS.get(kind, "").strip(), kind not in {"text", "id"})


def make_cell(value: Any, kind: str, why: str = "", href: str = "") -> Cell:
    """Make a cell of a value in the format of its kind, see `format_value`; `why` says why there is none."""
    text = format_value(value, kind)
    if kind in {"text", "id"}:
        return Cell(text, why="" if text else why, href=href, style="id" if kind == "id" else "")
    return Cell(text, sort=parse_number(value), why="" if text else why, href=href, style="num")
