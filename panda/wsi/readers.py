"""What reads a slide's pixels: OpenSlide, or the TIFF reader where OpenSlide does not know the layout."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import openslide
from numpy.typing import NDArray

from panda.errors import SlideError
from panda.wsi.geometry import round_px
from panda.wsi.handles import PerProcess
from panda.wsi.tiff.pyramid import TiffPyramid
from panda.wsi.tiff.tables import BrokenTiffError

ReaderName = Literal["auto", "openslide", "fast"]
FAST_VENDORS = ("generic-tiff", "aperio")
"""OpenSlide's names of the layouts whose tiles lie in the file as they are shown."""


class SlideReader(Protocol):
    """Pixels of a slide, level by level. Readers are thread-safe and picklable, and open in each process."""

    name: Literal["openslide", "fast"]
    level_dimensions: tuple[tuple[int, int], ...]
    stated_mpp: tuple[float, float] | None
    """µm per level-0 px as the format's own metadata state it, not yet judged."""
    mpp_note: str
    """Where `stated_mpp` comes from, or why there is none."""

    vendor: str | None
    """OpenSlide's name of the layout; None where OpenSlide does not take the file."""

    def read(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True) -> NDArray[np.uint8]:
        """Read a window that lies within a level, in level px, as (height, width, 3) RGB over white.

        What was decoded for it need not be kept for later reads where `keep` is False.
        """

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""


def open_reader(path: Path, reader: ReaderName) -> SlideReader:
    """Open a slide for reading.

    Args:
        path: The slide.
        reader: `"openslide"`: OpenSlide and nothing else. `"fast"`: the TIFF reader and nothing else.
            `"auto"`: the TIFF reader where it shows the same levels and pixels as OpenSlide, or where OpenSlide
            does not take the file (levels in sub-IFDs, strips instead of tiles); else OpenSlide.

    Raises:
        SlideError: No reader opens it.
    """
    fast: TiffReader | None = None
    try:
        fast = TiffReader(path)
    except BrokenTiffError as exc:
        raise SlideError(f"{path}: {exc}; fetch it anew or leave the slide out") from exc
    except (OSError, ValueError) as exc:
        unread = exc
    if reader == "fast":
        if fast is None:
            raise SlideError(
                f"{path}: the fast reader cannot open it: {unread}; give data.reader=auto (infer.py: reader=auto)"
            ) from unread
        return fast
    try:
        reference = OpenSlideReader(path)
    except (openslide.OpenSlideError, OSError, ValueError) as exc:
        refused = f"{path}: OpenSlide cannot open it ({exc})"
        if reader == "openslide":
            raise SlideError(f"{refused}; is it whole, and in a format OpenSlide reads?") from exc
        if fast is None:
            raise SlideError(f"{refused}, nor can the TIFF reader ({unread}); is it whole, and a slide?") from exc
        return fast
    if reader == "auto" and fast is not None and _same(fast, reference):
        reference.close()
        fast.stated_mpp, fast.mpp_note, fast.vendor = reference.stated_mpp, reference.mpp_note, reference.vendor
        return fast
    if fast is not None:
        fast.close()
    return reference


def _same(fast: TiffReader, reference: OpenSlideReader) -> bool:
    """Whether the TIFF reader is sure to show what OpenSlide shows."""
    known = reference.vendor in FAST_VENDORS and fast.like_openslide
    return known and fast.level_dimensions == reference.level_dimensions


class OpenSlideReader:
    """Read through OpenSlide.

    Args:
        path: The slide.

    Raises:
        openslide.OpenSlideError: It cannot be opened.
        ValueError: A level is empty.
    """

    name: Literal["openslide", "fast"] = "openslide"

    def __init__(self, path: Path) -> None:
        self._handle: PerProcess[Any] = PerProcess(partial(openslide.OpenSlide, path))
        slide = self._handle.get()
        self.level_dimensions = tuple((int(w), int(h)) for w, h in slide.level_dimensions)
        if not self.level_dimensions or min(min(size) for size in self.level_dimensions) <= 0:
            raise ValueError(f"its levels are {self.level_dimensions}, one of them empty")
        self._downsamples = tuple(float(downsample) for downsample in slide.level_downsamples)
        self.vendor: str | None = str(slide.properties.get(openslide.PROPERTY_NAME_VENDOR))
        self.stated_mpp, self.mpp_note = _openslide_mpp(slide.properties)

    def read(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True) -> NDArray[np.uint8]:
        """Read a window in level px as RGB over white; OpenSlide itself says what it keeps, up to 32 MiB.

        Raises:
            openslide.OpenSlideError: The file cannot be read there.
        """
        slide = self._handle.get()
        # OpenSlide takes level-0 px and divides by its own downsample, which need not be the one used here.
        location = round_px(x * self._downsamples[level]), round_px(y * self._downsamples[level])
        try:
            rgba = np.asarray(slide.read_region(location, level, (width, height)))
        except openslide.OpenSlideError:
            self._handle.drop(slide)  # OpenSlide refuses every later read with a handle that has failed once
            raise
        return over_white(rgba)

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
        self._handle.close()


class TiffReader:
    """Read a TIFF without OpenSlide.

    Args:
        path: The slide.

    Raises:
        ValueError: It is no TIFF that can be read.
        OSError: The file cannot be read.
    """

    name: Literal["openslide", "fast"] = "fast"
    stated_mpp: tuple[float, float] | None
    vendor: str | None = None

    def __init__(self, path: Path) -> None:
        self.tiff = TiffPyramid(path, blank=255)
        if self.tiff.colours is None:
            raise ValueError(
                f"it has {self.tiff.samples} channels, neither RGB nor RGB with straight alpha; write it as RGB"
            )
        self.like_openslide = self.tiff.like_openslide
        self.level_dimensions = self.tiff.level_dimensions
        self.stated_mpp, self.mpp_note = None, "it was opened without OpenSlide"

    def read(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True) -> NDArray[np.uint8]:
        """Read a window in level px as RGB over white.

        Raises:
            ValueError: The pixels do not decode.
            OSError: The file cannot be read.
        """
        pixels = self.tiff.read(level, x, y, width, height, keep=keep)
        return over_white(pixels) if self.tiff.colours == "RGBA" else pixels

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""
        self.tiff.close()


def over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay straight (not premultiplied) RGBA over white, the colour of glass.

    Args:
        rgba: (h, w, 4) uint8.

    Returns:
        (h, w, 3) uint8, contiguous; white where alpha is 0.
    """
    rgb = np.ascontiguousarray(rgba[..., :3])
    for row in np.flatnonzero((rgba[..., 3] < 255).any(axis=1)):  # row by row, in little memory
        alpha = rgba[row, :, 3:].astype(np.uint32)
        rgb[row] = (rgb[row] * alpha + 255 * (255 - alpha) + 127) // 255
    return rgb


def _openslide_mpp(properties: Any) -> tuple[tuple[float, float] | None, str]:
    """What OpenSlide states as µm per level-0 px, or None and the reason."""
    texts = [properties.get(name) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    if None in texts:
        return None, "OpenSlide finds no µm/px in it"
    try:
        return (float(texts[0]), float(texts[1])), "OpenSlide"
    except ValueError:
        return None, f"OpenSlide finds {texts[0]!r}, {texts[1]!r} for µm/px, which are no numbers"
