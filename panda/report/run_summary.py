"""The content of `summary.json`: what a training run says about itself, for programs and for the pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, NonNegativeFloat, NonNegativeInt, Tag, ValidationError

from panda.data.summary import DataSummary, PatchDataSummary
from panda.data.targets import Target
from panda.inference.grading_metrics import AttentionSplitFigures, GradingSplitFigures
from panda.inference.segmentation_figures import SegmentationSplitFigures
from panda.inference.target_figures import CategorySplitFigures, RegressionSplitFigures, SurvivalSplitFigures
from panda.report.run_folder import read_json
from panda.stored import Making, Plain, Share, ShareEnds, Timestamp, list_faults
from panda.tasks.calibration import Calibration
from panda.tasks.figures import Figures
from panda.tasks.gleason_search import GleasonRuleChoice
from panda.tasks.grade_calibration import GradeCalibration
from panda.tasks.metadata import TrainedResolution
from panda.tasks.threshold import ThresholdChoice

SCHEMA = 4
"""Grows when a key is added, goes, or changes its meaning."""

_NOT_TESTED = "Absent if the test slides were not scored."


class PatchFigures(Figures, frozen=True):
    """The score of `data=one_slide`, which has no validation slide."""

    dice: Share | None = Field(
        description="Pooled Dice of validation patches at their best threshold. Null if that was given."
    )
    of: str = Field(description="What was scored.")


class BootstrapSummary(Plain, frozen=True):
    """How intervals are made: percentiles of a figure over groups of slides, drawn with replacement.

    Draws in which the figure is undefined are left out.
    """

    resamples: NonNegativeInt = Field(description="Number of draws.")
    seed: NonNegativeInt = Field(description="Seed of the draws.")
    level: Share = Field(description="Share of the draws within an interval.")
    unit: str = Field(description="What is drawn.")


def _tag_figures(figures: object) -> str:
    """Return which figures of a validation are meant, so that only their faults are reported."""
    patches = "of" in figures if isinstance(figures, Mapping) else isinstance(figures, PatchFigures)
    return "<patches>" if patches else "<slides>"


class BaseSummary(Plain, frozen=True):
    """What all summaries have in common."""

    version: Literal[4] = Field(alias="schema", description="Version of this description.")
    task: str = Field(description="`segmentation`, `grading` or `evaluation`.")
    name: str = Field(description="Name of the folder.")
    created: Timestamp = Field(description="End of the run, ISO 8601, UTC.")
    bootstrap: BootstrapSummary = Field(description="How intervals are made.")
    notes: list[str] = Field(description="What a reader of the figures must know.")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        content = self.model_dump(mode="json", by_alias=True)
        return {key: value for key, value in content.items() if key != "test" or value is not None}


class CommonSummary(Making, BaseSummary, frozen=True):
    """What the summaries of training runs have in common."""

    seed: NonNegativeInt = Field(description="Seed of weights, loaders and augmentation.")
    device: str = Field(description="Device of the training.")
    devices: NonNegativeInt | None = Field(
        default=None, description="Number of devices that shared the training. Absent in older runs."
    )
    epochs: NonNegativeInt = Field(description="Number of epochs.")
    seconds: NonNegativeFloat = Field(description="Time of all sessions that the weights come from, s.")
    trained_by: str | None = Field(
        description="Job of the sweep whose weights were evaluated. Null if the run trained its own."
    )
    lost_slides: NonNegativeInt | None = Field(
        default=None, description="Number of slides that the run could not use. Absent in older runs."
    )


class SegmentationSummary(CommonSummary, frozen=True):
    """The summary of a run of `task=segmentation`."""

    task: Literal["segmentation"] = "segmentation"
    data: PatchDataSummary = Field(description="Slides and patches.")
    resolution: TrainedResolution | None = Field(
        default=None,
        description="Level or µm/px of the patches, and µm/px of the training slides. Absent in older runs.",
    )
    threshold: Share = Field(description="Common threshold of all providers.")
    threshold_choice: ThresholdChoice = Field(description="Where the threshold comes from.")
    gleason_rule: GleasonRuleChoice | None = Field(
        default=None,
        description="The rule from areas of patterns to a Gleason score. Absent with one class of cancer.",
        exclude_if=lambda rule: rule is None,
    )
    calibration: Calibration | None = Field(
        description="How far probabilities can be trusted. Null for `data=one_slide`."
    )

    @property
    def scoring(self) -> str:
        """Which figures the run has."""
        return self.task

    val: Annotated[
        Annotated[SegmentationSplitFigures, Tag("<slides>")] | Annotated[PatchFigures, Tag("<patches>")],
        Discriminator(_tag_figures),
    ] = Field(description="Validation slides. Epoch and threshold were chosen on them.")
    test: SegmentationSplitFigures | None = Field(default=None, description=f"Test slides. {_NOT_TESTED}")


_TARGET_FIGURES = {"auroc_macro": "<classes>", "mae": "<regression>", "concordance": "<survival>"}
_TargetFigures = (
    Annotated[CategorySplitFigures, Tag("<classes>")]
    | Annotated[RegressionSplitFigures, Tag("<regression>")]
    | Annotated[SurvivalSplitFigures, Tag("<survival>")]
)


def _tag_target(figures: object) -> str:
    """Return which figures of a grading are meant, so that only their faults are reported."""
    keys = figures if isinstance(figures, Mapping) else dict(figures) if isinstance(figures, Figures) else {}
    return next((tag for key, tag in _TARGET_FIGURES.items() if key in keys), "<grades>")


class GradingSummary(CommonSummary, frozen=True):
    """The summary of a run of `task=grading`."""

    task: Literal["grading"] = "grading"
    threshold: Share | None = Field(
        description="Threshold of the guiding segmentation. Null without one, or with one for each fold."
    )
    target: Target = Field(description="What was learned.")
    tiles: dict[str, JsonValue] = Field(description="How tiles were chosen: keys of `tiles`.")
    data: DataSummary = Field(description="Slides.")
    calibration: GradeCalibration | None = Field(
        default=None, description="How far probabilities can be trusted. Absent in older runs."
    )
    val: Annotated[Annotated[GradingSplitFigures, Tag("<grades>")] | _TargetFigures, Discriminator(_tag_target)] = (
        Field(description="Validation slides. The epoch was chosen on them.")
    )
    test: (
        Annotated[Annotated[AttentionSplitFigures, Tag("<grades>")] | _TargetFigures, Discriminator(_tag_target)] | None
    ) = Field(default=None, description=f"Test slides. {_NOT_TESTED}")

    @property
    def scoring(self) -> str:
        """Which figures the run has."""
        return self.target.scoring


class AreaAgreement(Plain, frozen=True):
    """Agreement of the tumour areas with the labelled ones (Bland and Altman 1986), after the clean-up."""

    slides: NonNegativeInt = Field(description="Slides with both areas.")
    mean_difference_mm2: float = Field(description="Mean of found less labelled, mm².")
    lower_limit_mm2: float = Field(description="That mean less 1.96 standard deviations, mm².")
    upper_limit_mm2: float = Field(description="That mean plus 1.96 standard deviations, mm².")


class TrainingComparison(Plain, frozen=True):
    """A figure of the evaluated slides beside that of the test slides of the checkpoint's own training."""

    figure: str = Field(description="Key of the figure.")
    here: float = Field(description="Its value on the evaluated slides.")
    test: float = Field(description="Its value on the test slides of the training.")
    test_interval: ShareEnds | None = Field(description="95 % interval of that value. Null without one.")
    is_within: bool | None = Field(description="Whether the value here is in that interval. Null without one.")


class EvaluationSummary(BaseSummary, frozen=True):
    """The summary of `infer.py labels=…`: figures of the slides with labels, as those of a training's test."""

    task: Literal["evaluation"] = "evaluation"
    checkpoint: str = Field(description="Path of the segmentation checkpoint.")
    grading_checkpoint: str | None = Field(description="Path of the grading checkpoint. Null without one.")
    labels: str | None = Field(description="Folder or table of the labels.")
    threshold: Share = Field(description="Threshold of all slides.")
    threshold_choice: ThresholdChoice = Field(description="Where the threshold comes from.")
    seen_in_training: NonNegativeInt = Field(
        description="Slides on which the network was trained, or epoch or threshold chosen. They are in all figures."
    )
    test: SegmentationSplitFigures = Field(description="The slides with labels.")
    grades: AttentionSplitFigures | None = Field(
        description="Grades of the slides with labels and a given grade. Null without a grading checkpoint of grades."
    )
    agreement: AreaAgreement | None = Field(description="Agreement of areas. Null with fewer than three slides.")
    against_training: list[TrainingComparison] = Field(
        description="Comparison with the test slides of the training. Empty for the reason in `notes`."
    )

    @property
    def scoring(self) -> str:
        """Which figures the evaluation has."""
        return "segmentation"


RunSummary = SegmentationSummary | GradingSummary
_MODELS: Mapping[str, type[RunSummary | EvaluationSummary]] = {
    "segmentation": SegmentationSummary,
    "grading": GradingSummary,
    "evaluation": EvaluationSummary,
}


def parse_summary(content: Mapping[str, JsonValue]) -> tuple[RunSummary | EvaluationSummary | None, list[str]]:
    """Parse the content of `summary.json`: the summary, or None and a sentence for each fault, with its key."""
    if content.get("schema") != SCHEMA:
        return None, [f"schema is {content.get('schema')!r}, this version reads {SCHEMA}"]
    model = _MODELS.get(str(content.get("task")))
    if model is None:
        return None, [f"task is {content.get('task')!r}, it must be segmentation, grading or evaluation"]
    try:
        return model.model_validate(content), []
    except ValidationError as error:
        return None, list_faults(error)


def read_summary(run_dir: Path) -> tuple[RunSummary | None, str]:
    """Read the summary of a training from its folder: the summary, or None and why there is none, as a sentence."""
    summary, fault = read_json_summary(run_dir)
    if isinstance(summary, EvaluationSummary):
        return None, f"{run_dir} is an evaluation of slides by infer.py, not a training run"
    return summary, fault


def read_json_summary(run_dir: Path) -> tuple[RunSummary | EvaluationSummary | None, str]:
    """Read the summary of a training or an evaluation, see `read_summary`."""
    content, fault = read_json(run_dir / "summary.json")
    if fault:
        return None, fault
    summary, faults = parse_summary(content)
    if not faults:
        return summary, ""
    path = run_dir / "summary.json"
    every = f" (python -m panda.report.summary_schema {path} lists all {len(faults)} faults)" if len(faults) > 1 else ""
    return None, (
        f"{path} cannot be used: {faults[0]}{every}. It was edited, or written by another version: "
        "train again, or open the run with the version that made it."
    )
