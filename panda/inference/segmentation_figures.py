"""The segmentation figures of a split: models of `summary.json`."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from panda.inference.class_figures import ClassSplitFigures, RuleGradeSplitFigures
from panda.inference.slide_score import CALLED_PERCENT
from panda.stored import Percent, Share
from panda.tasks.figures import AmountInterval, Figures, Interval

_NO_CANCER = "Null if no cancer is labelled"
_BINS = (
    "Probabilities are in 1,000 bins, and the pixels of a bin have equal rank: it differs from the exact area, most if "
    "many are in the first or the last bin."
)
_MEAN = "Mean `{}` of the slides with labelled cancer. Null if no slide has one."
_CALLED = f"called cancer (more than {CALLED_PERCENT:g} % of their tissue, before the clean-up)"
_ALL = "if all tissue were called cancer"


class SegmentationFigures(Figures, frozen=True):
    """Scores over the tissue pixels of blended canvases, at the chosen threshold.

    Labelled cancer outside the tissue found counts as missed, with probability 0. A slide without labelled cancer has
    no Dice; its false-positive area is given instead. The trivial answer to which a figure is compared is to call all
    tissue cancer. Its recall is that of the tissue found.
    """

    slides: NonNegativeInt = Field(description="Slides that were scored.")
    slides_with_cancer: NonNegativeInt = Field(description="Slides with labelled cancer.")
    benign_slides: NonNegativeInt = Field(
        description="Slides without any labelled cancer and without a grade of 1 or more."
    )
    groups: NonNegativeInt = Field(description="Patients or near-duplicate groups, which the bootstrap draws.")
    dice: Share | None = Field(
        description=f"2 TP / (2 TP + FP + FN) over the pixels of all slides, equal to their F1. {_NO_CANCER}."
    )
    dice_interval: Interval
    iou: Share | None = Field(description=f"TP / (TP + FP + FN) over the same pixels. {_NO_CANCER}.")
    iou_interval: Interval
    precision: Share | None = Field(
        description=f"TP / (TP + FP) over the same pixels. {_NO_CANCER}, or nothing was predicted."
    )
    precision_interval: Interval
    recall: Share | None = Field(description=f"TP / (TP + FN) over the same pixels. {_NO_CANCER}.")
    recall_interval: Interval
    dice_mean_slide: Share | None = Field(description=_MEAN.format("dice"))
    dice_mean_slide_interval: Interval
    iou_mean_slide: Share | None = Field(description=_MEAN.format("iou"))
    iou_mean_slide_interval: Interval
    precision_mean_slide: Share | None = Field(
        description=f"{_MEAN.format('precision')} A slide on which nothing was predicted has none."
    )
    precision_mean_slide_interval: Interval
    recall_mean_slide: Share | None = Field(description=_MEAN.format("recall"))
    recall_mean_slide_interval: Interval
    fp_mm2_benign_slides: NonNegativeFloat | None = Field(
        description="Mean area called cancer on benign slides, before the clean-up, mm². Null if there is none, or "
        "µm/px of one is unknown."
    )
    fp_mm2_benign_slides_interval: AmountInterval
    slide_sensitivity: Share | None = Field(
        description=f"Share of the slides with labelled cancer that are {_CALLED}. Null if there is none."
    )
    slide_sensitivity_interval: Interval
    slide_specificity: Share | None = Field(
        description=f"Share of the benign slides that are not {_CALLED}. Null if there is none."
    )
    slide_specificity_interval: Interval
    slide_auroc: Share | None = Field(
        description="AUROC of the share of a slide's tissue that is called cancer, slides with labelled cancer against "
        "benign ones. Null if one kind is absent."
    )
    slide_auroc_interval: Interval
    pr_auc: Share | None = Field(
        description=f"Average precision: area under the precision-recall curve of pixels. {_BINS} {_NO_CANCER}."
    )
    pr_auc_interval: Interval
    pixel_auroc: Share | None = Field(
        description=f"Area under the ROC curve of pixels. {_BINS} {_NO_CANCER}, or there is no other tissue."
    )
    pixel_auroc_interval: Interval
    no_interval: dict[str, str] = Field(description="Figure to the reason why it has no interval.")
    cancer_percent_of_tissue: Percent | None = Field(
        description="Labelled cancer in tissue, % of tissue: `pr_auc` of a random map. Null if there is no tissue."
    )
    called_percent_of_tissue: Percent | None = Field(
        description="Called cancer, % of tissue, before the clean-up. Null if there is no tissue."
    )
    all_tissue_dice: Share | None = Field(description=f"`dice` {_ALL}. {_NO_CANCER}.")
    all_tissue_iou: Share | None = Field(description=f"`iou` {_ALL}. {_NO_CANCER}.")
    all_tissue_precision: Share | None = Field(description=f"`precision` {_ALL}. {_NO_CANCER}.")
    all_tissue_dice_mean_slide: Share | None = Field(description=f"`dice_mean_slide` {_ALL}. {_NO_CANCER}.")
    all_tissue_iou_mean_slide: Share | None = Field(description=f"`iou_mean_slide` {_ALL}. {_NO_CANCER}.")
    all_tissue_precision_mean_slide: Share | None = Field(description=f"`precision_mean_slide` {_ALL}. {_NO_CANCER}.")
    all_tissue_fp_mm2_benign_slides: NonNegativeFloat | None = Field(
        description=f"`fp_mm2_benign_slides` {_ALL}: mean tissue area of the benign slides, mm². Null if there is "
        "none, or µm/px of one is unknown."
    )
    cancer_outside_tissue_px: NonNegativeInt = Field(
        description="Labelled cancer outside the tissue found, px of the map. It counts as missed."
    )
    cancer_outside_tissue_mm2: NonNegativeFloat | None = Field(
        description="Area of that cancer, mm². Null if µm/px of such a slide is unknown."
    )
    cancer_outside_tissue_percent: Percent | None = Field(
        description="Its share, % of the labelled cancer. Null if there is none."
    )


class SegmentationSplitFigures(SegmentationFigures, frozen=True):
    """Scores of all slides of a split, and of parts of them."""

    contradicting_slides: NonNegativeInt = Field(
        default=0,
        description="Slides with a grade of 1 or more whose mask labels no cancer. They are neither scored nor benign.",
    )
    by_provider: dict[str, SegmentationFigures] = Field(description="Provider to the scores of its slides.")
    by_grade: dict[str, SegmentationFigures] = Field(
        description='ISUP grade, "0" to "5" or "none", to its slides\' scores.'
    )
    classes: ClassSplitFigures | None = Field(
        default=None,
        description="Scores of several classes of cancer. Absent with one class.",
        exclude_if=lambda figures: figures is None,
    )
    rule_grade: RuleGradeSplitFigures | None = Field(
        default=None,
        description="Agreement of the grades that follow from the areas of patterns with the given grades. Absent with "
        "one class of cancer. Validation has areas before the clean-up, test after it.",
        exclude_if=lambda figures: figures is None,
    )

    @property
    def numbers(self) -> dict[str, float | None]:
        """See the base class; the Dice of each class and the agreement of the grades by the rule are figures too."""
        own = {key: value for key, value in super().numbers.items() if key not in ("classes", "rule_grade")}
        return own | {key: part.numbers[name] for key, (part, name) in self._list_parts().items()}

    def find_interval(self, key: str) -> tuple[float, float] | None:
        """See the base class."""
        part, name = self._list_parts().get(key, (None, key))
        return part.find_interval(name) if part else super().find_interval(key)

    def _list_parts(self) -> dict[str, tuple[Figures, str]]:
        """Return the figures of the classes and of the rule by their keys, each with its key in a part."""
        by_class = self.classes.by_class if self.classes else {}
        parts: dict[str, tuple[Figures, str]] = {f"dice_{name}": (part, "dice") for name, part in by_class.items()}
        if self.rule_grade:
            parts |= {f"rule_{name}": (self.rule_grade, name) for name in ("qwk", "accuracy")}
        return parts
