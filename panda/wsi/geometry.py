"""Frames of a slide, the affine maps between them, and the only functions that round coordinates.

There are four frames, all with the axes and the origin of the slide: level-0 px, level-L px (or any working
resolution), mask level-0 px and µm. Coordinates are continuous: pixel `i` of a frame covers `[i, i + 1)` and has its
centre at `i + 0.5`. Maps stay in floating point. `round_px` turns a coordinate into a pixel index, and `floor_px`
returns the pixel that a point is in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from panda.errors import MaskError

Coordinate = TypeVar("Coordinate", float, NDArray[Any])
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, lt=2**31)]
Part = Annotated[float, Field(ge=0, le=1)]


@overload
def round_px(v: float) -> int: ...
@overload
def round_px(v: NDArray[Any]) -> NDArray[np.int64]: ...
def round_px(v: float | NDArray[Any]) -> int | NDArray[np.int64]:
    """Round a continuous coordinate to a pixel index, halves upwards: `floor(v + 0.5)`.

    Unlike Python's `round` it treats every half alike, so a shifted grid stays evenly spaced.

    Args:
        v: A coordinate or an array of them, in px of any frame.

    Returns:
        `int` for a number, an int64 array of the same shape for an array.
    """
    if isinstance(v, np.ndarray):
        return np.floor(np.asarray(v, dtype=np.float64) + 0.5).astype(np.int64)
    return math.floor(v + 0.5)


def floor_px(v: NDArray[Any]) -> NDArray[np.int64]:
    """Return the pixels that hold continuous coordinates, an int64 array of the shape of `v`."""
    return np.asarray(np.floor(v), np.int64)


def axis_scales(size: tuple[int, int], level_size: tuple[int, int]) -> tuple[float, float]:
    """Return level-0 px per px of a pyramid level, along x and along y.

    Writers shrink by a whole number and round the sides (libvips, ASAP, Aperio: down). So if one whole number gives
    both sides by rounding up or down, it is the scale. If several do, which happens at levels of a few px, the one
    with the most factors of 2 is. Otherwise the level is taken to span level 0 along each axis.

    Args:
        size: (W, H) of level 0.
        level_size: (w, h) of the level.
    """
    smallest, largest = 1, max(size)
    for full, short in zip(size, level_size, strict=True):
        smallest = max(smallest, full // (short + 1) + 1)
        if short > 1:
            largest = min(largest, (full - 1) // (short - 1))
    step = 1
    while -(-smallest // (2 * step)) * 2 * step <= largest:
        step *= 2
    if (whole := -(-smallest // step) * step) <= largest:
        return float(whole), float(whole)
    return size[0] / level_size[0], size[1] / level_size[1]


def level_scale(size: tuple[int, int], level_size: tuple[int, int]) -> tuple[float, float]:
    """Return the downsample of a pyramid level, and how well the level fits it.

    Without a whole number (see `axis_scales`) the downsample is the ratio of the longer sides, because rounding to
    whole px changes it least. OpenSlide's mean of both ratios would shift the far corner of a long and thin slide by
    many px.

    Args:
        size: (W, H) of level 0.
        level_size: (w, h) of the level.

    Returns:
        The downsample, level-0 px per level px, and the deviation of the shorter side in level px. It is at most 1
        if the level shrinks level 0 uniformly.
    """
    long = 0 if size[0] >= size[1] else 1
    downsample = axis_scales(size, level_size)[long]
    return downsample, abs(level_size[1 - long] - size[1 - long] / downsample)


def cut_blocks(width: int, height: int, side: int = 2048, factor: float = 1.0) -> Iterator[tuple[int, int, int, int]]:
    """Cut an image of `width` x `height` px into blocks, which bound the memory of its making.

    Args:
        width: Width of the image in px.
        height: Height of the image in px.
        side: Largest side of a block in source px.
        factor: Source px per px of the image.

    Yields:
        (x, y, w, h) of each block in px of the image, row by row, without gap or overlap.
    """
    step = max(1, int(side / factor))
    for y in range(0, height, step):
        for x in range(0, width, step):
            yield x, y, min(step, width - x), min(step, height - y)


def ceil_px(v: float) -> int:
    """Return the number of whole pixels that cover a length of `v` px; 1e-6 px are the error of a division."""
    return math.ceil(v - 1e-6)


@dataclass(frozen=True)
class Frame:
    """A coordinate frame of one slide.

    Attributes:
        sx: Level-0 px per unit of this frame, along x.
        sy: Level-0 px per unit of this frame, along y.
    """

    sx: float
    sy: float

    def __post_init__(self) -> None:
        if not (0 < self.sx < math.inf and 0 < self.sy < math.inf):
            raise ValueError(f"scales of a frame must be positive and finite, not {self.sx}, {self.sy}")

    def to_level0(self, x: Coordinate, y: Coordinate) -> tuple[Coordinate, Coordinate]:
        """Map coordinates of this frame to level-0 px, unrounded."""
        return x * self.sx, y * self.sy


@dataclass(frozen=True)
class Resolution:
    """A working resolution of one slide.

    Attributes:
        downsample: Level-0 px per working px, the same in x and y.
        width: Width of the whole slide in working px: the level's if it is used unchanged, else rounded up.
        height: Height of the whole slide in working px, rounded like the width.
        level: Pyramid level that is read, the coarsest one that is not coarser than `downsample`.
        level_downsample: Level-0 px per px of that level.
        mpp: µm per working px as (x, y); None if unknown.
        part: Parts of the last column and of the last row that are on the slide, up to 1. The others are past its edge.
    """

    downsample: Positive
    width: Side
    height: Side
    level: Annotated[int, Field(ge=0)]
    level_downsample: Positive
    mpp: tuple[Positive, Positive] | None
    part: tuple[Part, Part] = (1.0, 1.0)

    @property
    def frame(self) -> Frame:
        """Frame of working px."""
        return Frame(self.downsample, self.downsample)

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` of the whole slide in working px."""
        return self.width, self.height

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the slide in working px, not rounded, up to the end of the last px."""
        return self.width - 1 + self.part[0], self.height - 1 + self.part[1]

    @property
    def pixel_area_um2(self) -> float | None:
        """Area of one working px in µm²; None if µm/px is unknown."""
        return None if self.mpp is None else self.mpp[0] * self.mpp[1]

    @property
    def mean_mpp(self) -> float | None:
        """µm per working px as one number, see `mean_mpp`; None if µm/px is unknown."""
        return None if self.mpp is None else mean_mpp(self.mpp)

    def list_edges(self, window: tuple[int, int, int, int]) -> Iterator[tuple[int, tuple[slice, slice]]]:
        """Yield the rows and columns of a window whose px `weigh_counts` needs, with the index of their count.

        Args:
            window: x0, y0, width, height in working px, within the slide.

        Yields:
            0 and all px; then if they are cut by the edge, 1 and the last column of the slide, 2 and its last row, 3
            and the corner of both.
        """
        every, last = slice(None), slice(-1, None)
        in_column = self.part[0] < 1 and window[0] + window[2] == self.width
        in_row = self.part[1] < 1 and window[1] + window[3] == self.height
        yield 0, (every, every)
        if in_column:
            yield 1, (every, last)
        if in_row:
            yield 2, (last, every)
        if in_column and in_row:
            yield 3, (last, last)

    def weigh_counts(self, counts: NDArray[np.int64]) -> NDArray[Any]:
        """Return areas in working px from counts of px, (4, …) int64 in the order of `list_edges`.

        A px that is partly past the edge of the slide counts as the part on it. Whole counts stay whole numbers.
        """
        past_x, past_y = 1 - self.part[0], 1 - self.part[1]
        if not (past_x or past_y):
            return np.asarray(counts[0])
        return np.asarray(counts[0] - past_x * counts[1] - past_y * counts[2] + past_x * past_y * counts[3])

    def measure_px(self, mask: NDArray[np.bool_]) -> float:
        """Return the area of an (height, width) bool mask of the whole slide in working px, see `weigh_counts`."""
        counts = np.zeros(4, np.int64)
        for index, px in self.list_edges((0, 0, *self.size)):
            counts[index] = np.count_nonzero(mask[px])
        return float(self.weigh_counts(counts))

    @property
    def is_resampled(self) -> bool:
        """Whether reads are resampled from a finer level; False for the unchanged px of a level."""
        return self.downsample != self.level_downsample


def mean_mpp(mpp: tuple[float, float]) -> float:
    """Return the geometric mean of µm/px along x and y: the side of a square px of the same area."""
    return math.sqrt(mpp[0] * mpp[1])


def mask_frame(slide_size: tuple[int, int], mask_size: tuple[int, int]) -> Frame:
    """Return the frame of mask level-0 px; the mask covers the whole slide at any size, as a level does.

    Args:
        slide_size: (W, H) of the slide in level-0 px.
        mask_size: (W, H) of the mask in mask level-0 px.

    Returns:
        A frame with slide px per mask px as its scales, see `axis_scales`.

    Raises:
        MaskError: If the mask is empty, or does not have the shape of the slide within 1 px. A mask that is larger by
            more than 1 px must be so by a whole number. Otherwise it was probably padded to whole tiles.
    """
    (slide_w, slide_h), (mask_w, mask_h) = slide_size, mask_size
    sizes = f"mask is {mask_w} x {mask_h} px, slide is {slide_w} x {slide_h} px"
    if min(mask_w, mask_h, slide_w, slide_h) <= 0:
        raise MaskError(f"{sizes}: an empty image has no frame")
    if mask_w > slide_w + 1 or mask_h > slide_h + 1:
        times_x, times_y = axis_scales(mask_size, slide_size)
        if times_x != times_y or times_x % 1:
            raise MaskError(
                f"{sizes}: it is larger by more than 1 px and not by a whole number of times, so it was padded or is "
                "the mask of another slide"
            )
        return Frame(1 / times_x, 1 / times_y)
    deviation = level_scale(slide_size, mask_size)[1]
    if deviation > 1 and max(abs(mask_w - slide_w), abs(mask_h - slide_h)) > 1:
        raise MaskError(
            f"{sizes}: at one scale it would be {deviation:.4g} px longer or shorter, so it was cut or padded, or is "
            "the mask of another slide; check the pairing of the files"
        )
    return Frame(*axis_scales(slide_size, mask_size))
