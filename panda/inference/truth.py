"""Read a canvas together with its labels and its tissue: what every score and every error is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panda.inference.canvas_metadata import CHUNK
from panda.inference.canvas_store import Canvas
from panda.wsi.classes import IGNORED, OTHER
from panda.wsi.components import Window
from panda.wsi.geometry import round_px
from panda.wsi.label_mask import LabelMask
from panda.wsi.tissue import TissueMap


@dataclass(frozen=True)
class Truth:
    """A window of a canvas with its labels. Past the edge of the slide nothing is labelled, called or tissue.

    Attributes:
        top: First row, working px.
        prob: Probability of cancer, (h, w) float32; 0 for px that were not scored.
        target: Class of the label, (h, w) uint8, see `panda.wsi.classes`.
        truth: Labelled cancer, (h, w) bool.
        in_tissue: Tissue, (h, w) bool.
        is_counted: Tissue that counts, (h, w) bool.
    """

    top: int
    prob: NDArray[np.float32]
    target: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    in_tissue: NDArray[np.bool_]
    is_counted: NDArray[np.bool_]

    def find_called(self, threshold: float) -> NDArray[np.bool_]:
        """Return the px that count and are called cancer at a threshold, (h, w) bool."""
        # NumPy would round a plain float to float32 before it compares.
        return np.asarray(self.is_counted & (self.prob >= np.float64(threshold)))


def read_bands(
    canvas: Canvas, mask: LabelMask, tissue: TissueMap, *, ignore_background: bool = False
) -> Iterator[Truth]:
    """Yield a canvas in bands from the top, see `read_truth`."""
    height, width = canvas.shape
    for top in range(0, height, CHUNK):
        window = (0, top, width, min(CHUNK, height - top))
        yield read_truth(canvas, mask, tissue, window, ignore_background=ignore_background)


def read_truth(
    canvas: Canvas, mask: LabelMask, tissue: TissueMap, window: Window, *, ignore_background: bool = False
) -> Truth:
    """Read a window in working px, whose corner may be negative.

    Tissue with an unlabelled code is no cancer. With `ignore_background` it does not count.
    """
    resolution, (left, top, width, height) = canvas.resolution, window
    location = (round_px(left * resolution.downsample), round_px(top * resolution.downsample))
    in_tissue = tissue.crop(resolution, location, (width, height))
    target = mask.read_target(resolution, location, (width, height), ignore_background=True, classes=canvas.classes)
    return Truth(
        top=top,
        prob=canvas.read(*window),
        target=target,
        truth=(target != OTHER) & (target != IGNORED),
        in_tissue=in_tissue,
        is_counted=in_tissue & (target != IGNORED) if ignore_background else in_tissue,
    )
