"""Score canvases against label masks: tissue pixels only, at every threshold or at a frozen one.

Labelled cancer outside the tissue enters no score. It is counted separately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.inference.canvas import Canvas
from panda.tasks.metrics import BINS, count_probabilities, score_threshold
from panda.wsi.geometry import round_px
from panda.wsi.label_maps import LabelMap
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

BAND_ROWS = 512
SCORES = ("dice", "iou", "precision", "recall")


@dataclass(frozen=True)
class SlideMetrics:
    """Metrics of a slide at one threshold, in the order of the columns of a table.

    The four scores are None if the tissue of the slide has no cancer: Dice would be 0/0, or 0 however small the error.
    Areas are None if µm/px is unknown. Pixels are those of the canvas.
    """

    slide_id: str
    provider: str
    isup_grade: int | None
    dice: float | None
    iou: float | None
    precision: float | None
    recall: float | None
    true_tumor_mm2: float | None
    fp_mm2: float | None
    fp_px: int
    tp_px: int
    fn_px: int
    cancer_outside_tissue_mm2: float | None
    cancer_outside_tissue_px: int
    group: str


@dataclass(frozen=True)
class SlideScore:
    """Pixel counts of one canvas against its mask.

    Attributes:
        record: The slide.
        histogram: (2, BINS) counts of tissue pixels by probability: cancer, other.
        pixel_area_um2: Area of a canvas pixel, None if µm/px is unknown.
        outside_px: Canvas pixels that are labelled cancer outside the tissue.
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
        """Return the area of canvas pixels, None if µm/px is unknown."""
        return None if self.pixel_area_um2 is None else float(pixels) * self.pixel_area_um2 / 1e6

    def metrics(self, threshold: float) -> SlideMetrics:
        """Return the metrics of the slide at a threshold."""
        at = score_threshold(self.histogram, threshold)
        has_cancer = bool(self.histogram[0].any())
        return SlideMetrics(
            slide_id=self.record.slide_id,
            provider=self.record.provider,
            isup_grade=self.record.isup_grade,
            **{name: getattr(at, name) if has_cancer else None for name in SCORES},
            true_tumor_mm2=self.mm2(self.histogram[0].sum()),
            fp_mm2=self.mm2(at.fp),
            fp_px=at.fp,
            tp_px=at.tp,
            fn_px=at.fn,
            cancer_outside_tissue_mm2=self.mm2(self.outside_px),
            cancer_outside_tissue_px=self.outside_px,
            group=self.record.group,
        )


def open_label(record: SlideRecord, slide: Slide, label_maps: Mapping[str, LabelMap] | None = None) -> LabelMask:
    """Open the label mask of a slide that has one.

    Args:
        record: The slide, with its mask.
        slide: The open slide.
        label_maps: Label maps of the checkpoint, which take precedence over those in `conf/label_maps`.

    Raises:
        MaskError: If the mask cannot be opened, or does not fit the slide.
    """
    assert record.mask_path is not None
    return LabelMask.open(record.mask_path, slide, record.provider, label_maps)


def score_canvas(canvas: Canvas, slide: Slide, mask: LabelMask, tissue: TissueMap, record: SlideRecord) -> SlideScore:
    """Count the tissue pixels of a canvas by probability and truth, band by band.

    Tissue that no tile covered counts as probability 0.

    Raises:
        MaskError: If the mask holds a code unknown to its provider.
    """
    resolution = canvas.resolution
    counts, outside = np.zeros((2, BINS), np.int64), 0
    for y0, prob in canvas.bands(BAND_ROWS):
        location = (0, round_px(y0 * resolution.downsample))
        size = (prob.shape[1], prob.shape[0])
        truth = mask.read_tumor(resolution, location, size)
        in_tissue = tissue.crop(resolution, location, size)
        counts += count_probabilities(*map(torch.from_numpy, (prob, truth, in_tissue))).numpy()
        outside += int(np.count_nonzero(truth & ~in_tissue))
    return SlideScore(record, counts, resolution.pixel_area_um2, outside)


def histograms(scores: Sequence[SlideScore]) -> Mapping[str, NDArray[np.int64]]:
    """Map slide id to histogram, as the threshold search takes them."""
    return {score.record.slide_id: score.histogram for score in scores}
