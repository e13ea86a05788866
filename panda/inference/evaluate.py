"""Scores of canvases against label masks: pixels of tissue only, at every threshold or at a frozen one.

Labelled cancer where no tissue was found enters no score: it is counted beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.inference.canvas import Canvas
from panda.tasks.metrics import BINS, pixel_histogram, scores_at
from panda.wsi.geometry import round_px
from panda.wsi.label_maps import LabelMap
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

BAND_ROWS = 512
SCORES = ("dice", "iou", "precision", "recall")


@dataclass(frozen=True)
class SlideScore:
    """What one slide's canvas is worth against its mask.

    Attributes:
        record: The slide.
        histogram: (2, BINS) counts of tissue pixels by probability: cancer, other.
        pixel_area_um2: Of a canvas pixel, or None where µm/px is unknown.
        outside_px: Canvas pixels that are labelled cancer but lie outside the tissue found.
    """

    record: SlideRecord
    histogram: NDArray[np.int64]
    pixel_area_um2: float | None
    outside_px: int

    @property
    def labelled_px(self) -> int:
        """All canvas pixels that are labelled cancer."""
        return int(self.histogram[0].sum()) + self.outside_px

    def mm2(self, pixels: float) -> float | None:
        """The area of canvas pixels, or None where µm/px is unknown."""
        return None if self.pixel_area_um2 is None else float(pixels) * self.pixel_area_um2 / 1e6

    def at(self, threshold: float) -> dict[str, float | int | None]:
        """See `panda.tasks.metrics.scores_at`."""
        return scores_at(self.histogram, threshold)

    def row(self, threshold: float) -> dict[str, Any]:
        """The slide's figures at a threshold; Dice and the like are None where its tissue has no cancer.

        A slide without cancer has no Dice (0/0, or 0 however small the fault); its false-positive area is
        reported instead.
        """
        at = self.at(threshold)
        has_cancer = bool(self.histogram[0].any())
        return {
            "slide_id": self.record.slide_id,
            "provider": self.record.provider,
            "isup_grade": self.record.isup_grade,
            **{name: at[name] if has_cancer else None for name in SCORES},
            "true_tumor_mm2": self.mm2(self.histogram[0].sum()),
            "fp_mm2": self.mm2(at["fp"] or 0),
            "fp_px": at["fp"],
            "tp_px": at["tp"],
            "fn_px": at["fn"],
            "cancer_outside_tissue_mm2": self.mm2(self.outside_px),
            "cancer_outside_tissue_px": self.outside_px,
            "group": self.record.group,
        }


def open_label(record: SlideRecord, slide: Slide, label_maps: Mapping[str, LabelMap] | None = None) -> LabelMask:
    """Open the label mask of a slide that has one.

    Args:
        record: The slide, with its mask.
        slide: The open slide.
        label_maps: The checkpoint's label maps, which go before those in `conf/label_maps`.

    Raises:
        MaskError: If it cannot be opened, or does not fit the slide.
    """
    assert record.mask_path is not None
    return LabelMask.open(record.mask_path, slide, record.provider, label_maps)


def score_canvas(canvas: Canvas, slide: Slide, mask: LabelMask, tissue: TissueMap, record: SlideRecord) -> SlideScore:
    """Count a canvas' tissue pixels by probability and truth, band by band.

    Tissue that no tile covered counts as probability 0: what was not looked at was not found.

    Raises:
        MaskError: If the mask holds a code unknown to its provider.
    """
    resolution = canvas.resolution
    counts, outside = np.zeros((2, BINS), np.int64), 0
    for y0, prob in canvas.bands(BAND_ROWS):
        location = (0, round_px(y0 * resolution.downsample))
        size = (prob.shape[1], prob.shape[0])
        truth = mask.read_tumor(resolution, location, size)
        where = tissue.crop(resolution, location, size)
        counts += pixel_histogram(*map(torch.from_numpy, (prob, truth, where))).numpy()
        outside += int(np.count_nonzero(truth & ~where))
    return SlideScore(record, counts, resolution.pixel_area_um2, outside)


def histograms(scores: Sequence[SlideScore]) -> Mapping[str, NDArray[np.int64]]:
    """Slide id to histogram, as the threshold search takes them."""
    return {score.record.slide_id: score.histogram for score in scores}
