"""The result of one slide: the content of its `quantification.json`, and its row of `quantification.csv`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from panda.data.mapped_slide import RESULT_FILE
from panda.data.slide_entry import FileIdentity
from panda.data.targets import Target, TargetSpec
from panda.files import fingerprint, write_json
from panda.inference.grade import GradeRecord, RuleGrade, list_grade_columns
from panda.inference.modes import TTA, Precision
from panda.inference.quantify import Measurements, QuantifySettings
from panda.stored import Digest, InSample, PathText, Percent, Plain, Share, read_model
from panda.wsi.label_maps import LabelMap
from panda.wsi.label_mask import LabelMask
from panda.wsi.levels import describe_frame
from panda.wsi.mpp import MppSource, SlideMpp
from panda.wsi.readers import ReaderName
from panda.wsi.slide import Slide
from panda.wsi.tissue import How

TableRow = dict[str, str | int | float | None]

_COLUMNS = (
    "slide_id",
    "tumor_percent_of_tissue",
    "tumor_mm2",
    "tissue_mm2",
    "tumor_px",
    "tissue_px",
    "unscored_tissue_px",
    "tissue_how",
    "num_regions",
    "threshold",
    "in_sample",
    "mpp_source",
)
"""First columns of `quantification.csv`, see `SlideResult.to_row` for the others."""


CLASS_AREA = "class_"
"""Begins the names of columns with the areas of classes; the name of the class follows."""

CLASS_FIGURES = {
    "px": "area_px",
    "mm2": "area_mm2",
    "percent_of_tumor": "percent_of_tumor",
    "percent_of_tissue": "percent_of_tissue",
}
"""Ends of these names, to the field of a `ClassArea`."""


class LabelMetrics(Plain, frozen=True):
    """Metrics of a prediction against the label mask.

    Attributes:
        dice: Dice before the clean-up, None if the slide has no cancer; the same for the next three.
        iou: Intersection over union.
        precision: Share of the predicted px that is labelled cancer.
        recall: Share of the labelled px that is predicted.
        true_tumor_mm2: Labelled area, None if µm/px is unknown.
        tumor_difference_mm2: Predicted area after the clean-up minus labelled area.
        fp_mm2: False-positive area before the clean-up.
        cancer_outside_tissue_px: Labelled px outside the tissue found, which are missed; None in older files.
        cancer_outside_tissue_percent: Their share of the labelled px, None without any.
    """

    dice: Share | None
    iou: Share | None
    precision: Share | None
    recall: Share | None
    true_tumor_mm2: NonNegativeFloat | None
    tumor_difference_mm2: float | None
    fp_mm2: NonNegativeFloat | None
    cancer_outside_tissue_px: NonNegativeInt | None = None
    cancer_outside_tissue_percent: Percent | None = None

    def add_difference(self, tumor_mm2: float | None) -> Self:
        """Return the metrics with the difference between the predicted area after the clean-up and the labelled one."""
        true = self.true_tumor_mm2
        difference = None if tumor_mm2 is None or true is None else tumor_mm2 - true
        return self.model_copy(update={"tumor_difference_mm2": difference})


LABEL_METRICS = tuple(LabelMetrics.model_fields)


class MapSettings(Plain, frozen=True):
    """The settings of maps.

    Attributes:
        checkpoint: Path of the segmentation checkpoint.
        grading_checkpoint: Path of the grading checkpoint, or None.
        threshold: Probability at which a pixel counts as tumour.
        quantify: Limits of the clean-up.
        precision: Precision of the network.
        compiled: Whether the network was compiled.
        tta: Test-time augmentation.
        reader: Reader that was asked for.
        mpp_override: µm/px of slides that state none, or None.
        allow_unknown_mpp: Whether slides of unknown µm/px were read at the level of the network.
    """

    checkpoint: PathText
    grading_checkpoint: PathText | None
    threshold: Share
    quantify: QuantifySettings
    precision: Precision
    compiled: bool
    tta: TTA
    reader: ReaderName
    mpp_override: SlideMpp | None
    allow_unknown_mpp: bool


class Provenance(MapSettings, frozen=True):
    """Everything that must be equal for the figures of two slides to be comparable.

    Attributes:
        fingerprint: Hash of all fields except the two paths: a moved checkpoint is the same checkpoint.
        segmentation: Hash of the network, its resolution, patch size and overlap.
        grader: Hash of the grading network, its resolution, tiles and target, or None.
        tissue_rules: Version of the tissue rules.
        normalize: Stain normalization of each network and the version of its rules, None without any.
    """

    fingerprint: Digest
    segmentation: dict[str, JsonValue]
    grader: dict[str, JsonValue] | None
    tissue_rules: NonNegativeInt
    normalize: dict[str, JsonValue] | None = None

    @classmethod
    def from_values(cls, **values: Any) -> Self:
        """Return the provenance with its fingerprint, from the values of the other fields."""
        unchecked = cls.model_construct(quantify=QuantifySettings(**values.pop("quantify")), fingerprint="", **values)
        return cls(**dict(unchecked) | {"fingerprint": unchecked._compute_fingerprint()})

    @model_validator(mode="after")
    def _check_fingerprint(self) -> Self:
        if (found := self._compute_fingerprint()) != self.fingerprint:
            message = "fingerprint is {own}…, but that of the other values is {found}…"
            raise PydanticCustomError("fingerprint", message, {"own": self.fingerprint[:12], "found": found[:12]})
        return self

    def _compute_fingerprint(self) -> str:
        return fingerprint(self.model_dump(mode="json", exclude={"fingerprint", "checkpoint", "grading_checkpoint"}))


class SlidePaths(Plain, frozen=True):
    """The files of a slide when it was mapped or graded; they may have moved since.

    Attributes:
        slide: Absolute path of the slide.
        label: Absolute path of its mask or annotation, None without one.
        provider: Provider of the label, which has the meaning of its codes; None without one.
    """

    slide: PathText
    label: PathText | None = None
    provider: str | None = None

    @classmethod
    def find(cls, slide: Slide, label: LabelMask | None = None) -> Self | None:
        """Return the paths of an open slide and its label; None if a path is one that no result can hold."""
        found = {"slide": str(slide.path.absolute())}
        if label is not None:
            found |= {"label": str(label.path.absolute()), "provider": label.provider}
        try:
            return cls(**found)
        except ValidationError:
            return None


class SlideFacts(Plain, frozen=True):
    """Facts about any slide that was mapped or graded.

    Attributes:
        slide_id: Name of the slide.
        paths: Its files, None in older results.
        mpp: µm/px at level 0 as (x, y), None if unknown.
        view_downsample: Level-0 px per px of `slide.jpg` and `map.png`.
        tissue_how: How its tissue was found.
        bounds: x, y, width and height of the slide in level-0 px of its file, None if it is the whole file.
        frame: What the level-0 px in all files of the slide are.
        notes: What a reader of the figures must know of the scan.
        grade: Its grade, None if it has none.
        label_maps: Meaning of the label codes by provider when the result was made; empty in older results.
    """

    slide_id: Annotated[str, Field(min_length=1)]
    paths: SlidePaths | None = None
    mpp: tuple[SlideMpp, SlideMpp] | None = None
    view_downsample: Annotated[float, Field(gt=0)] | None = None
    tissue_how: How | None = None
    bounds: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None
    frame: str = describe_frame(None)
    notes: tuple[str, ...] = ()
    grade: GradeRecord | None = None
    label_maps: Mapping[str, LabelMap] = Field(default={})

    def write(self, folder: Path) -> None:
        """Write `quantification.json` into the folder of the slide."""
        write_json(folder / RESULT_FILE, {"slide_id": self.slide_id, **self.model_dump(mode="json", by_alias=True)})


class SlideResult(SlideFacts, Measurements, frozen=True, validate_by_name=True, validate_by_alias=True):
    """The result of a slide that was mapped.

    Attributes:
        file: Name, size in bytes and time of change of the slide's file.
        mpp_source: Where µm/px is from, None if unknown.
        mpp_note: The same in words, or why µm/px is unknown.
        reader: Reader that opened the slide.
        downsample: Level-0 px per px of the probability map.
        in_sample: Role of the slide when the networks were trained, None if it is new to them.
        grade_note: Why a slide has no grade although a grader was given.
        rule_grade: The grade by the areas of its patterns, None with one class of cancer.
        against_label: Metrics against the label mask, None if the slide has none.
        provenance: What made the result; `made_with` in the file.
        canvas: Fingerprint of the probability map, which another job can replace; None in older results.
    """

    file: FileIdentity
    mpp_source: MppSource | None
    mpp_note: str
    reader: Literal["openslide", "fast"]
    downsample: Annotated[float, Field(gt=0)]
    in_sample: InSample | None
    grade_note: str | None
    rule_grade: RuleGrade | None = Field(default=None, exclude_if=lambda grade: grade is None)
    against_label: LabelMetrics | None
    provenance: Provenance = Field(validation_alias="made_with", serialization_alias="made_with")
    canvas: Digest | None = None

    @model_validator(mode="after")
    def _check_agreement(self) -> Self:
        if self.threshold != self.provenance.threshold:
            raise PydanticCustomError("threshold", "threshold is not made_with.threshold")
        if (self.mpp is None) != (self.tissue_mm2 is None):
            raise PydanticCustomError("mpp", "mpp and tissue_mm2 must both be known or null")
        return self

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the result of a slide from its folder, which must have one of a slide with a map."""
        return read_model(folder / RESULT_FILE, TypeAdapter(cls), _REMEDY)

    def to_row(self) -> TableRow:
        """Return the row of `quantification.csv`.

        First come `_COLUMNS`, then the areas of each class of cancer if there are several, and the label metrics if
        there is a mask. Last come µm/px, and class, probabilities and confidence of a grade.
        """
        row: TableRow = {key: getattr(self, key) for key in _COLUMNS}
        row |= self.list_class_areas()
        if self.against_label is not None:
            row |= dict(self.against_label)
        row |= self.list_rule_columns()
        row["mpp_x"], row["mpp_y"] = self.mpp or (None, None)
        if (grader := self.provenance.grader) is not None:
            row |= list_grade_columns(_TARGET.validate_python(grader["target"]), self.grade)
            row |= self.grade.list_confidence() if self.grade else {}
        return row

    def list_class_areas(self) -> TableRow:
        """Return the columns of the areas of each class of cancer; none with one class."""
        return {
            f"{CLASS_AREA}{area.name}_{end}": getattr(area, key)
            for area in self.classes
            for end, key in CLASS_FIGURES.items()
        }

    def list_rule_columns(self) -> TableRow:
        """Return the columns of the grade by the rule; none with one class of cancer."""
        if (found := self.rule_grade) is None:
            return {}
        low, high = found.isup_interval or (None, None)
        return {"rule_score": found.score, "rule_isup": found.isup, "rule_isup_low": low, "rule_isup_high": high}


_TARGET: TypeAdapter[TargetSpec] = TypeAdapter(Target)
_REMEDY = "it was edited or written by another version: map the slide again"


def read_slide_facts(folder: Path) -> SlideFacts:
    """Read the facts about a slide from its folder: a `SlideResult` if it was mapped."""
    mapped = b'"tumor_px"' in (folder / RESULT_FILE).read_bytes()
    return read_model(folder / RESULT_FILE, TypeAdapter(SlideResult if mapped else SlideFacts), _REMEDY)
