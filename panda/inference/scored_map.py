"""A probability map and the tissue under it, read window by window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panda.errors import PandaError
from panda.inference.canvas_store import STEPS, Canvas, dequantize
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

    def read(self, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.floating[Any]]]:
        """Return tissue, scored tissue and probability of a window, each (h, w)."""
        tissue = self.tissue.window(self.resolution, *window)
        if isinstance(self.values, Canvas):
            codes = self.values.read_codes(*window)
            return tissue, tissue & (codes > 0), dequantize(codes)
        prob = self.values[slice_window(window)]
        if np.isnan(prob).any():
            raise PandaError(
                f"{self.slide.path}: the probability map holds NaN in rows {window[1]} to "
                f"{window[1] + window[3] - 1}; give 0 for pixels that were not scored"
            )
        return tissue, tissue, prob

    def make_step_counter(self, steps: NDArray[np.float64]) -> Callable[[NDArray[np.floating[Any]]], NDArray[np.int64]]:
        """Return a function that counts how many of the ascending `steps` each probability reaches, in float64."""
        if not isinstance(self.values, Canvas):
            return lambda values: np.searchsorted(steps, values.astype(np.float64), side="right")
        codes = np.arange(1, STEPS + 2).astype(np.uint16)  # one search per code is cheaper than one per pixel
        table = np.searchsorted(steps, dequantize(codes).astype(np.float64), side="right")
        return lambda values: table[np.rint(values * STEPS).astype(np.int64)]

    def convert_to_steps(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return probabilities in steps of a canvas: there they are whole, so a sum does not depend on its order."""
        steps = probabilities * STEPS
        return np.rint(steps) if isinstance(self.values, Canvas) else steps
