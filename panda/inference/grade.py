"""The grade of a slide: class probabilities, the attention of its tiles, and the record of both as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from panda.data.targets import Target, TargetSpec
from panda.stored import Plain, Share, ShareEnds
from panda.tasks.grade_calibration import scale_probabilities
from panda.wsi.gleason import isup_grade_from_score

Isup = Annotated[int, Field(ge=0, le=5)]

UNCERTAIN = "not certain enough to grade"
"""Mark of a grade whose confidence is too low."""
_ROUNDING = 1e-3  # of the sum of probabilities in bf16


class AttentionScores(Plain, frozen=True):
    """How much of the attention is on labelled cancer; all None for a slide whose tiles hold none.

    Attributes:
        attention_auroc: AUROC of the attention for tiles that hold cancer; None if all do.
        cancer_attended: Share of the px of the tiles that is labelled cancer, weighted by attention.
        cancer_of_tiles: The same share with equal weights.
    """

    attention_auroc: Share | None = None
    cancer_attended: Share | None = None
    cancer_of_tiles: Share | None = None


ATTENTION_SCORES = tuple(AttentionScores.model_fields)
"""Names of the scores, which are the columns of tables and the keys of summaries."""


class AttendedTile(Plain, frozen=True):
    """One tile: its upper left corner in level-0 px, attention weight, and contribution to the predicted class.

    `MILNet.compute_contributions` explains the contribution.
    """

    x: int
    y: int
    attention: Share
    contribution: float


class GradeRecord(Plain, frozen=True):
    """The grade of one slide as plain data.

    Attributes:
        target: What was predicted.
        predicted: Class with the highest probability; a number; or for survival the log relative hazard.
        probabilities: Probability of each class, calibrated if the checkpoint has a temperature; they sum to 1. Empty
            for numbers and survival.
        abstain_below: Confidence below which the slide is not certain enough to grade; None if all are graded.
        mark: `UNCERTAIN` if the confidence is below that, otherwise empty.
        tile_side_px: Side of a tile in level-0 px.
        against_label: Scores of the attention, None if the slide has no label mask.
        left_out: Number of tiles that were left out at once for the contributions; 1 if these are exact.
        patient: The patient, if the grade is that of a bag of all slides of a patient.
        tiles: The tiles, whose attention weights sum to 1 over the bag.
    """

    target: Target
    predicted: NonNegativeInt | float
    probabilities: tuple[Share, ...] = ()
    abstain_below: Share | None = None
    mark: Literal["", "not certain enough to grade"] = ""
    tile_side_px: Annotated[float, Field(gt=0)] | None = None
    against_label: AttentionScores | None = None
    left_out: PositiveInt = 1
    patient: str | None = Field(default=None, exclude_if=lambda patient: patient is None)
    tiles: tuple[AttendedTile, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        count, total = len(self.probabilities), sum(self.probabilities)
        if not self.target.has_classes:
            if count:
                raise ValueError(f"{count} probabilities, but {self.target.name} has no classes")
            return self
        if not isinstance(self.predicted, int) or self.predicted >= count:
            raise ValueError(f"predicted={self.predicted} has no probability; there are {count}")
        if abs(total - 1) > _ROUNDING:
            raise ValueError(f"probabilities add up to {total:.4g}, not to 1")
        if self.probabilities[self.predicted] < max(self.probabilities):
            raise ValueError(f"predicted={self.predicted} is not the most probable class")
        if bool(self.mark) != self._is_uncertain():
            raise ValueError(f"mark is {self.mark!r}, which does not fit a confidence of {self.confidence:.4g}")
        return self

    @property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return self.probabilities[int(self.predicted)]

    def _is_uncertain(self) -> bool:
        return self.abstain_below is not None and self.confidence < self.abstain_below

    def calibrate(self, temperature: float | None, abstain_below: float | None) -> GradeRecord:
        """Return the grade with its probabilities at a temperature, and with its mark; the class stays."""
        prob = self.probabilities
        if temperature is not None:
            prob = tuple(scale_probabilities(np.array(prob), temperature).tolist())
        found = self.model_copy(update={"probabilities": prob, "abstain_below": abstain_below})
        return found.model_copy(update={"mark": UNCERTAIN if found._is_uncertain() else ""})

    @property
    def class_names(self) -> Sequence[str]:
        """The classes in words."""
        return self.target.classes

    def describe(self) -> str:
        """Write the predicted class or number."""
        return self.target.describe(self.predicted)

    def describe_with_name(self) -> str:
        """Write the prediction of a target: `graded ISUP 3`, or `ki67 12.5`."""
        return f"graded {self.describe()}" if self.target.is_grade else f"{self.target.title} {self.describe()}"

    @property
    def attention(self) -> NDArray[np.float32]:
        """Attention weights of the tiles, (K,)."""
        return np.array([tile.attention for tile in self.tiles], np.float32)

    def list_confidence(self) -> dict[str, float | str]:
        """Return the columns of the confidence: with its mark if the checkpoint has a least one."""
        if not self.target.has_classes:
            return {}
        return {"confidence": self.confidence, **({"mark": self.mark} if self.abstain_below is not None else {})}

    def drop_tiles(self) -> GradeRecord:
        """Return the grade without its tiles, because those of thousands of slides fill the memory."""
        return self.model_copy(update={"tiles": ()})


def list_grade_columns(target: TargetSpec, grade: GradeRecord | None) -> dict[str, str | float | None]:
    """Return the columns of a grade: `isup` and `cancer` by number, other classes by name; None without a grade."""
    found: str | float | None = None
    if grade is not None:
        by_name = target.has_classes and not target.is_grade
        found = grade.describe() if by_name else grade.predicted
    row: dict[str, str | float | None] = {target.predicted_column: found}
    if target.is_grade:
        return row | {f"p{k}": p for k, p in enumerate(grade.probabilities if grade else ())}
    shares = grade.probabilities if grade else [None] * len(target.classes)
    return row | {f"p_{name}": share for name, share in zip(target.classes, shares, strict=target.has_classes)}


class RuleGrade(Plain, frozen=True):
    """The grade that follows from the areas of the patterns, see `panda.wsi.gleason.grade_areas`.

    Attributes:
        score: Gleason score, 0+0 without cancer; None if there is none, for the reason in `note`.
        isup: ISUP grade of the score.
        isup_interval: Lowest and highest ISUP grade at the threshold and at the ends of `band`.
        band: Low and high threshold.
        note: Why there is no score, otherwise empty.
    """

    score: Annotated[str, Field(pattern=r"^(0\+0|[1-5]\+[1-5])$")] | None
    isup: Isup | None
    isup_interval: Annotated[tuple[Isup, Isup], Field(strict=False)] | None
    band: ShareEnds
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({value is None for value in (self.score, self.isup, self.isup_interval)} | {bool(self.note)}) > 1:
            raise ValueError("score, isup and isup_interval must be all given, or null with a note")
        if self.score is not None and self.isup != isup_grade_from_score(self.score):
            raise ValueError(f"isup is {self.isup}, which is not the grade of {self.score}")
        if self.isup_interval and self.isup and not self.isup_interval[0] <= self.isup <= self.isup_interval[1]:
            raise ValueError(f"isup is {self.isup}, outside of isup_interval")
        return self


@dataclass(frozen=True)
class Grade:
    """The grade of one slide, and (n, h, w, 3) uint8, the tiles with the most attention, the most first."""

    record: GradeRecord
    shown: NDArray[np.uint8]
