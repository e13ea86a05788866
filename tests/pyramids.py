"""Write small pyramidal TIFFs of known content, laid out as PANDA's slides and masks are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

Rounding = Literal["down", "up", "nearest"]
_ROUND: dict[Rounding, Callable[[float], int]] = {"down": math.floor, "up": math.ceil, "nearest": round}


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
        path: File to write; its folder is made.
        image: (h, w, 3) uint8 RGB, or (h, w) uint8 label codes, which go to the red channel of three.
        downsamples: One level each, from 1 on; a level has `floor(size / downsample)` px (at least 1), so
            an odd size gives the not quite integer downsamples PANDA's slides have.
        tile: Tile side in px, a multiple of 16.
        mpp: µm per level-0 px, written as the resolution tags; None leaves them out.
        compression: Tifffile's name of it; lossless by default, `"jpeg"` is what real slides use.
        resolution: Raw (XResolution, YResolution) tags of every level instead of `mpp`, for odd files.
        unit: Tifffile's name of the resolution unit that goes with `resolution`.
        subifds: Put the lower levels into sub-IFDs (as OME-TIFF does), where OpenSlide does not find them.

    Returns:
        `path`.
    """
    size = image.shape[1], image.shape[0]
    levels = [_shrink(image, level_size(size, downsample)) for downsample in downsamples]
    options: list[dict[str, Any]] = [{} for _ in levels]
    for of_level, downsample in zip(options, downsamples, strict=True):
        if resolution is not None:
            of_level.update(resolution=resolution, resolutionunit=unit)
        elif mpp is not None:
            per_cm = 1e4 / (mpp * downsample)
            of_level.update(resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
    if subifds:
        options[0]["subifds"] = len(levels) - 1
    return write_levels(path, levels, tile, options, compression=compression)


def write_levels(
    path: Path,
    levels: Sequence[NDArray[np.uint8]],
    tile: int | None,
    options: Sequence[dict[str, Any]] | None = None,
    **every: Any,
) -> Path:
    """Write levels as they are given.

    Args:
        path: File to write; its folder is made.
        levels: (h, w, 3) uint8 RGB each, or (h, w) uint8 label codes, which go to the red channel of three
            unless `photometric` says that one channel is all there is.
        tile: Tile side in px, a multiple of 16; None writes strips of 16 rows, which OpenSlide does not open.
        options: Further arguments of tifffile's `write`, level by level.
        **every: The same for every level.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    every = {"photometric": "rgb", "compression": "adobe_deflate", "metadata": None, **every}
    every.update({"tile": (tile, tile)} if tile else {"rowsperstrip": 16})
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate(levels):
            pixels = level
            if level.ndim == 2 and every["photometric"] == "rgb":
                pixels = np.dstack([level, np.zeros_like(level), np.zeros_like(level)])
            own = options[number] if options else {}
            writer.write(pixels, subfiletype=int(number > 0), **every, **own)
    return path


def drop_tiles(path: Path, kept: tuple[int, int, int, int]) -> Path:
    """Remove the tiles of every level that do not touch a box, x0, y0, x1, y1 in level-0 px, from a tiled TIFF.

    OpenSlide 4.0.1 opens such a file with `openslide.bounds-*`, the box around the remaining tiles of level 0.
    """
    x0, y0, x1, y1 = kept
    with tifffile.TiffFile(path, mode="r+") as tif:
        full = tif.pages[0].aspage().imagewidth
        for page in (page.aspage() for page in tif.pages):
            shrink, columns = full / page.imagewidth, -(-page.imagewidth // page.tilewidth)
            for name in ("TileOffsets", "TileByteCounts"):
                tag = page.tags[name]
                values = list(tag.value)
                for number in range(len(values)):
                    y, x = (index * page.tilewidth * shrink for index in divmod(number, columns))
                    side = page.tilewidth * shrink
                    if x >= x1 or y >= y1 or x + side <= x0 or y + side <= y0:
                        values[number] = 0
                tag.overwrite(values)
    return path


def level_size(size: tuple[int, int], downsample: float, rounding: Rounding = "down") -> tuple[int, int]:
    """(width, height) of a level: the sides of level 0 over the downsample, rounded, at least 1."""
    width, height = (max(1, _ROUND[rounding](side / downsample)) for side in size)
    return width, height


def area_means(image: NDArray[np.uint8], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean colours of the cells between continuous edges, exactly: each px counts with its part in the cell.

    Args:
        image: (h, w, 3) uint8.
        x: (n + 1,) ascending edges in px of the image, within 0..w.
        y: (m + 1,) ascending edges in px of the image, within 0..h.

    Returns:
        (m, n, 3) float64.
    """
    means = image.astype(np.float64)
    for axis, edges in ((0, y), (1, x)):
        before = np.zeros_like(np.take(means, [0], axis))
        sums = np.concatenate([before, np.cumsum(means, axis)], axis)
        whole = np.minimum(edges.astype(np.int64), image.shape[axis] - 1)
        part = np.expand_dims(edges - whole, [other for other in range(3) if other != axis])
        at_edges = np.take(sums, whole, axis) * (1 - part) + np.take(sums, whole + 1, axis) * part
        lengths = np.expand_dims(np.diff(edges), [other for other in range(3) if other != axis])
        means = np.diff(at_edges, axis=axis) / lengths
    return means


def sample_centers(codes: NDArray[np.uint8], size: tuple[int, int], step: tuple[float, float]) -> NDArray[np.uint8]:
    """Shrink label codes to (width, height) px of `step` px each, by the px under each centre."""
    columns, rows = (
        np.minimum(((np.arange(count) + 0.5) * by).astype(np.int64), length - 1)
        for count, by, length in zip(size, step, codes.shape[::-1], strict=True)
    )
    return codes[np.ix_(rows, columns)]


def _shrink(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to (width, height): colours by area, label codes by the pixel at the centre."""
    height, width = image.shape[:2]
    if size == (width, height):
        return image
    if image.ndim == 3:
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return sample_centers(image, size, (width / size[0], height / size[1]))
