"""Choose the fields of a slide whose annotation would teach most: errors, disagreement, low confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from panda.inference.canvas_store import Canvas
from panda.inference.codes import dequantize
from panda.inference.field_grid import FieldBox, FieldGrid
from panda.inference.truth import read_truth
from panda.wsi.components import Window
from panda.wsi.geometry import Resolution, cut_blocks
from panda.wsi.label_mask import LabelMask
from panda.wsi.tissue import TissueMap

Reason = Literal["errors", "disagreement", "confidence"]
"""What a field is chosen for."""

Figure = Literal["tissue", "missed", "false_alarm", "disagreement", "uncertain"]
FIGURES: dict[Reason, tuple[Figure, ...]] = {
    "errors": ("missed", "false_alarm"),
    "disagreement": ("disagreement",),
    "confidence": ("uncertain",),
}
"""The figures that are the score of each reason, together."""

Areas = dict[Figure, float]
"""Area of each figure in working px."""


@dataclass(frozen=True)
class SlideMaps:
    """The maps of one slide by several checkpoints, or by one.

    Attributes:
        canvases: The maps, of one resolution and the same classes.
        thresholds: Probability at which a px counts as tumour, for each map.
        tissue: The tissue of the slide.
        label: The label mask, None without one.
        near: Distance from the threshold below which a probability is uncertain.
    """

    canvases: Sequence[Canvas]
    thresholds: Sequence[float]
    tissue: TissueMap
    label: LabelMask | None
    near: float

    @property
    def resolution(self) -> Resolution:
        """Resolution of the maps."""
        return self.canvases[0].resolution

    @property
    def pairs(self) -> int:
        """Number of pairs of maps."""
        return len(self.canvases) * (len(self.canvases) - 1) // 2

    def read(self, window: Window) -> dict[Figure, NDArray[Any]]:
        """Return the figures of each px of a window, before any clean-up.

        A px of `disagreement` has the number of pairs of maps whose classes differ there. The others are bool: tissue;
        labelled cancer that the first map misses, also outside the tissue; its false alarms; and its probabilities
        near the threshold. A px without a label is no error. A figure is absent if nothing gives it.
        """
        tissue = self.tissue.window(self.resolution, *window)
        found: dict[Figure, NDArray[Any]] = {"tissue": tissue}
        if tissue.any():
            codes = self.canvases[0].read_codes(*window)
            distance = np.abs(dequantize(codes).astype(np.float64) - self.thresholds[0])
            found["uncertain"] = tissue & (codes > 0) & (distance < self.near)
            if self.pairs:
                found["disagreement"] = self._count_differences(window) * tissue
        if self.label is not None:
            labelled = read_truth(self.canvases[0], self.label, self.tissue, window, ignore_background=True)
            called = labelled.find_called(self.thresholds[0])
            found |= {
                "tissue": tissue | labelled.truth,
                "missed": labelled.truth & ~called,
                "false_alarm": called & ~labelled.truth,
            }
        return found

    def read_class_map(self, number: int, window: Window) -> NDArray[np.uint8]:
        """Return the class of each px of a window in a map, 0 outside the tissue; (height, width) uint8."""
        tissue = self.tissue.window(self.resolution, *window)
        return self.canvases[number].read_class_map(*window, self.thresholds[number]) * tissue

    def measure(self, field: FieldBox) -> Areas:
        """Return the areas in a field, in working px; pairs of maps count as their mean."""
        return self._convert({name: float(values.sum()) for name, values in self.read(field).items()})

    def choose_fields(self, reason: Reason, side_um: float, count: int) -> tuple[list[FieldBox], Areas]:
        """Choose the fields of the slide, see `FieldGrid.choose`; also return the areas on the whole slide.

        The maps are read block by block.
        """
        grid = FieldGrid.lay(self.resolution, side_um)
        sums: dict[Figure, NDArray[np.int64]] = {}
        for window in cut_blocks(*self.resolution.size):
            for name, values in self.read(window).items():
                if values.any():
                    grid.add(sums.setdefault(name, np.zeros(grid.shape, np.int64)), values, window)
        empty = np.zeros(grid.shape, np.int64)
        score = sum((sums[name] for name in FIGURES[reason] if name in sums), empty)
        fields = grid.choose(score, sums.get("tissue", empty), count)
        return fields, self._convert({name: float(values.sum()) for name, values in sums.items()})

    def _convert(self, sums: dict[Figure, float]) -> Areas:
        """Return areas from sums of px; a figure that the maps give is 0 if no px has it."""
        known: list[Figure] = ["tissue", "uncertain"]
        known += ["disagreement"] if self.pairs else []
        known += ["missed", "false_alarm"] if self.label is not None else []
        return {name: sums.get(name, 0.0) / (self.pairs if name == "disagreement" else 1) for name in known}

    def _count_differences(self, window: Window) -> NDArray[np.int64]:
        """Return the number of pairs of maps whose classes differ in each px."""
        votes = np.zeros((len(self.canvases[0].classes.names), window[3], window[2]), np.uint8)
        for number in range(len(self.canvases)):
            chosen = self.read_class_map(number, window)
            for of_class in range(len(votes)):
                votes[of_class] += chosen == of_class
        agreeing = np.square(votes, dtype=np.int64).sum(axis=0)
        return np.asarray((len(self.canvases) ** 2 - agreeing) // 2)
