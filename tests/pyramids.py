"""Write small pyramidal TIFFs of known content, laid out as PANDA's slides and masks are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray


def write_pyramid(
    path: Path,
    image: NDArray[np.uint8],
    downsamples: Sequence[float] = (1, 4, 16),
    tile: int = 256,
    *,
    mpp: float | None = None,
    compression: str | None = "adobe_deflate",
    resolution: tuple[float, float] | None = None,
    unit: str = "CENTIMETER",
    subifds: bool = False,
) -> Path:
    """Write an image or a label mask as a tiled pyramidal TIFF that OpenSlide opens.

    Args:
        path: file to write; its folder is made.
        image: (h, w, 3) uint8 RGB, or (h, w) uint8 label codes, which go to the red channel of three.
        downsamples: one level each, from 1 on; a level has ``floor(size / downsample)`` px (at least 1), so
            an odd size gives the not quite integer downsamples PANDA's slides have.
        tile: tile side in px, a multiple of 16.
        mpp: µm per level-0 px, written as the resolution tags; None leaves them out.
        compression: tifffile's name of it; lossless by default, ``"jpeg"`` is what real slides use.
        resolution: raw (XResolution, YResolution) tags of every level instead of ``mpp``, for odd files.
        unit: tifffile's name of the resolution unit that goes with ``resolution``.
        subifds: put the lower levels into sub-IFDs (as OME-TIFF does), where OpenSlide does not find them.

    Returns:
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = image.shape[:2]
    with tifffile.TiffWriter(path) as writer:
        for number, downsample in enumerate(downsamples):
            size = max(1, int(width // downsample)), max(1, int(height // downsample))
            level = _shrink(image, size)
            if level.ndim == 2:
                level = np.dstack([level, np.zeros_like(level), np.zeros_like(level)])
            options: dict[str, Any] = {}
            if resolution is not None:
                options = {"resolution": resolution, "resolutionunit": unit}
            elif mpp is not None:
                per_cm = 1e4 / (mpp * downsample)
                options = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            if number == 0 and subifds:
                options["subifds"] = len(downsamples) - 1
            writer.write(
                level,
                tile=(tile, tile),
                photometric="rgb",
                compression=compression,
                subfiletype=0 if number == 0 else 1,
                metadata=None,
                **options,
            )
    return path


def _shrink(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to (width, height): colours by area, label codes by the pixel at the centre."""
    height, width = image.shape[:2]
    if size == (width, height):
        return image
    if image.ndim == 3:
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    columns = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(np.int64)
    rows = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(np.int64)
    return image[np.ix_(rows, columns)]
