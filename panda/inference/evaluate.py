"""Scores of canvases against label masks: pixels of tissue only, at every threshold or at a frozen one.

Labelled cancer where no tissue was found enters no score: it is counted beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.inference.canvas import Canvas
from panda.tasks.metrics import BINS, bootstrap_interval, nanmean, pixel_histogram, pooled, scores_at
from panda.wsi.geometry import round_px
from panda.wsi.labels import LabelMask
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
            "cancer_outside_tissue_mm2": self.mm2(self.outside_px),
            "cancer_outside_tissue_px": self.outside_px,
        }


def score_canvas(canvas: Canvas, slide: Slide, mask: LabelMask, tissue: TissueMap, record: SlideRecord) -> SlideScore:
    """Counts a canvas' tissue pixels by probability and truth, band by band.

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


def summarise(scores: Sequence[SlideScore], threshold: float, seed: int) -> dict[str, Any]:
    """Pooled and per-slide figures at a frozen threshold, as plain data.

    Args:
        scores: One a slide.
        threshold: Frozen beforehand.
        seed: Of the bootstrap.

    Returns:
        `dice` (pooled over pixels) and `dice_mean_slide` (over slides with cancer), each with its `…_interval` (95 %,
        bootstrap over groups), `iou`, `precision`, `recall`, `fp_mm2_benign_slides` (mean over slides without
        labelled cancer), `all_tissue_dice` (what calling all tissue cancer scores), `cancer_outside_tissue_px`, `…_mm2`
        and `…_percent` (of all labelled cancer), `slides`, and the same `by_provider`.
        Undefined figures are None.
    """
    figures = _figures(scores, threshold, seed)
    providers = sorted({score.record.provider for score in scores})
    figures["by_provider"] = {
        provider: _figures([s for s in scores if s.record.provider == provider], threshold, seed)
        for provider in providers
    }
    return figures


def plain_interval(ends: tuple[float, float]) -> list[float] | None:
    """An interval as plain data; None where it is undefined."""
    return None if np.isnan(ends).any() else [float(end) for end in ends]


def _pooled_dice(counts: NDArray[np.int64]) -> float:
    """Dice of slides' tp, fp, fn (N, 3), pooled."""
    tp, fp, fn = counts.sum(axis=0)
    return float(2 * tp / (2 * tp + fp + fn)) if tp + fp + fn else float("nan")


def _figures(scores: Sequence[SlideScore], threshold: float, seed: int) -> dict[str, Any]:
    everything = pooled(histograms(scores))
    at = scores_at(everything, threshold)
    rows = [score.row(threshold) for score in scores]
    dice = np.array([np.nan if row["dice"] is None else row["dice"] for row in rows])
    scored = np.isfinite(dice)
    groups = np.array([score.record.group for score in scores])
    counts = np.array([[row[name] for name in ("tp", "fp", "fn")] for row in (s.at(threshold) for s in scores)])
    mean = nanmean(dice)
    benign = [row["fp_mm2"] for row, score in zip(rows, scores, strict=True) if not score.labelled_px]
    outside, labelled = sum(score.outside_px for score in scores), sum(score.labelled_px for score in scores)
    outside_mm2 = [score.mm2(score.outside_px) for score in scores if score.outside_px]
    return {
        "slides": len(scores),
        "slides_with_cancer": int(scored.sum()),
        **{name: at[name] for name in SCORES},
        "dice_interval": plain_interval(bootstrap_interval(counts, groups, seed=seed, statistic=_pooled_dice)),
        "dice_mean_slide": None if np.isnan(mean) else mean,
        "dice_mean_slide_interval": plain_interval(bootstrap_interval(dice[scored], groups[scored], seed=seed)),
        "fp_mm2_benign_slides": float(np.mean(benign)) if benign and None not in benign else None,
        "all_tissue_dice": scores_at(everything, 0.0)["dice"],
        "cancer_outside_tissue_px": outside,
        "cancer_outside_tissue_mm2": None if None in outside_mm2 else sum((area for area in outside_mm2 if area), 0.0),
        "cancer_outside_tissue_percent": 100 * outside / labelled if labelled else None,
    }


def histograms(scores: Sequence[SlideScore]) -> Mapping[str, NDArray[np.int64]]:
    """Slide id to histogram, as the threshold search takes them."""
    return {score.record.slide_id: score.histogram for score in scores}
