"""A probability map and the tissue under it, read window by window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panda.errors import PandaError
from panda.inference.canvas_store import Canvas
from panda.inference.codes import STEPS, choose_classes, dequantize
from panda.wsi.classes import BINARY, ClassSet
from panda.wsi.components import Window, slice_window
from panda.wsi.geometry import Resolution
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap


@dataclass(frozen=True)
class ScoredMap:
    """A probability map of a slide with its tissue.

    Attributes:
        values: A canvas, or an (H, W) array of probabilities in which every pixel is scored.
        slide: The slide.
        tissue: Its tissue.
        resolution: Working resolution of `values`.
    """

    values: Canvas | NDArray[np.floating[Any]]
    slide: Slide
    tissue: TissueMap
    resolution: Resolution

    def read(self, window: Window) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        """Return the tissue of a window, (h, w) bool, and its values, (h, w).

        Values are the codes of a canvas, uint16, or probabilities of an array. They are below `lowest` outside of
        tissue and if they were not scored.
        """
        tissue = self.tissue.window(self.resolution, *window)
        if isinstance(self.values, Canvas):
            codes = self.values.read_codes(*window)
            return tissue, np.multiply(codes, tissue, out=codes)
        prob = self.values[slice_window(window)]
        if np.isnan(prob).any():
            raise PandaError(
                f"{self.slide.path}: the probability map holds NaN in rows {window[1]} to "
                f"{window[1] + window[3] - 1}; give 0 for pixels that were not scored"
            )
        return tissue, np.where(tissue, prob, -1)

    @property
    def classes(self) -> ClassSet:
        """The classes of the map; an array has one class of cancer."""
        return self.values.classes if isinstance(self.values, Canvas) else BINARY

    def choose_classes(self, window: Window) -> NDArray[np.uint8]:
        """Return the number of the class of cancer with the highest probability in each px of a window, (h, w)."""
        if not isinstance(self.values, Canvas):
            return np.ones((window[3], window[2]), np.uint8)
        return choose_classes(self.values.read_class_codes(*window), self.classes)

    def split_classes(self, window: Window, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the values of a window by the class of each px, one array for each class of cancer.

        A px of another class has a value as if it were not scored.
        """
        if self.classes.is_binary:
            return [values]
        chosen = self.choose_classes(window)
        return [np.where(chosen == number, values, 0) for number in range(1, len(self.classes.names))]

    @property
    def lowest(self) -> int:
        """The lowest value of a pixel that was scored."""
        return 1 if isinstance(self.values, Canvas) else 0

    def find_bound(self, threshold: float) -> Any:
        """Return the lowest value whose probability reaches a threshold, in float64."""
        if not isinstance(self.values, Canvas):
            return np.float64(threshold)  # NumPy would round a plain float to float32 before it compares
        return np.uint16(1 + np.searchsorted(_PROBABILITIES, threshold))

    def count_steps(self, values: NDArray[Any], steps: NDArray[np.float64]) -> NDArray[np.int64]:
        """Count scored values by how many of the ascending `steps` their probability reaches, (steps + 1,)."""
        if not isinstance(self.values, Canvas):
            reached = np.searchsorted(steps, values[values >= 0].astype(np.float64), side="right")
            return np.bincount(reached, minlength=len(steps) + 1)
        counts = np.bincount(values.ravel(), minlength=STEPS + 2)[1:]
        bounds = np.searchsorted(_PROBABILITIES, steps)
        below = np.concatenate([[0], counts.cumsum()])[[0, *bounds, STEPS + 1]]
        return np.diff(below)

    def convert_to_steps(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return scored values in steps of a canvas: there they are whole, so a sum does not depend on its order."""
        if isinstance(self.values, Canvas):
            return values.astype(np.int64) - 1
        return values.astype(np.float64) * STEPS

    def convert_to_probability(self, values: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """Return the probability of scored values."""
        return dequantize(values) if isinstance(self.values, Canvas) else values


_PROBABILITIES = dequantize(np.arange(1, STEPS + 2).astype(np.uint16)).astype(np.float64)
"""Probability of each code of a canvas, from 1 on."""
