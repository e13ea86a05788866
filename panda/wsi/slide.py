"""A whole slide: its levels, its resolution, and its pixels at any working resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray

from panda.errors import SlideError
from panda.wsi.geometry import Resolution, axis_scales, ceil_px, cut_blocks, mean_mpp, round_px
from panda.wsi.levels import Levels
from panda.wsi.mpp import MPP_MAX, MPP_MIN, find_mpp, is_plausible
from panda.wsi.readers import ReaderName, TiffReader, check_slide_file, open_reader

SNAP = 0.01
"""Largest relative difference between a level and a requested resolution at which the level is not resampled."""
FINEST = 0.9
"""Smallest downsample of level 0. A finer one would show detail that was never scanned."""


@dataclass(frozen=True)
class SlideOptions:
    """How slides are opened.

    Attributes:
        reader: `"auto"`: the fast reader if it shows the same pixels as OpenSlide, else OpenSlide. `"openslide"`
            or `"fast"`: only this one (see `panda.wsi.readers.open_reader`).
        mpp_override: µm per level-0 px if the file states none or an impossible value; None for unknown. A
            plausible value in the file comes first: OpenSlide's, then the TIFF resolution tags, then its OME-XML.
        allow_unknown_mpp: Read a slide of unknown µm/px at the level at which a network was trained, although the
            network knows its µm/px. False refuses it.
    """

    reader: ReaderName = "auto"
    mpp_override: float | None = None
    allow_unknown_mpp: bool = False

    def faults(self) -> list[str]:
        """Return one sentence a fault."""
        faults = []
        if self.reader not in get_args(ReaderName):
            faults.append(f"reader={self.reader} must be {', '.join(get_args(ReaderName))}")
        if self.mpp_override is not None and not is_plausible(self.mpp_override):
            faults.append(
                f"mpp_override={self.mpp_override} must be {MPP_MIN} to {MPP_MAX:g} µm per level-0 px, or null"
            )
        return faults

    def open(self, path: str | Path, slide_id: str | None = None) -> Slide:
        """Open a slide with these options, see `Slide.open`."""
        return Slide.open(path, self, slide_id)


class Slide:
    """A slide, opened with `Slide.open`.

    Each process that reads the slide opens the file for itself. Several threads may read at once, and a slide can
    be pickled to workers. Closing releases the file; a later read opens it again.

    If the file states bounds (`openslide.bounds-*`: MIRAX, Leica SCN, TIFFs with missing tiles), the slide is this part
    of the file, as QuPath shows it. All frames begin at the corner of the bounds, and the rest of the file reads white.

    Attributes:
        path: The file.
        slide_id: Its name in results: the id in its table, or the file's name without its suffix.
        reader_name: The reader in use.
        vendor: OpenSlide's name of the file's layout; None if OpenSlide did not open it.
        tiff: The stored tiles of the file; None if OpenSlide reads it.
        dimensions: (width, height) of level 0 in level-0 px.
        level_dimensions: (width, height) of each level in px of that level, level 0 first.
        level_downsamples: Level-0 px per px of each level, see `panda.wsi.geometry.level_scale`.
        usable_levels: The levels that shrink level 0 uniformly, nearly always all. Only these can be read.
        mpp: µm per level-0 px as (x, y); None if unknown.
        mpp_source: Where `mpp` comes from; None if unknown.
        mpp_note: A sentence with the source, or with the reason and the remedy if `mpp` is unknown.
        stated_mpp: µm per level-0 px that the file states, even if impossible; None if it states none.
        allow_unknown_mpp: See `SlideOptions`.
        bounds: x, y, width and height of the slide in level-0 px of the file; None if it is the whole file.
        file_level_dimensions: (width, height) of each level of the file in px of that level.
        level_origins: (x, y) of the slide's corner in px of each level of the file.
    """

    def __init__(self, path: Path, options: SlideOptions, slide_id: str | None = None) -> None:
        check_slide_file(path)
        self._reader = reader = open_reader(path, options.reader)
        self.path, self.slide_id = path, slide_id or path.stem
        self.reader_name, self.vendor = reader.name, reader.vendor
        self.tiff = reader.tiff if isinstance(reader, TiffReader) else None
        self.mpp, self.mpp_source, self.mpp_note, self.stated_mpp = find_mpp(
            path, reader.stated_mpp, reader.mpp_note, options.mpp_override
        )
        self.allow_unknown_mpp = options.allow_unknown_mpp
        self.bounds = reader.bounds
        levels = Levels.cut(reader.level_dimensions, reader.bounds)
        self.file_level_dimensions, self.level_origins = levels.file_sizes, levels.origins
        self.level_dimensions, self.level_downsamples = levels.sizes, levels.downsamples
        self.usable_levels = levels.usable
        self.dimensions = self.level_dimensions[0]

    @classmethod
    def open(cls, path: str | Path, options: SlideOptions = SlideOptions(), slide_id: str | None = None) -> Slide:
        """Open a slide, under the name of its file if no id is given.

        Raises:
            SlideError: If the file is missing, is a folder or cannot be opened, or an option is out of range.
        """
        if faults := options.faults():
            raise SlideError("; ".join(faults))
        return cls(Path(path), options, slide_id)

    def choose_resolution(
        self, *, level: int | None = None, mpp: float | None = None, downsample: float | None = None
    ) -> Resolution:
        """Choose a working resolution by exactly one of the arguments.

        By µm/px or downsample, the nearest finer level is resampled. A level within 1 % is used unchanged, and
        the result states its true µm/px.

        Args:
            level: Number of a pyramid level.
            mpp: µm per working px, the geometric mean of x and y.
            downsample: Level-0 px per working px, 0.9 or more. It needs no µm/px.

        Raises:
            SlideError: If the slide has no such level, its µm/px is unknown, or `mpp` is over a tenth finer than the
                scan.
            ValueError: If not exactly one argument is given, `mpp` is not positive, or `downsample` is under 0.9.
        """
        if [level, mpp, downsample].count(None) != 2:
            raise ValueError("give either a level, µm/px or a downsample")
        if level is not None:
            self._check_level(level)
            return self._resolve_level(level)
        if mpp is not None:
            downsample = self._find_downsample(mpp)
        if downsample is None or not FINEST <= downsample < math.inf:
            raise ValueError(f"downsample must be {FINEST} or more, not {downsample}")
        finer = [level for level in self.usable_levels if self.level_downsamples[level] <= downsample * (1 + SNAP)]
        nearest = max(finer, key=lambda number: self.level_downsamples[number], default=0)
        if abs(downsample / self.level_downsamples[nearest] - 1) <= SNAP:
            return self._resolve_level(nearest)
        width, height = (ceil_px(side / downsample) for side in self.dimensions)
        return self._build_resolution(downsample, width, height, nearest)

    def _find_downsample(self, mpp: float) -> float:
        if not 0 < mpp < math.inf:
            raise ValueError(f"µm/px must be positive, not {mpp}")
        if self.mpp is None:
            raise SlideError(f"{self.path}: cannot work at {mpp:g} µm/px: {self.mpp_note}, or use data.level to train")
        scanned = mean_mpp(self.mpp)
        if mpp / scanned < FINEST:
            raise SlideError(
                f"{self.path}: {mpp:g} µm/px is finer than the scan, {scanned:.4g} µm/px at level 0; "
                f"give {scanned:.4g} or more (data.mpp in training, mpp in features.py), or leave the slide out"
            )
        return mpp / scanned

    def _resolve_level(self, level: int) -> Resolution:
        return self._build_resolution(self.level_downsamples[level], *self.level_dimensions[level], level)

    def _build_resolution(self, downsample: float, width: int, height: int, level: int) -> Resolution:
        mpp = None if self.mpp is None else (self.mpp[0] * downsample, self.mpp[1] * downsample)
        # Rounded, because a side that is a whole number of px may differ from it by the error of the division.
        part_x, part_y = (
            min(1.0, max(0.0, round(side / downsample - (count - 1), 6)))
            for side, count in zip(self.dimensions, (width, height), strict=True)
        )
        return Resolution(downsample, width, height, level, self.level_downsamples[level], mpp, (part_x, part_y))

    def _check_level(self, level: int) -> None:
        last = len(self.level_dimensions) - 1
        if not 0 <= level <= last:
            raise SlideError(
                f"{self.path}: has no level {level}, its levels are 0 to {last}; in training give another data.level "
                "or data.mpp. infer.py needs no level if µm/px is known: give mpp_override. Fetch the file again if it "
                "should have more levels, or leave it out. Levels in sub-IFDs (OME-TIFF) need data.reader=auto "
                "(infer.py, features.py: reader=auto)"
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
        return self.read(self.choose_resolution(level=level), location, size)

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
            (height, width, 3) uint8 RGB, white past the edge. Between levels, each working px is the mean over its
            area. Source px are read in blocks, which bounds the memory; their edges are rounded to whole px.

        Raises:
            SlideError: If the size is not positive, or the file cannot be read there.
        """
        level = resolution.level
        if min(size) <= 0:
            raise SlideError(f"{self.path}: asked for {size[0]} x {size[1]} px; both must be at least 1")
        if not resolution.is_resampled:
            x, y = (
                round_px(start / resolution.downsample) + origin
                for start, origin in zip(location, self.level_origins[level], strict=True)
            )
            return self._read_level(level, x, y, *size, keep=keep)
        scale_x, scale_y = axis_scales(self.file_level_dimensions[0], self.file_level_dimensions[level])
        x0, y0 = self.level_origins[0]
        left, factor_x = (location[0] + x0) / scale_x, resolution.downsample / scale_x
        top, factor_y = (location[1] + y0) / scale_y, resolution.downsample / scale_y
        out = np.empty((size[1], size[0], 3), np.uint8)
        how = cv2.INTER_AREA if resolution.downsample > resolution.level_downsample else cv2.INTER_LINEAR
        for x, y, width, height in cut_blocks(*size, factor=max(factor_x, factor_y)):
            x0, y0 = round_px(left + x * factor_x), round_px(top + y * factor_y)
            x1, y1 = round_px(left + (x + width) * factor_x), round_px(top + (y + height) * factor_y)
            pixels = self._read_level(level, x0, y0, max(1, x1 - x0), max(1, y1 - y0), keep=keep)
            out[y : y + height, x : x + width] = cv2.resize(pixels, (width, height), interpolation=how)
            del pixels  # otherwise two blocks are in memory during the next read
        return out

    def overview(self, max_side: int = 2048) -> tuple[NDArray[np.uint8], Resolution]:
        """Read the whole slide at a small size.

        A level between half of `max_side` and `max_side`, or a level 0 that is smaller, is used unchanged. Otherwise
        the next finer level is shrunk to `max_side`, block by block.

        Args:
            max_side: Largest width and height of the result in working px.

        Returns:
            The overview, (h, w, 3) uint8 RGB, and its resolution.
        """
        fitting = [level for level in self.usable_levels if max(self.level_dimensions[level]) <= max_side]
        largest = max(fitting, key=lambda level: max(self.level_dimensions[level]), default=None)
        if largest is not None and (largest == 0 or 2 * max(self.level_dimensions[largest]) >= max_side):
            resolution = self._resolve_level(largest)
        else:
            resolution = self.choose_resolution(downsample=max(self.dimensions) / max_side)
        return self.read(resolution, (0, 0), resolution.size, keep=False), resolution

    def _read_level(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool) -> NDArray[np.uint8]:
        """Read a window in px of the file's level; any part of it may be past the edge of the slide."""
        (left, top), (level_width, level_height) = self.level_origins[level], self.level_dimensions[level]
        x0, y0 = max(x, left), max(y, top)
        x1, y1 = min(x + width, left + level_width), min(y + height, top + level_height)
        if x1 <= x0 or y1 <= y0:
            return np.full((height, width, 3), 255, np.uint8)
        try:
            pixels = self._reader.read(level, x0, y0, x1 - x0, y1 - y0, keep=keep)
        except (openslide.OpenSlideError, OSError, ValueError) as exc:
            raise SlideError(
                f"{self.path}: cannot read {x1 - x0} x {y1 - y0} px at ({x0}, {y0}) of level {level}: {exc}; "
                "the file is damaged there, fetch it again or leave the slide out"
            ) from exc
        if (x1 - x0, y1 - y0) == (width, height):
            return pixels
        return np.pad(pixels, ((y0 - y, y + height - y1), (x0 - x, x + width - x1), (0, 0)), constant_values=255)

    def close(self) -> None:
        """Close the file in this process."""
        self._reader.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.dimensions
        return f"Slide({str(self.path)!r}, {width} x {height} px, {len(self.level_dimensions)} levels)"


@dataclass(frozen=True)
class ResolutionRequest:
    """The working resolution that a user asks for: a pyramid level, or µm per working px; one of them is None."""

    level: int | None = None
    mpp: float | None = None

    def __str__(self) -> str:
        return f"level {self.level}" if self.mpp is None else f"{self.mpp:g} µm/px"

    def resolve(self, slide: Slide) -> Resolution:
        """Return the working resolution of a slide, see `Slide.choose_resolution`."""
        return slide.choose_resolution(level=self.level, mpp=self.mpp)
