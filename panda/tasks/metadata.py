"""What a checkpoint says about its network: models of the plain data beside the weights.

A new field with a default keeps older checkpoints readable. A change that gives other results from the same weights
needs a new `FORMAT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median, pstdev
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticCustomError

from panda.data.feature_origin import FeatureOrigin
from panda.data.patients import BagUnit
from panda.data.targets import Target
from panda.errors import SlideError
from panda.stored import Digest, InSample, PatchSide, Plain, Share
from panda.tasks.calibration import Temperature
from panda.tasks.gleason_search import GleasonRuleChoice
from panda.tasks.grade_calibration import AbstentionChoice
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.classes import BINARY, ClassSet
from panda.wsi.geometry import Resolution
from panda.wsi.label_maps import LabelMap
from panda.wsi.mpp import MPP_MAX, MPP_MIN, describe_level, is_mixed
from panda.wsi.slide import ResolutionRequest, Slide
from panda.wsi.stain_normalization import NormalizeName

Task = Literal["segmentation", "grading"]

SlideIds = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
"""Read from a list, because JSON and checkpoints have no tuples."""
Mpp = Annotated[float, Field(gt=0, le=1e6)]
MOST_LEVELS = 64

SAME_MPP = 0.05
"""Relative difference of µm/px up to which resolutions are the same. Neighbouring levels differ by a factor of 2."""


class TrainedResolution(Plain, frozen=True):
    """The resolution that was asked for in training, and the one that the slides had there.

    Attributes:
        level: Pyramid level; None if `mpp` was asked for.
        mpp: µm per working px, 0.05 to 20; None if `level` was asked for.
        train_mpp: Lowest, median and highest µm per working px of the training slides; None if none states it.
    """

    level: Annotated[int, Field(ge=0, le=MOST_LEVELS)] | None
    mpp: Annotated[float, Field(ge=MPP_MIN, le=MPP_MAX)] | None
    train_mpp: Annotated[tuple[Mpp, Mpp, Mpp], Field(strict=False)] | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.level is None) == (self.mpp is None):
            raise PydanticCustomError("resolution", "exactly one of level and mpp must be given")
        if self.train_mpp and list(self.train_mpp) != sorted(self.train_mpp):
            raise PydanticCustomError("resolution", "train_mpp must be the lowest, the median and the highest")
        return self

    @classmethod
    def from_slides(cls, request: ResolutionRequest, train_mpp: Sequence[float] = ()) -> Self:
        """Summarize the µm per working px of the training slides that state it."""
        seen = (min(train_mpp), median(train_mpp), max(train_mpp)) if train_mpp else None
        return cls(level=request.level, mpp=request.mpp, train_mpp=seen)

    @property
    def is_mixed(self) -> bool:
        """Whether the level that was asked for has clearly different scales on the training slides."""
        return self.level is not None and self.train_mpp is not None and is_mixed(self.train_mpp[0], self.train_mpp[2])

    def describe_level(self) -> str:
        """Return the range of µm/px of the level that was asked for; empty without a level or without any µm/px."""
        if self.level is None or self.train_mpp is None:
            return ""
        return describe_level(self.level, self.train_mpp[0], self.train_mpp[2], "the training slides")

    @property
    def request(self) -> ResolutionRequest:
        """The resolution that was asked for."""
        return ResolutionRequest(self.level, self.mpp)

    def resolve(self, slide: Slide) -> Resolution:
        """Return the working resolution of the network on a slide.

        A network that was trained at a pyramid level saw a range of µm/px there. A slide is read at that level if
        its µm/px is in the range, as in training. Any other slide is resampled to the median.

        Raises:
            SlideError: If the level is absent, or µm/px of the slide is unknown and `allow_unknown_mpp` is not set.
        """
        if self.level is None or self.train_mpp is None:
            return self.request.resolve(slide)
        if slide.mpp is None:
            if not slide.allow_unknown_mpp:
                raise SlideError(
                    f"{slide.path}: µm/px is unknown, and the network was trained at {self.train_mpp[1]:.3g} µm/px. "
                    f"Level {self.level} of this slide may have another scale, with other areas and grades. "
                    f"{slide.mpp_note}; or give data.allow_unknown_mpp=true (infer.py: allow_unknown_mpp=true) to read "
                    "the level with a note"
                )
            return self.request.resolve(slide)
        low, median_mpp, high = self.train_mpp
        if self.level < len(slide.level_downsamples):
            at_level = slide.choose_resolution(level=self.level)
            if at_level.mean_mpp and low * (1 - SAME_MPP) <= at_level.mean_mpp <= high * (1 + SAME_MPP):
                return at_level
        return slide.choose_resolution(mpp=median_mpp)

    def list_notes(self, slide: Slide) -> tuple[str, ...]:
        """Return what a reader of the figures of a slide must know of the resolution of the network on it."""
        if slide.mpp is not None or self.level is None or self.train_mpp is None:
            return ()
        return (
            f"µm/px of the slide is unknown (allow_unknown_mpp). Its level {self.level} was read as it is by a network "
            f"that was trained at {self.train_mpp[1]:.3g} µm/px. If it has another scale, the map, the areas and the "
            "grade are wrong: give mpp_override.",
        )


class TileSelection(Plain, frozen=True):
    """How the tiles of a slide's bag are selected.

    Attributes:
        how: `guided` by a segmentation, any `tissue`, or those of a file of `features`.
        k: Largest number of tiles in a bag.
        random_fraction: Share of the bag that is random tissue.
        min_tissue: Least share of tissue in a tile.
        seed: Seed of the random share.
    """

    how: Literal["guided", "tissue", "features"]
    k: PositiveInt
    random_fraction: Share
    min_tissue: Share
    seed: NonNegativeInt


class CheckpointMetadata(Plain, frozen=True):
    """What both tasks store beside the weights.

    Attributes:
        network: Arguments that rebuild the network, input normalization included.
        train_slides: Ids of the slides that the network learned from.
        val_slides: Ids of the slides that chose epoch and threshold. Both are in-sample.
        normalize: How the colours of slides were brought to those of a reference, or None.
    """

    TASK: ClassVar[Task]
    FORMAT: ClassVar[int]

    network: dict[str, JsonValue]
    train_slides: SlideIds
    val_slides: SlideIds
    normalize: NormalizeName | None = None

    @field_validator("network")
    @classmethod
    def _check_network(cls, network: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Refuse a network that would take weights from elsewhere, for example from the net."""
        if (weights := network.get("encoder_weights")) is not None:
            message = "encoder_weights is {weights}, but must be null, because the checkpoint holds all weights"
            raise PydanticCustomError("network", message, {"weights": repr(weights)})
        return network

    def find_role(self, slide_id: str) -> InSample | None:
        """Return the role of a slide in the training, None if it is new to the network."""
        if slide_id in self.train_slides:
            return "training"
        return "validation" if slide_id in self.val_slides else None

    def to_entry(self) -> dict[str, Any]:
        """Return the plain data that a checkpoint stores under `panda`."""
        return {"format": self.FORMAT, "task": self.TASK, **self.model_dump(mode="json")}


class SegmentationMetadata(CheckpointMetadata, frozen=True):
    """What a segmentation checkpoint stores beside the weights.

    Attributes:
        resolution: Working resolution.
        patch_size: Side of a patch in working px.
        overlap: Overlap of neighbouring tiles, as a share of the patch size.
        label_maps: Provider to the meaning of its mask codes, for the providers of the training slides.
        classes: The classes of its pixels; older checkpoints have cancer or not.
        threshold: The chosen threshold and its provenance.
        precision: Precision of the maps on which the threshold was chosen.
        tta: Test-time augmentation of these maps.
        calibration: Temperature of the probabilities, or None. Maps are not changed by it.
        ignore_background: Whether px with an unlabelled code count in no loss and in no score.
        gleason_rule: The rule from areas to a Gleason score, None with one class of cancer.
    """

    TASK = "segmentation"
    FORMAT = 1

    resolution: TrainedResolution
    patch_size: PatchSide
    overlap: float = Field(ge=0, lt=1)
    label_maps: dict[str, LabelMap]
    threshold: ThresholdChoice
    precision: Literal["fp32", "bf16"]
    tta: Literal["none", "flip", "d4"] = "none"
    calibration: Temperature | None = None
    ignore_background: bool = False
    classes: ClassSet = BINARY
    gleason_rule: GleasonRuleChoice | None = None

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if (channels := self.network.get("channels", 1)) != self.classes.channels:
            message = "network.channels is {channels}, but classes has {names}, which need {needed}"
            named = {"channels": repr(channels), "names": ", ".join(self.classes.names)}
            raise PydanticCustomError("classes", message, {**named, "needed": self.classes.channels})
        if (self.gleason_rule is None) != self.classes.is_binary:
            message = "gleason_rule must be {needed} with the classes {names}"
            needed = "null" if self.classes.is_binary else "a rule"
            raise PydanticCustomError("classes", message, {"needed": needed, "names": ", ".join(self.classes.names)})
        return self


class TargetScale(Plain, frozen=True):
    """Mean and standard deviation of a number on the training slides. A network learns (number - mean) / sd."""

    mean: float
    sd: Annotated[float, Field(gt=0)]

    @classmethod
    def fit(cls, numbers: Sequence[float]) -> Self:
        """Return the scale of numbers that are not all equal."""
        return cls(mean=fmean(numbers), sd=pstdev(numbers))


class GradingMetadata(CheckpointMetadata, frozen=True):
    """What a grading checkpoint stores beside the weights.

    Attributes:
        resolution: Working resolution of the tiles; None for a grader of feature files.
        tile_size: Side of a tile in working px; None for a grader of feature files.
        tiles: How tiles are selected.
        features: What made the feature files that the grader learned from; None for a grader of slides.
        target: What is predicted.
        scale: Mean and standard deviation of a number on the training slides, to which outputs are scaled back; None
            for other kinds.
        segmentation: Fingerprints of the segmentations that guided the tiles.
        calibration: Temperature of the probabilities, or None.
        abstain_below: Confidence below which a slide is not certain enough to grade, or None.
        bag: Whose tiles form one bag.
    """

    TASK = "grading"
    FORMAT = 2  # 1 had tile features without normalization

    resolution: TrainedResolution | None
    tile_size: PatchSide | None
    tiles: TileSelection
    features: FeatureOrigin | None = None
    target: Target
    scale: TargetScale | None = Field(default=None, exclude_if=lambda scale: scale is None)
    segmentation: Annotated[tuple[Digest, ...], Field(strict=False)]
    calibration: Temperature | None = None
    abstain_below: AbstentionChoice | None = None
    bag: BagUnit = "slide"

    def list_confidence(self) -> dict[str, float]:
        """Return temperature and least confidence, each if there is one."""
        choices = {"temperature": self.calibration, "abstain_below": self.abstain_below}
        return {key: choice.value for key, choice in choices.items() if choice and choice.value is not None}

    @model_validator(mode="after")
    def _check_outputs(self) -> Self:
        if (outputs := self.network.get("num_classes", self.target.outputs)) != self.target.outputs:
            message = "network.num_classes is {outputs}, but the target {name} needs {needed}"
            named = {"outputs": repr(outputs), "name": self.target.name, "needed": self.target.outputs}
            raise PydanticCustomError("target", message, named)
        if (self.scale is None) != (self.target.kind != "regression"):
            message = "scale must be {needed} with kind {kind}"
            needed = "given" if self.target.kind == "regression" else "null"
            raise PydanticCustomError("target", message, {"needed": needed, "kind": self.target.kind})
        return self

    @model_validator(mode="after")
    def _check_features(self) -> Self:
        of_slides = self.tiles.how != "features"
        absent = [key for key in ("resolution", "tile_size") if (getattr(self, key) is None) == of_slides]
        if absent or (self.features is None) != of_slides:
            key, other = (absent or ["features"])[0], "slides" if of_slides else "feature files"
            message = "{key} is {value}, which does not fit a grader of {other} (tiles.how={how})"
            named = {"key": key, "value": repr(getattr(self, key)), "other": other, "how": self.tiles.how}
            raise PydanticCustomError("features", message, named)
        return self
