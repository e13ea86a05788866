"""Whether all pixels of a slide are there, without reading them all.

Opening a TIFF has already shown that its tables list every tile and that each lies within the file. What is left is
damage within: a stretch that was never written, or written over. Three looks find it:

- Every JPEG tile begins with the marker SOI and ends with EOI (ITU-T T.81, section B.2.1). A stretch of wrong bytes
  as long as two tiles spoils a marker for certain.
- The levels that are small are decoded wholly.
- Of the other tiles a few are decoded, those at a random byte of each of as many runs of equal length in the file: a
  stretch as long as two runs holds such a byte for certain.

None of them sees wrong bytes within a single tile that is not sampled, nor wrong pixels that decode, nor tiles that
the file says are empty. `deep` decodes every tile, which sees what the codec calls an error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panda.errors import SlideError
from panda.wsi.geometry import blocks, round_px
from panda.wsi.slide import Slide
from panda.wsi.tiff.pyramid import TiffPyramid

SAMPLES = 16
"""Tiles decoded of the larger levels."""

SMALL_PX = 4_000_000
"""Levels up to this area are decoded wholly."""

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_TAIL = 16  # bytes at a tile's end that may hold EOI: some writers pad
_WINDOW = 256
_BLOCK = 2048


def find_unreadable(slide: Slide, *, seed: int, deep: bool = False) -> str | None:
    """Look for pixels that cannot be read.

    Args:
        slide: The slide.
        seed: Of the tiles that are sampled.
        deep: Decode everything, which takes as long as reading the whole slide.

    Returns:
        What is wrong, and where; None where nothing was seen.
    """
    if (tiff := slide.tiff) is not None and (fault := _spoilt_markers(tiff)) is not None:
        return fault
    rng = np.random.default_rng(seed)
    try:
        for level in slide.usable_levels:
            width, height = slide.level_dimensions[level]
            if deep or width * height <= SMALL_PX:
                for window in blocks(width, height, 1.0, _BLOCK):
                    _read(slide, level, window)
            elif tiff is None:
                _sample_windows(slide, level, rng)
        if tiff is not None and not deep:
            _sample_tiles(slide, tiff, rng)
    except SlideError as error:
        return str(error)
    return None


def _read(slide: Slide, level: int, window: tuple[int, int, int, int]) -> None:
    """Read x, y, width, height in level px, for its error only."""
    x, y, width, height = window
    downsample = slide.level_downsamples[level]
    slide.read_region((round_px(x * downsample), round_px(y * downsample)), level, (width, height))


def _spoilt_markers(tiff: TiffPyramid) -> str | None:
    """Say how many JPEG tiles of a level lack the markers at their ends."""
    for number, level in enumerate(tiff.levels):
        if not tiff.is_jpeg(number):
            continue
        there = np.flatnonzero(level.byte_counts[: level.columns * level.rows])
        begun, ended = np.zeros(len(there), np.bool_), np.zeros(len(there), np.bool_)
        try:
            for place, index in enumerate(there.tolist()):
                offset, count = int(level.offsets[index]), int(level.byte_counts[index])
                begun[place] = tiff.stored(offset, 2) == _SOI
                tail = min(count, _TAIL)
                ended[place] = _EOI in tiff.stored(offset + count - tail, tail)
        except OSError as error:
            return f"level {number} cannot be read: {error}"
        # Decoders do without EOI, so a writer that leaves it out everywhere is let be.
        spoilt = ~begun | (~ended if ended.mean() > 0.5 else np.zeros_like(ended))
        if spoilt.any():
            first = divmod(int(there[spoilt][0]), level.columns)
            return (
                f"{int(spoilt.sum())} of {len(there)} tiles of level {number} do not begin or end as JPEG does, the "
                f"first in row {first[0]}, column {first[1]}"
            )
    return None


def _sample_tiles(slide: Slide, tiff: TiffPyramid, rng: np.random.Generator) -> None:
    """Decode the tile at a random byte of each of `SAMPLES` runs of the tiles that `find_unreadable` leaves out."""
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
        _read(slide, number, (x, y, *size))


def _sample_windows(slide: Slide, level: int, rng: np.random.Generator) -> None:
    """Read one window out of each of `SAMPLES` runs of the windows of a level, row by row."""
    width, height = slide.level_dimensions[level]
    columns, rows = -(-width // _WINDOW), -(-height // _WINDOW)
    for run in np.array_split(np.arange(columns * rows), min(SAMPLES, columns * rows)):
        row, column = divmod(int(rng.choice(run)), columns)
        x, y = column * _WINDOW, row * _WINDOW
        _read(slide, level, (x, y, min(_WINDOW, width - x), min(_WINDOW, height - y)))
