"""The grade of a slide: class probabilities, the attention of its tiles, and the record of both as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, model_validator

from panda.stored import Plain, Share
from panda.wsi.gleason import list_class_names

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
        target: `isup` or `cancer`.
        predicted: Class with the highest probability.
        probabilities: Probability of each class; they sum to 1.
        tile_side_px: Side of a tile in level-0 px.
        against_label: Scores of the attention, None if the slide has no label mask.
        tiles: The tiles, whose attention weights sum to 1.
    """

    target: Literal["isup", "cancer"]
    predicted: NonNegativeInt
    probabilities: tuple[Share, ...]
    tile_side_px: Annotated[float, Field(gt=0)] | None = None
    against_label: AttentionScores | None = None
    tiles: tuple[AttendedTile, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        count, total = len(self.probabilities), sum(self.probabilities)
        if self.predicted >= count:
            raise ValueError(f"predicted={self.predicted} has no probability; there are {count}")
        if abs(total - 1) > _ROUNDING:
            raise ValueError(f"probabilities add up to {total:.4g}, not to 1")
        if self.probabilities[self.predicted] < max(self.probabilities):
            raise ValueError(f"predicted={self.predicted} is not the most probable class")
        return self

    @property
    def class_names(self) -> Sequence[str]:
        """The classes in words."""
        return list_class_names(self.target, len(self.probabilities))

    @property
    def attention(self) -> NDArray[np.float32]:
        """Attention weights of the tiles, (K,)."""
        return np.array([tile.attention for tile in self.tiles], np.float32)

    def drop_tiles(self) -> GradeRecord:
        """Return the grade without its tiles, because those of thousands of slides fill the memory."""
        return self.model_copy(update={"tiles": ()})


@dataclass(frozen=True)
class Grade:
    """The grade of one slide, and (n, h, w, 3) uint8, the tiles with the most attention, the most first."""

    record: GradeRecord
    shown: NDArray[np.uint8]
