"""Readers of a slide's pixels: OpenSlide, and the faster TIFF reader for layouts with the same pixels in both."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openslide
from numpy.typing import NDArray

from panda.errors import SlideError
from panda.wsi.geometry import round_px
from panda.wsi.handles import PerProcess
from panda.wsi.levels import Bounds
from panda.wsi.tiff.conversions import describe_orientation, suggest_bioformats, suggest_vips
from panda.wsi.tiff.pyramid import TiffPyramid
from panda.wsi.tiff.tables import BrokenTiffError, UnshownTiffError

ReaderName = Literal["auto", "openslide", "fast"]
FAST_VENDORS = ("generic-tiff", "aperio")
"""OpenSlide's names of the layouts whose tiles are stored as they are shown."""


_PLAIN = ("generic-tiff", None)  # layouts without rules of their own


def open_reader(path: Path, reader: ReaderName) -> OpenSlideReader | TiffReader:
    """Open a slide for reading.

    Args:
        path: The slide.
        reader: `"openslide"`: only OpenSlide. `"fast"`: only the TIFF reader. `"auto"`: the TIFF reader if it shows
            what OpenSlide shows, or more of the levels (those in sub-IFDs), else OpenSlide. The TIFF reader also opens
            files that OpenSlide does not open (strips, JPEG XL, WebP).

    Raises:
        SlideError: If no reader opens the file.
    """
    fast, unread = _open_tiff(path)
    if fast is None and reader == "fast":
        raise SlideError(
            f"{path}: the fast reader cannot open it: {unread}; "
            "give data.reader=auto (infer.py, features.py: reader=auto)"
        )
    try:
        reference = OpenSlideReader(path)
    except (openslide.OpenSlideError, OSError, ValueError) as exc:
        if fast is not None and reader != "openslide":
            return fast
        refused = f"{path}: OpenSlide cannot open it ({exc})"
        if reader == "openslide":
            raise SlideError(f"{refused}; is it whole, and in a format OpenSlide reads?") from exc
        remedy = "" if "convert it" in unread else f" If it is, {suggest_bioformats(path)}"
        raise SlideError(f"{refused}, nor can the TIFF reader ({unread}); is it whole, and a slide?{remedy}") from exc
    if fast is None or reader == "openslide" or not (reader == "fast" or _shows_more(fast, reference)):
        if fast is not None:
            fast.close()
        return reference
    reference.close()
    if fast.level_dimensions[0] == reference.level_dimensions[0]:  # otherwise the frame would depend on the reader
        fast.bounds = reference.bounds
    if reader == "auto":
        fast.stated_mpp, fast.mpp_note, fast.vendor = reference.stated_mpp, reference.mpp_note, reference.vendor
    return fast


def _open_tiff(path: Path) -> tuple[TiffReader | None, str]:
    """Open a slide with the TIFF reader; None and the reason if another reader may open it.

    Raises:
        SlideError: If no reader may open it.
    """
    try:
        fast = TiffReader(path)
    except BrokenTiffError as exc:
        raise SlideError(f"{path}: {exc}; fetch it again or leave the slide out") from exc
    except UnshownTiffError as exc:
        raise SlideError(f"{path}: {exc}, or leave the slide out") from exc
    except (OSError, ValueError) as exc:
        return None, str(exc)
    if fast.tiff.orientation != 1 and openslide.OpenSlide.detect_format(path) in _PLAIN:
        raise SlideError(f"{path}: {describe_orientation(fast.tiff.orientation, path)}, or leave the slide out")
    return fast, ""


def _shows_more(fast: TiffReader, reference: OpenSlideReader) -> bool:
    """Return whether the TIFF reader shows the same pixels as OpenSlide, or further levels, which sub-IFDs hold."""
    if reference.vendor not in FAST_VENDORS or fast.level_dimensions[0] != reference.level_dimensions[0]:
        return False
    if fast.level_dimensions == reference.level_dimensions:
        return fast.tiff.matches_openslide
    return set(fast.level_dimensions) > set(reference.level_dimensions)


def check_slide_file(path: Path) -> None:
    """Check that a path is a regular file that can be read, without waiting for a named pipe.

    Raises:
        SlideError: If the file is missing, is a folder, a pipe or a device, or may not be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
            return
    except (FileNotFoundError, NotADirectoryError):
        raise SlideError(
            f"{path}: there is no such slide; check data.root and the image_id (infer.py, features.py: slides)"
        ) from None
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise SlideError(f"{path}: cannot be opened ({reason}); check the path, its links and permissions") from exc
    if stat.S_ISDIR(mode):
        raise SlideError(f"{path}: is a folder, not a slide; name the file in it")
    raise SlideError(f"{path}: is a pipe or a device, not a slide; give a file")


class OpenSlideReader:
    """Reader of a slide's levels with OpenSlide, thread-safe and picklable; each process opens the file for itself.

    Attributes:
        level_dimensions: (width, height) of each level in px of that level, level 0 first.
        stated_mpp: µm per level-0 px as the metadata of the format state it, not yet checked.
        mpp_note: The source of `stated_mpp`, or why there is none.
        vendor: OpenSlide's name of the layout; None if OpenSlide does not open the file.
        bounds: The part of the file that was scanned; None if the format states none, or it is the whole file.

    Raises:
        openslide.OpenSlideError: If the slide cannot be opened.
        ValueError: If a level is empty.
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
        self.bounds = _find_bounds(slide.properties, self.level_dimensions[0])
        x, y = (slide.properties.get(name) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y))
        self.stated_mpp: tuple[float, float] | None = None
        self.mpp_note = "OpenSlide finds no µm/px in it"
        if x is not None and y is not None:
            try:
                self.stated_mpp, self.mpp_note = (float(x), float(y)), "OpenSlide"
            except ValueError:
                self.mpp_note = f"OpenSlide finds {x!r}, {y!r} for µm/px, which are no numbers"

    def read(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True) -> NDArray[np.uint8]:
        """Read a window inside a level, in level px, as (height, width, 3) uint8 RGB over white.

        OpenSlide caches up to 32 MiB and ignores `keep`.
        """
        slide = self._handle.get()
        # OpenSlide divides level-0 px by its own downsample, which may differ from the one used here.
        location = round_px(x * self._downsamples[level]), round_px(y * self._downsamples[level])
        try:
            rgba = np.asarray(slide.read_region(location, level, (width, height)))
        except openslide.OpenSlideError:
            self._handle.drop(slide)  # OpenSlide refuses every later read with a handle that has failed once
            raise
        return blend_over_white(rgba)

    def close(self) -> None:
        """Close the file in this process."""
        self._handle.close()


class TiffReader:
    """Reader with this package's own TIFF reader; the same attributes and methods as `OpenSlideReader`.

    Raises:
        ValueError: If the slide is no TIFF that can be read.
        OSError: If the file cannot be read.
    """

    name: Literal["openslide", "fast"] = "fast"
    stated_mpp: tuple[float, float] | None
    vendor: str | None = None
    bounds: Bounds | None = None

    def __init__(self, path: Path) -> None:
        self.tiff = TiffPyramid(path, blank=None)
        if self.tiff.colours is None:
            raise ValueError(
                f"it has {self.tiff.samples} channels, neither RGB nor RGB with straight alpha; write it as RGB, "
                f"{suggest_vips(path, 'colourspace', 'srgb')}"
            )
        self.level_dimensions = self.tiff.level_dimensions
        self.stated_mpp, self.mpp_note = None, "it was opened without OpenSlide"

    def read(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True) -> NDArray[np.uint8]:
        """Read a window like `OpenSlideReader.read`; `keep` caches decoded tiles for later reads."""
        pixels = self.tiff.read(level, x, y, width, height, keep=keep)
        if self.tiff.colour_table is not None:
            return np.take(self.tiff.colour_table, pixels[..., 0], axis=0)
        return blend_over_white(pixels) if self.tiff.colours == "RGBA" else pixels

    def close(self) -> None:
        """Close the file in this process."""
        self.tiff.close()


def _find_bounds(properties: Mapping[str, str], size: tuple[int, int]) -> Bounds | None:
    """Return the bounds that OpenSlide states, cut at the edge of level 0 (width, height); None if there are none."""
    names = ("x", "y", "width", "height")
    try:
        x, y, width, height = (int(properties[f"openslide.bounds-{name}"]) for name in names)
    except (KeyError, ValueError):
        return None
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, size[0]), min(y + height, size[1])
    bounds = left, top, right - left, bottom - top
    return bounds if left < right and top < bottom and bounds != (0, 0, *size) else None


def blend_over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend straight (not premultiplied) RGBA over white, the colour of glass.

    Args:
        rgba: (h, w, 4) uint8.

    Returns:
        (h, w, 3) uint8, contiguous; white if alpha is 0.
    """
    rgb = np.ascontiguousarray(rgba[..., :3])
    for row in np.flatnonzero((rgba[..., 3] < 255).any(axis=1)):  # row by row, to save memory
        alpha = rgba[row, :, 3:].astype(np.uint32)
        rgb[row] = (rgb[row] * alpha + 255 * (255 - alpha) + 127) // 255
    return rgb
