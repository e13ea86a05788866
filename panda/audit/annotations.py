"""Inspect the annotations of a slide."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from panda.audit.mask_codes import COUNTED_UM, NOMINAL_UM
from panda.wsi.annotations.source import AnnotationSource
from panda.wsi.geometry import Resolution, cut_blocks, mean_mpp
from panda.wsi.label_maps import LabelMap
from panda.wsi.slide import Slide


class DrawnCodes(NamedTuple):
    """The codes of a slide's annotations: px of each code, (256,) int64, and the resolution at which they count."""

    source: AnnotationSource
    counts: NDArray[np.int64]
    resolution: Resolution


def count_drawn_codes(path: Path, slide: Slide, label_map: LabelMap) -> DrawnCodes:
    """Open the annotations of a slide and count the px of each code at 10 µm/px, or finer to find all cancer.

    Raises:
        MaskError: With all faults of the file.
    """
    source = AnnotationSource.open(path, slide, label_map)
    um = NOMINAL_UM if slide.mpp is None else mean_mpp(slide.mpp)
    downsample = max(1.0, COUNTED_UM / um)
    while True:
        resolution = slide.choose_resolution(downsample=downsample)
        counts = np.zeros(256, np.int64)
        for window in cut_blocks(*resolution.size):
            counts += np.bincount(source.read_window(resolution, window).ravel(), minlength=256)
        is_missed = source.codes & {*label_map.cancer} and not counts[list(label_map.cancer)].any()
        if not is_missed or math.isclose(downsample, 1):
            return DrawnCodes(source, counts, resolution)
        downsample = max(1.0, downsample / 4)
