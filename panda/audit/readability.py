"""Find pixels of a slide that cannot be read, without reading all pixels.

Opening a TIFF has already checked that its tables list every tile, and that each tile is within the file. The remaining
damage is a range of bytes that was not written, or was overwritten. Three checks find it:

- Every JPEG tile begins with the marker SOI and ends with EOI (ITU-T T.81, section B.2.1). A damaged range as long as
  two tiles always destroys a marker.
- Small levels are decoded completely.
- A few of the other tiles are decoded: the file is divided into runs of equal length, and the tile at a random byte of
  each run is decoded. A damaged range as long as two runs always has such a byte.

These checks miss wrong bytes within a tile that is not decoded, wrong pixels that decode without an error, and tiles
that the file marks as empty. `deep` decodes every tile and finds all errors of the codec.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panda.errors import SlideError, raise_exhaustion
from panda.wsi.geometry import cut_blocks, round_px
from panda.wsi.slide import Slide
from panda.wsi.tiff.pyramid import TiffPyramid

SAMPLES = 16
"""Number of decoded tiles of the larger levels."""

SMALL_PX = 4_000_000
"""Largest area in px of a level that is decoded completely."""

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_TAIL = 16  # bytes at a tile's end that may hold EOI: some writers pad
_WINDOW = 256
_BLOCK = 2048


def find_unreadable(slide: Slide, *, seed: int, deep: bool = False) -> str | None:
    """Return the fault and position of pixels that cannot be read; None if no fault is found.

    `seed` chooses the random tiles. With `deep` all tiles are decoded, which takes as long as reading the whole slide.
    """
    if (tiff := slide.tiff) is not None and (fault := _find_broken_markers(tiff)) is not None:
        return fault
    rng = np.random.default_rng(seed)
    try:
        for level in slide.usable_levels:
            width, height = slide.level_dimensions[level]
            if deep or width * height <= SMALL_PX:
                for window in cut_blocks(width, height, _BLOCK):
                    _try_window(slide, level, window)
            elif tiff is None:
                _sample_windows(slide, level, rng)
        if tiff is not None and not deep:
            _sample_tiles(slide, tiff, rng)
    except SlideError as error:
        return str(error)
    return None


def _try_window(slide: Slide, level: int, window: tuple[int, int, int, int]) -> None:
    """Read a window (x, y, width, height in level px) only for its error."""
    x, y, width, height = window
    downsample = slide.level_downsamples[level]
    slide.read_region((round_px(x * downsample), round_px(y * downsample)), level, (width, height))


def _find_broken_markers(tiff: TiffPyramid) -> str | None:
    """Return how many JPEG tiles of a level lack the markers at their ends, or None if none does."""
    for number, level in enumerate(tiff.levels):
        if not tiff.is_jpeg(number):
            continue
        there = np.flatnonzero(level.byte_counts[: level.columns * level.rows])
        begun, ended = np.zeros(len(there), np.bool_), np.zeros(len(there), np.bool_)
        try:
            for place, index in enumerate(there.tolist()):
                offset, count = int(level.offsets[index]), int(level.byte_counts[index])
                begun[place] = tiff.read_bytes(offset, 2) == _SOI
                tail = min(count, _TAIL)
                ended[place] = _EOI in tiff.read_bytes(offset + count - tail, tail)
        except OSError as error:
            raise_exhaustion(error)
            return f"level {number} cannot be read: {error}"
        # Decoders do not need EOI, so a file without any EOI is accepted.
        broken = ~begun | (~ended if ended.mean() > 0.5 else np.zeros_like(ended))
        if broken.any():
            first = divmod(int(there[broken][0]), level.columns)
            return (
                f"{int(broken.sum())} of {len(there)} tiles of level {number} do not begin or end as JPEG does, the "
                f"first in row {first[0]}, column {first[1]}"
            )
    return None


def _sample_tiles(slide: Slide, tiff: TiffPyramid, rng: np.random.Generator) -> None:
    """Decode the tile at a random byte of each of `SAMPLES` runs of the tiles of larger levels."""
    places: list[NDArray[np.int64]] = [np.empty((0, 4), np.int64)]
    for number, level in enumerate(tiff.levels):
        if level.width * level.height > SMALL_PX and number in slide.usable_levels:
            there = np.flatnonzero(level.byte_counts[: level.columns * level.rows])
            of_level = [np.full_like(there, number), there, level.offsets[there], level.byte_counts[there]]
            places.append(np.stack(of_level, axis=1))
    of_file = np.concatenate(places)
    if not len(of_file):
        return
    of_file = of_file[np.argsort(of_file[:, 2], kind="stable")]
    ends = np.cumsum(of_file[:, 3])
    at = (np.arange(SAMPLES) + rng.random(SAMPLES)) * (ends[-1] / SAMPLES)
    for place in np.unique(np.searchsorted(ends, at, side="right")):
        number, index = (int(value) for value in of_file[place, :2])
        level = tiff.levels[number]
        x, y = index % level.columns * level.segment_width, index // level.columns * level.segment_height
        size = min(level.segment_width, level.width - x), min(level.segment_height, level.height - y)
        left, top = slide.level_origins[number]
        _try_window(slide, number, (x - left, y - top, *size))


def _sample_windows(slide: Slide, level: int, rng: np.random.Generator) -> None:
    """Read one random window of each of `SAMPLES` runs of the windows of a level, row by row."""
    width, height = slide.level_dimensions[level]
    columns, rows = -(-width // _WINDOW), -(-height // _WINDOW)
    for run in np.array_split(np.arange(columns * rows), min(SAMPLES, columns * rows)):
        row, column = divmod(int(rng.choice(run)), columns)
        x, y = column * _WINDOW, row * _WINDOW
        _try_window(slide, level, (x, y, min(_WINDOW, width - x), min(_WINDOW, height - y)))
