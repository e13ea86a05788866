"""The grade of a slide: class probabilities, the attention of its tiles, and the record of both as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, NonNegativeInt, model_validator

from panda.wsi.gleason import class_names


class AttentionScores(BaseModel, frozen=True):
    """How much of the attention is on labelled cancer; all None for a slide whose tiles hold none.

    Attributes:
        attention_auroc: AUROC of the attention for tiles that hold cancer; None if all do.
        cancer_attended: Share of the px of the tiles that is labelled cancer, weighted by attention.
        cancer_of_tiles: The same share with equal weights.
    """

    attention_auroc: float | None = None
    cancer_attended: float | None = None
    cancer_of_tiles: float | None = None


ATTENTION_SCORES = tuple(AttentionScores.model_fields)
"""Names of the scores, which are the columns of tables and the keys of summaries."""


class AttendedTile(BaseModel, frozen=True):
    """One tile: its upper left corner in level-0 px, attention weight, and contribution to the predicted class."""

    x: int
    y: int
    attention: float
    contribution: float


class GradeRecord(BaseModel, frozen=True):
    """A grade as plain data, with the fields of `Grade`; a side of a tile is in level-0 px."""

    target: Literal["isup", "cancer"]
    predicted: NonNegativeInt
    probabilities: tuple[float, ...]
    tile_side_px: float | None = None
    against_label: AttentionScores | None = None
    tiles: tuple[AttendedTile, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.predicted >= len(self.probabilities):
            raise ValueError(f"predicted={self.predicted} has no probability; there are {len(self.probabilities)}")
        return self

    @property
    def class_names(self) -> Sequence[str]:
        """The classes in words."""
        return class_names(self.target, len(self.probabilities))


@dataclass(frozen=True)
class Grade:
    """The grade of one slide.

    Attributes:
        target: `isup` or `cancer`.
        predicted: Class with the highest probability.
        probabilities: Probability of each class; they sum to 1.
        coords: Upper left corners of the tiles, (K, 2) int64, level-0 px.
        attention: (K,) attention weights of the tiles; they sum to 1.
        contributions: (K,) contribution of each tile to the predicted class, see `MILNet.compute_contributions`.
        shown: (n, h, w, 3) uint8, the tiles with the most attention, the most first.
        tile_side: Side of a tile in level-0 px.
        against_label: Scores of the attention, None if the slide has no label mask.
    """

    target: Literal["isup", "cancer"]
    predicted: int
    probabilities: list[float]
    coords: NDArray[np.int64]
    attention: NDArray[np.float32]
    contributions: NDArray[np.float32]
    shown: NDArray[np.uint8]
    tile_side: float
    against_label: AttentionScores | None = None

    @property
    def predicted_name(self) -> str:
        """The predicted class in words: 0 of `cancer` is no cancer."""
        return class_names(self.target, len(self.probabilities))[self.predicted]

    def drop_tiles(self) -> Grade:
        """Return the grade without the pixels of its tiles, because those of thousands of slides fill the memory."""
        return replace(self, shown=self.shown[:0].copy())  # a slice alone would keep them all

    def to_record(self) -> GradeRecord:
        """Return the grade as plain data."""
        return GradeRecord(
            target=self.target,
            predicted=self.predicted,
            probabilities=tuple(self.probabilities),
            tile_side_px=self.tile_side,
            against_label=self.against_label,
            tiles=tuple(
                AttendedTile(x=int(x), y=int(y), attention=float(weight), contribution=float(contribution))
                for (x, y), weight, contribution in zip(self.coords, self.attention, self.contributions, strict=True)
            ),
        )
