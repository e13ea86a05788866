"""Score canvases against label masks: tissue pixels, and labelled cancer outside the tissue, which is missed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from panda.data.manifest import SlideRecord
from panda.files import fingerprint, identity
from panda.inference.canvas import Canvas
from panda.inference.predictor import SegmentationPredictor
from panda.inference.slide_score import STORED, SlideScore
from panda.inference.truth import read_bands
from panda.tasks.bins import BINS
from panda.tasks.class_counts import count_class_pixels, shape_counts
from panda.tasks.pixel_histogram import count_probabilities
from panda.wsi.annotations.source import describe_classes
from panda.wsi.label_maps import LabelMap, find_label_map
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap


def open_label(record: SlideRecord, slide: Slide, label_maps: Mapping[str, LabelMap] | None = None) -> LabelMask:
    """Open the label mask of a slide that has one; `label_maps` of a checkpoint precede those in `conf/label_maps`."""
    assert record.mask_path is not None
    return LabelMask.open(record.mask_path, slide, record.provider, label_maps)


def score_canvas(
    canvas: Canvas,
    slide: Slide,
    mask: LabelMask,
    tissue: TissueMap,
    record: SlideRecord,
    *,
    ignore_background: bool = False,
) -> SlideScore:
    """Count the tissue pixels of a canvas by probability and truth, band by band.

    Tissue that no tile covered counts as probability 0. Labelled cancer outside the tissue is counted on its own, and
    by class with probability 0. Tissue with an unlabelled code counts as no cancer, or nowhere
    with `ignore_background`, as in the loss. It never counts for a single class of several.
    """
    classes = canvas.classes
    counts, outside = np.zeros((2, BINS), np.int64), 0
    by_class = None if classes.is_binary else np.zeros(shape_counts(len(classes.names)), np.int64)
    for band in read_bands(canvas, mask, tissue, ignore_background=ignore_background):
        if by_class is not None:
            size = (band.prob.shape[1], band.prob.shape[0])
            by_class += count_class_pixels(
                np.where(band.in_tissue, band.prob, 0),
                canvas.read_class_map(0, band.top, *size, threshold=0.0),
                band.target,
                band.in_tissue | band.truth,
                len(classes.names),
                has_patterns=bool(mask.label_maps[mask.provider].patterns),
            )
        outside += int(np.count_nonzero(band.truth & ~band.in_tissue))
        counts += count_probabilities(*map(torch.from_numpy, (band.prob, band.truth, band.is_counted))).numpy()
    return SlideScore(record, counts, canvas.resolution.pixel_area_um2, outside, by_class)


def fingerprint_score(predictor: SegmentationPredictor, slide: Slide, record: SlideRecord) -> str:
    """Return the hash of everything that determines the score of a slide with a mask: canvas, mask and label map."""
    assert record.mask_path is not None
    classes = predictor.metadata.classes
    label_map = find_label_map(record.provider, predictor.metadata.label_maps)
    return fingerprint(
        {
            "canvas": predictor.fingerprint_canvas(slide, predictor.metadata.resolution.resolve(slide)),
            "mask": identity(record.mask_path),
            "codes": label_map.codes() | describe_classes(record.mask_path, label_map),
            "parts": STORED,
            **({} if classes.is_binary else {"classes": classes.model_dump(mode="json"), "outside": "missed"}),
            **({"ignore_background": True} if predictor.metadata.ignore_background else {}),
        }
    )
