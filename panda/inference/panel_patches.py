"""Select the patches of a slide for panels: those with the most cancer in truth and prediction together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.inference.canvas import Canvas
from panda.inference.codes import choose_classes
from panda.wsi.classes import BINARY, ClassSet
from panda.wsi.grid import tissue_grid
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap


@dataclass(frozen=True)
class PanelRow:
    """One patch with its prediction.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        probability: (h, w) float, probability of tumour in [0, 1].
        truth: (h, w) bool tumour mask, None without a label mask that fits the grade.
        tissue: (h, w) bool; as in the scores, pixels outside it are neither predicted nor found nor missed.
        title: Slide id and coordinates.
        um_per_px: µm per pixel of the image, None if unknown.
        classes: The classes of the network.
        by_class: (k, h, w) probability of each class of cancer; None if there is one.
        labels: (h, w) uint8 target of these classes, None as `truth` or if there is one class of cancer.
    """

    image: NDArray[np.uint8]
    probability: NDArray[np.floating]
    truth: NDArray[np.bool_] | None
    tissue: NDArray[np.bool_]
    title: str
    um_per_px: float | None
    classes: ClassSet = BINARY
    by_class: NDArray[np.floating] | None = None
    labels: NDArray[np.uint8] | None = None

    def predict_classes(self, threshold: float) -> NDArray[np.uint8]:
        """Return the predicted class of each pixel, (h, w) uint8: 0 is no tumour, see `predict`."""
        predicted = self.predict(threshold).astype(np.uint8)
        return predicted if self.by_class is None else predicted * choose_classes(self.by_class, self.classes)

    def predict(self, threshold: float) -> NDArray[np.bool_]:
        """Return the tissue pixels whose probability reaches the threshold, (h, w) bool."""
        # np.float64 and not float: NumPy would round a plain float to float32 before it compares.
        return np.asarray((self.probability >= np.float64(threshold)) & self.tissue)


def select_panel_rows(
    record: SlideRecord,
    slide: Slide,
    mask: LabelMask | None,
    tissue: TissueMap,
    canvas: Canvas,
    *,
    patch_size: int,
    count: int,
) -> list[PanelRow]:
    """Select at most `count` rows of `draw_panels` for one mapped slide; patches do not overlap.

    A patch has `patch_size` px of the canvas. Its weight is the sum of probability and cancer pixels, both in tissue.
    At the edge of the slide, patches of the grid overlap. Of two that do, the heavier one is selected.
    """
    if count < 1:
        return []
    view, size = canvas.resolution, (patch_size, patch_size)

    def read_labels(mask: LabelMask, level0: tuple[int, int]) -> NDArray[np.uint8]:
        return mask.read_target(view, level0, size, ignore_background=False, classes=canvas.classes)

    grid = tissue_grid(view, tissue, patch_size, patch_size, edge="shift", min_tissue=0.5)
    if len(grid.working) == 0:
        grid = tissue_grid(view, tissue, patch_size, patch_size, edge="shift", min_tissue=0.0)
    corners = list(zip(grid.working.tolist(), map(tuple, grid.level0.tolist()), strict=True))
    weights = []
    for (x, y), level0 in corners:
        where = tissue.crop(view, level0, size)
        weights.append(float(canvas.read(x, y, *size)[where].sum()))
        if mask is not None:
            weights[-1] += float(mask.read_tumor(view, level0, size)[where].sum())
    return [
        PanelRow(
            image=slide.read(view, level0, size),
            probability=canvas.read(x, y, *size),
            classes=canvas.classes,
            by_class=None if canvas.classes.is_binary else canvas.read_classes(x, y, *size),
            labels=None if mask is None or canvas.classes.is_binary else read_labels(mask, level0),
            truth=None if mask is None else mask.read_tumor(view, level0, size),
            tissue=tissue.crop(view, level0, size),
            title=f"{record.slide_id} ({record.provider}) x={level0[0]} y={level0[1]}",
            um_per_px=view.mpp[0] if view.mpp else None,
        )
        for (x, y), level0 in (corners[i] for i in select_apart(grid.working, weights, patch_size)[:count])
    ]


def select_apart(corners: NDArray[np.integer], weights: Sequence[float], side: int) -> list[int]:
    """Select patches that do not overlap, the heaviest first.

    Args:
        corners: Corners of the patches, (N, 2) in px.
        weights: Weight of each patch, (N,).
        side: Side of a patch in px.

    Returns:
        The numbers of the patches.
    """
    chosen: list[int] = []
    for index in np.argsort(-np.asarray(weights), kind="stable").tolist():
        if (np.abs(corners[chosen] - corners[index]).max(axis=1, initial=0) >= side).all():
            chosen.append(index)
    return chosen
