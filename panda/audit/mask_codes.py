"""Count the codes of a label mask, at the coarsest level that loses no cancer of relevant size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panda.wsi.colours import count_values
from panda.wsi.geometry import cut_blocks, level_scale
from panda.wsi.mask_image import CodeImage

COUNTED_UM = 10.0
"""Largest µm per px at which codes are counted, PANDA's level 2 (8 µm). Masks are shrunk by nearest neighbours: areas
are right on average, and no spot of 10 µm or more is lost. docs/audit.md has the measured losses."""

NOMINAL_UM = 0.5
"""Assumed µm per level-0 px if it is unknown."""

_BLOCK = 2048


def choose_level(image: CodeImage, um: float | None) -> int:
    """Return the coarsest level of a mask at which its codes are counted; `um` is µm per mask level-0 px, if known."""
    sizes = image.level_dimensions
    scales = [level_scale(sizes[0], size)[0] * (um or NOMINAL_UM) for size in sizes]
    return max((level for level, scale in enumerate(scales) if scale <= COUNTED_UM), default=0)


def count_codes(image: CodeImage, level: int) -> NDArray[np.int64]:
    """Count the px of each code at a level of a mask; (256,) int64."""
    counts = np.zeros(256, np.int64)
    for window in cut_blocks(*image.level_dimensions[level], _BLOCK):
        counts += count_values(image.read(level, *window))
    return counts
