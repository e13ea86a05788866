"""Select the patches of a slide for panels: those with the most cancer in truth and prediction together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.inference.canvas import Canvas
from panda.wsi.grid import tissue_grid
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap


@dataclass(frozen=True)
class PanelRow:
    """One patch with its prediction.

    Args:
        image: (h, w, 3) uint8 RGB.
        probability: (h, w) float, probability of tumour in [0, 1].
        truth: (h, w) bool tumour mask, None without a label mask.
        tissue: (h, w) bool; as in the scores, pixels outside it are neither predicted nor found nor missed.
        title: Slide id and coordinates.
        um_per_px: µm per pixel of the image, None if unknown.
    """

    image: NDArray[np.uint8]
    probability: NDArray[np.floating]
    truth: NDArray[np.bool_] | None
    tissue: NDArray[np.bool_]
    title: str
    um_per_px: float | None

    def predict(self, threshold: float) -> NDArray[np.bool_]:
        """Return the tissue pixels whose probability reaches the threshold, (h, w) bool."""
        # np.float64 and not float: NumPy would round a plain float to float32 before it compares.
        return np.asarray((self.probability >= np.float64(threshold)) & self.tissue)


def select_panel_rows(
    record: SlideRecord,
    slide: Slide,
    mask: LabelMask,
    tissue: TissueMap,
    canvas: Canvas,
    *,
    patch_size: int,
    count: int,
) -> list[PanelRow]:
    """Select the rows of `draw_panels` for one mapped slide with a mask.

    Args:
        record: The record of the slide.
        slide: The open slide.
        mask: Its open label mask.
        tissue: Its tissue.
        canvas: Its probability canvas.
        patch_size: Side of a patch in working px of the canvas.
        count: Most rows; patches do not overlap.

    Returns:
        Rows by decreasing sum of probability and cancer pixels, both in tissue.
    """
    if count < 1:
        return []
    view, size = canvas.resolution, (patch_size, patch_size)
    grid = tissue_grid(view, tissue, patch_size, patch_size, edge="shift", min_tissue=0.5)
    if len(grid.working) == 0:
        grid = tissue_grid(view, tissue, patch_size, patch_size, edge="shift", min_tissue=0.0)
    weights = []
    for (x, y), (x0, y0) in zip(grid.working, grid.level0, strict=True):
        prob = canvas.read(int(x), int(y), *size)
        truth = mask.read_tumor(view, (int(x0), int(y0)), size)
        where = tissue.crop(view, (int(x0), int(y0)), size)
        weights.append(float(prob[where].sum()) + float(truth[where].sum()))
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:count]
    rows = []
    for i in order:
        x, y = (int(v) for v in grid.working[i])
        location = (int(grid.level0[i][0]), int(grid.level0[i][1]))
        rows.append(
            PanelRow(
                image=slide.read(view, location, size),
                probability=canvas.read(x, y, *size),
                truth=mask.read_tumor(view, location, size),
                tissue=tissue.crop(view, location, size),
                title=f"{record.slide_id} ({record.provider}) x={location[0]} y={location[1]}",
                um_per_px=view.mpp[0] if view.mpp else None,
            )
        )
    return rows
