"""Draw the tiles of a slide over a small picture of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from panda.files import write_beside
from panda.inference.features import TileBag
from panda.wsi.geometry import round_px
from panda.wsi.slide import Slide

_SIDE, _QUALITY = 1024, 85
_LINE = (0, 90, 200)


def write_tile_picture(slide: Slide, bag: TileBag, path: Path) -> None:
    """Write the slide as JPEG, at most 1024 px a side, with a frame around each tile."""
    image, view = slide.overview(_SIDE)
    drawn = np.ascontiguousarray(image)
    corners = bag.coords / view.downsample
    ends = corners + bag.tile_size * bag.resolution.downsample / view.downsample
    for (x0, y0), (x1, y1) in zip(round_px(corners).tolist(), round_px(ends).tolist(), strict=True):
        cv2.rectangle(drawn, (x0, y0), (x1, y1), _LINE, 1)
    with write_beside(path) as partial:
        Image.fromarray(drawn).save(partial, "JPEG", quality=_QUALITY)
