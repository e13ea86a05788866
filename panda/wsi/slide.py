"""A whole slide: its levels, its resolution, and its pixels at any working resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import get_args

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray

from panda.errors import SlideError
from panda.wsi.geometry import Resolution, blocks, ceil_px, level_scale, mean_mpp, round_px
from panda.wsi.mpp import MPP_MAX, MPP_MIN, MppSource, find_mpp, is_plausible
from panda.wsi.readers import ReaderName, SlideReader, TiffReader, check_slide_file, open_reader
from panda.wsi.tiff.pyramid import TiffPyramid

SNAP = 0.01
"""Largest relative difference between a level and a requested resolution at which the level is not resampled."""

FINEST = 0.9
"""Smallest downsample of level 0. A finer one would show detail that was never scanned."""

__all__ = ["FINEST", "MPP_MAX", "MPP_MIN", "SNAP", "MppSource", "ReaderName", "Slide", "SlideOptions"]


@dataclass(frozen=True)
class SlideOptions:
    """How slides are opened.

    Attributes:
        reader: `"auto"`: the fast reader if it shows the same pixels as OpenSlide, else OpenSlide. `"openslide"`
            or `"fast"`: only this one (see `panda.wsi.readers.open_reader`).
        mpp_override: µm per level-0 px if the file states none or an impossible value; None for unknown. A
            plausible value in the file comes first: OpenSlide's, then the TIFF resolution tags.
    """

    reader: ReaderName = "auto"
    mpp_override: float | None = None

    def faults(self, prefix: str = "") -> list[str]:
        """Return what is wrong with the options.

        Args:
            prefix: Written before the key in each message, for example `data.`.

        Returns:
            One sentence a fault that names key, value and remedy; empty if all is well.
        """
        faults = []
        if self.reader not in get_args(ReaderName):
            faults.append(f"{prefix}reader={self.reader} must be {', '.join(get_args(ReaderName))}")
        if self.mpp_override is not None and not is_plausible(self.mpp_override):
            faults.append(
                f"{prefix}mpp_override={self.mpp_override} must be {MPP_MIN} to {MPP_MAX:g} µm per level-0 px, or null"
            )
        return faults

    def open(self, path: str | Path) -> Slide:
        """Open a slide with these options, see `Slide.open`."""
        return Slide.open(path, self)


class Slide:
    """A slide, opened with `Slide.open`.

    Each process that reads the slide opens the file for itself. Several threads may read at once, and a slide can
    be pickled to workers. Closing releases the file; a later read opens it again.

    Attributes:
        path: The file.
        slide_id: The file's name without its suffix, which is PANDA's image_id.
        level_dimensions: (width, height) of each level in px of that level, level 0 first.
        level_downsamples: Level-0 px per px of each level, from the longer sides (see
            `panda.wsi.geometry.level_scale`).
        usable_levels: The levels that shrink level 0 uniformly, nearly always all. Only these can be read.
        mpp: µm per level-0 px as (x, y); None if unknown.
        mpp_source: Where `mpp` comes from; None if unknown.
        mpp_note: A sentence with the source, or with the reason and the remedy if `mpp` is unknown.
        stated_mpp: µm per level-0 px that the file states, even if impossible; None if it states none.
    """

    def __init__(
        self,
        path: Path,
        reader: SlideReader,
        mpp: tuple[float, float] | None,
        mpp_source: MppSource | None,
        mpp_note: str,
        *,
        stated_mpp: tuple[float, float] | None,
    ) -> None:
        self.path = path
        self.slide_id = path.stem
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.mpp_note = mpp_note
        self.stated_mpp = stated_mpp
        self.level_dimensions = reader.level_dimensions
        scales = [level_scale(self.dimensions, size) for size in self.level_dimensions]
        self.level_downsamples = tuple(downsample for downsample, _ in scales)
        self.usable_levels = tuple(level for level, (_, deviation) in enumerate(scales) if deviation <= 1)
        self._reader = reader

    @classmethod
    def open(cls, path: str | Path, options: SlideOptions = SlideOptions()) -> Slide:
        """Open a slide.

        Args:
            path: The file.
            options: How it is opened.

        Raises:
            SlideError: If the file is missing, is a folder or cannot be opened, or an option is out of range.
        """
        path = Path(path)
        if faults := options.faults():
            raise SlideError("; ".join(faults))
        check_slide_file(path)
        reader = open_reader(path, options.reader)
        mpp, source, note, stated = find_mpp(path, reader.stated_mpp, reader.mpp_note, options.mpp_override)
        return cls(path, reader, mpp, source, note, stated_mpp=stated)

    @property
    def reader_name(self) -> str:
        """The reader in use, `"fast"` or `"openslide"`."""
        return self._reader.name

    @property
    def vendor(self) -> str | None:
        """OpenSlide's name of the file's layout; None if OpenSlide did not open it."""
        return self._reader.vendor

    @property
    def tiff(self) -> TiffPyramid | None:
        """The stored tiles of the file; None if OpenSlide reads it."""
        return self._reader.tiff if isinstance(self._reader, TiffReader) else None

    @property
    def dimensions(self) -> tuple[int, int]:
        """(width, height) of level 0 in level-0 px."""
        return self.level_dimensions[0]

    def choose_resolution(
        self, *, level: int | None = None, mpp: float | None = None, downsample: float | None = None
    ) -> Resolution:
        """Choose a working resolution; give exactly one of the arguments.

        By µm/px or downsample, the nearest finer level is resampled. A level within 1 % is used unchanged, and
        the result states its true µm/px.

        Args:
            level: Number of a pyramid level.
            mpp: µm per working px (the geometric mean of x and y if those of the slide differ).
            downsample: Level-0 px per working px, 0.9 or more. It needs no µm/px.

        Raises:
            SlideError: If the slide has no such level, its µm/px is unknown, or `mpp` is finer than the scan by
                more than a tenth.
            ValueError: If not exactly one argument is given, `mpp` is not positive, or `downsample` is under 0.9.
        """
        if [level, mpp, downsample].count(None) != 2:
            raise ValueError("give either a level, µm/px or a downsample")
        if level is not None:
            self._check_level(level)
            return self._native(level)
        if mpp is not None:
            downsample = self._downsample_at(mpp)
        if downsample is None or not FINEST <= downsample < math.inf:
            raise ValueError(f"downsample must be {FINEST} or more, not {downsample}")
        finer = [level for level in self.usable_levels if self.level_downsamples[level] <= downsample * (1 + SNAP)]
        nearest = max(finer, key=lambda number: self.level_downsamples[number], default=0)
        at_level = self.level_downsamples[nearest]
        if abs(downsample / at_level - 1) <= SNAP:
            return self._native(nearest)
        width, height = (ceil_px(side / downsample) for side in self.dimensions)
        return Resolution(downsample, width, height, nearest, at_level, self._mpp_at(downsample))

    def _downsample_at(self, mpp: float) -> float:
        if not 0 < mpp < math.inf:
            raise ValueError(f"µm/px must be positive, not {mpp}")
        if self.mpp is None:
            raise SlideError(f"{self.path}: cannot work at {mpp:g} µm/px: {self.mpp_note}, or use data.level to train")
        scanned = mean_mpp(self.mpp)
        if mpp / scanned < FINEST:
            raise SlideError(
                f"{self.path}: {mpp:g} µm/px is finer than the scan, {scanned:.4g} µm/px at level 0; "
                f"train with data.mpp={scanned:.4g} or coarser, or leave the slide out"
            )
        return mpp / scanned

    def _native(self, level: int) -> Resolution:
        downsample = self.level_downsamples[level]
        width, height = self.level_dimensions[level]
        return Resolution(downsample, width, height, level, downsample, self._mpp_at(downsample))

    def _mpp_at(self, downsample: float) -> tuple[float, float] | None:
        return None if self.mpp is None else (self.mpp[0] * downsample, self.mpp[1] * downsample)

    def _check_level(self, level: int) -> None:
        last = len(self.level_dimensions) - 1
        if not 0 <= level <= last:
            raise SlideError(
                f"{self.path}: has no level {level}, its levels are 0 to {last}; train with another data.level, "
                "fetch the file again if it should have more, or leave the slide out"
            )
        if level not in self.usable_levels:
            raise SlideError(
                f"{self.path}: level {level} is {self.level_dimensions[level]}, no uniform shrinking of "
                f"{self.dimensions}; choose data.level from {list(self.usable_levels)} in training, "
                "or leave the slide out"
            )

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read a window of a level.

        Args:
            location: (x, y) of its top-left corner in level-0 px; may be negative.
            level: Pyramid level.
            size: (width, height) in px of that level.

        Returns:
            (height, width, 3) uint8 RGB, white past the edge of the slide and in areas that were not scanned.

        Raises:
            SlideError: If there is no such level, the size is not positive, or the file cannot be read there.
        """
        self._check_level(level)
        self._check_size(size)
        downsample = self.level_downsamples[level]
        x, y = round_px(location[0] / downsample), round_px(location[1] / downsample)
        return self._read_level(level, x, y, size[0], size[1])

    def read(
        self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int], *, keep: bool = True
    ) -> NDArray[np.uint8]:
        """Read a window at a working resolution.

        Args:
            resolution: A resolution of this slide, from `choose_resolution`.
            location: (x, y) of its top-left corner in level-0 px; may be negative.
            size: (width, height) in working px.
            keep: Cache decoded tiles for later reads nearby. Give False for a single read of a large area.

        Returns:
            (height, width, 3) uint8 RGB, white past the edge. A resolution that is not that of a level is
            averaged over the area of each working px. Source px are read in blocks, so that the output bounds
            the memory. Each edge of a block is rounded to a whole px of the source level.

        Raises:
            SlideError: If the size is not positive, or the file cannot be read there.
        """
        level = resolution.level
        self._check_size(size)
        if not resolution.resampled:
            at = round_px(location[0] / resolution.downsample), round_px(location[1] / resolution.downsample)
            return self._read_level(level, *at, *size, keep=keep)
        # Level px per level-0 px, by axis: the level's rounded size makes them differ a little.
        scale_x, scale_y = (
            short / full for short, full in zip(self.level_dimensions[level], self.dimensions, strict=True)
        )
        left, factor_x = location[0] * scale_x, resolution.downsample * scale_x
        top, factor_y = location[1] * scale_y, resolution.downsample * scale_y
        out = np.empty((size[1], size[0], 3), np.uint8)
        how = cv2.INTER_AREA if resolution.downsample > resolution.level_downsample else cv2.INTER_LINEAR
        for x, y, width, height in blocks(size[0], size[1], max(factor_x, factor_y)):
            x0, y0 = round_px(left + x * factor_x), round_px(top + y * factor_y)
            x1, y1 = round_px(left + (x + width) * factor_x), round_px(top + (y + height) * factor_y)
            pixels = self._read_level(level, x0, y0, max(1, x1 - x0), max(1, y1 - y0), keep=keep)
            out[y : y + height, x : x + width] = cv2.resize(pixels, (width, height), interpolation=how)
            del pixels  # otherwise two blocks are in memory during the next read
        return out

    def overview(self, max_side: int = 2048) -> tuple[NDArray[np.uint8], Resolution]:
        """Read the whole slide at a small size.

        A level between half of `max_side` and `max_side` is used unchanged. Otherwise the next finer one is shrunk
        to `max_side`, block by block. A slide smaller than `max_side` is read at level 0.

        Args:
            max_side: Largest width and height of the result in working px.

        Returns:
            The overview, (h, w, 3) uint8 RGB, and its resolution.

        Raises:
            SlideError: If the file cannot be read.
        """
        fitting = [level for level in self.usable_levels if max(self.level_dimensions[level]) <= max_side]
        largest = max(fitting, key=lambda level: max(self.level_dimensions[level]), default=None)
        if largest is not None and (largest == 0 or 2 * max(self.level_dimensions[largest]) >= max_side):
            resolution = self._native(largest)
        else:
            resolution = self.choose_resolution(downsample=max(self.dimensions) / max_side)
        return self.read(resolution, (0, 0), resolution.size, keep=False), resolution

    def _check_size(self, size: tuple[int, int]) -> None:
        if min(size) <= 0:
            raise SlideError(f"{self.path}: asked for {size[0]} x {size[1]} px; both must be at least 1")

    def _read_level(
        self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True
    ) -> NDArray[np.uint8]:
        """Read a window in level px; any part of it may be past the edge."""
        level_width, level_height = self.level_dimensions[level]
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, level_width), min(y + height, level_height)
        if (x0, y0, x1, y1) == (x, y, x + width, y + height):
            return self._read_inside(level, x, y, width, height, keep=keep)
        out = np.full((height, width, 3), 255, np.uint8)
        if x1 > x0 and y1 > y0:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._read_inside(level, x0, y0, x1 - x0, y1 - y0, keep=keep)
        return out

    def _read_inside(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool) -> NDArray[np.uint8]:
        try:
            return self._reader.read(level, x, y, width, height, keep=keep)
        except (openslide.OpenSlideError, OSError, ValueError) as exc:
            raise SlideError(
                f"{self.path}: cannot read {width} x {height} px at ({x}, {y}) of level {level}: {exc}; "
                "the file is damaged there, fetch it again or leave the slide out"
            ) from exc

    def close(self) -> None:
        """Close the file in this process."""
        self._reader.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.dimensions
        return f"Slide({str(self.path)!r}, {width} x {height} px, {len(self.level_dimensions)} levels)"
