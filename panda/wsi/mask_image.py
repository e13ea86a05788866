"""Images of label codes in any lossless coding, read as one channel of uint8.

TIFFs of uint8 are read tile by tile. Other images (PNG, wider integers, bits) are decoded whole, which `MAX_PX` bounds.
"""

from __future__ import annotations

import functools
import logging
import shlex
import zlib
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray

from panda.errors import raise_exhaustion
from panda.wsi.colours import count_values
from panda.wsi.geometry import cut_blocks
from panda.wsi.handles import PerProcess
from panda.wsi.label_maps import CHANNELS, LabelMap
from panda.wsi.tiff.conversions import suggest_vips_codes
from panda.wsi.tiff.pyramid import TiffPyramid
from panda.wsi.tiff.tables import BrokenTiffError

log = logging.getLogger(__name__)

MAX_PX = 2**26
"""Px of the largest image that is decoded whole."""
_LISTED_PX = 4_000_000
"""Px of the level at which the codes of channels are compared."""
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PNG_HEAD = 26
"""Bytes of a PNG up to its type of colour."""
_LOSSLESS = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000)
"""TIFF's numbers of the compressions that keep codes: none, CCITT, LZW, deflate, PackBits, LZMA and zstd."""
_SEARCHED = {1: 1, 2: 1, 3: 3, 4: 3}
"""Channels that may have the label by number of channels; the others are alpha."""


class CodeImage(Protocol):
    """The codes of one channel of a mask, in levels."""

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level in px of that level, largest first."""

    def read(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True) -> NDArray[np.uint8]:
        """Read a window inside a level, (height, width) uint8."""

    def close(self) -> None:
        """Close the file in this process; a later read opens it again."""


class _TiffChannel:
    """A channel other than the first of a tiled or stripped TIFF of uint8."""

    def __init__(self, path: Path, channel: int) -> None:
        self._tiff, self._channel = TiffPyramid(path), channel
        self.level_dimensions = self._tiff.level_dimensions

    def read(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True) -> NDArray[np.uint8]:
        """See `CodeImage.read`."""
        return np.ascontiguousarray(self._tiff.read(level, x, y, width, height, keep=keep)[..., self._channel])

    def close(self) -> None:
        """See `CodeImage.close`."""
        self._tiff.close()


class _Plane:
    """A channel of an image that is decoded whole."""

    def __init__(self, path: Path, channel: int, size: tuple[int, int]) -> None:
        self.level_dimensions = (size,)
        self._pixels = PerProcess(partial(_Decoded, path, channel))
        self._pixels.get()  # values that are no codes are refused when the mask is opened

    def read(self, level: int, x: int, y: int, width: int, height: int, *, keep: bool = True) -> NDArray[np.uint8]:
        """See `CodeImage.read`."""
        return self._pixels.get().codes[y : y + height, x : x + width].copy()

    def close(self) -> None:
        """See `CodeImage.close`."""
        self._pixels.close()


class _Decoded:
    """The decoded codes of a channel."""

    def __init__(self, path: Path, channel: int) -> None:
        values = _decode(path)[..., channel]
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 255:
            remedy = "give the classes numbers up to 255"
            if low >= 0 and not (values % 257).any():
                remedy = f"they are codes times 257: {suggest_vips_codes('msb', path)}"
            raise ValueError(f"its values are {low} to {high}, label codes are 0 to 255; {remedy}")
        self.codes = np.ascontiguousarray(values, np.uint8)

    def close(self) -> None:
        """Close nothing; the memory is freed with the object."""


def open_codes(path: Path, label_map: LabelMap | None) -> CodeImage:
    """Open the channel of a mask that has the label.

    It is the channel that the label map names. If it names none, the first of red, green and blue fits that is not 0
    throughout and has no code without a name. Two different ones that fit are refused, and red is taken if none fits.
    The choice is logged if it is not red.

    Raises:
        ValueError: If the image is not one of label codes, or several channels look like the label; with the remedy.
        OSError: If the file cannot be read.
    """
    opener, samples = _probe(path)
    channel = 0
    if samples > 1 and label_map is not None:
        if label_map.channel is None:
            stat = path.stat()
            channel = _find_channel(path, frozenset(label_map.names), stat.st_size, stat.st_mtime_ns)
        elif (channel := CHANNELS.index(label_map.channel)) >= samples:
            raise ValueError(
                f"it has {samples} channels, and its label map says channel: {label_map.channel}; correct one of them"
            )
    return opener(channel)


def list_codes(path: Path) -> list[list[int]]:
    """Return the codes in each channel of a mask, at its finest level of moderate size."""
    opener, samples = _probe(path)
    return [_survey(opener(channel))[0] for channel in range(samples)]


@functools.lru_cache(4096)
def _find_channel(path: Path, known: Collection[int], size: int, mtime_ns: int) -> int:
    """Return the channel that has the label; size and time stand for the content of the file."""
    opener, samples = _probe(path)
    seen = [_survey(opener(channel)) for channel in range(_SEARCHED[samples])]
    found = [codes for codes, _ in seen]
    fitting = [channel for channel, codes in enumerate(found) if codes != [0] and {*codes} <= {*known}]
    if len({seen[channel][1] for channel in fitting}) > 1:
        listed = " and ".join(f"{CHANNELS[one]} ({', '.join(map(str, found[one]))})" for one in fitting)
        raise ValueError(
            f"its channels {listed} all look like the label; write channel: {CHANNELS[fitting[0]]} or "
            "another into the label map"
        )
    channel = fitting[0] if fitting else 0
    if channel:
        log.info(
            "%s: the label is in the %s channel, the only one with codes of its label map", path, CHANNELS[channel]
        )
    return channel


def _survey(image: CodeImage) -> tuple[list[int], int]:
    """Return the codes of an image at its finest level of moderate size, and a checksum of this level."""
    sizes = image.level_dimensions
    level = next((at for at, (width, height) in enumerate(sizes) if width * height <= _LISTED_PX), len(sizes) - 1)
    counts, checksum = np.zeros(256, np.int64), 0
    try:
        for window in cut_blocks(*sizes[level]):
            pixels = image.read(level, *window, keep=False)
            counts += count_values(pixels)
            checksum = zlib.crc32(pixels.tobytes(), checksum)
    finally:
        image.close()
    return np.flatnonzero(counts).tolist(), checksum


def _probe(path: Path) -> tuple[Callable[[int], CodeImage], int]:
    """Return what opens a channel of a mask, and its number of channels.

    Raises:
        ValueError: If it is not an image of label codes; with the remedy.
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_PNG_HEAD)
    if head.startswith(_JPEG):
        raise ValueError("it is a JPEG, which alters label codes; store the mask without loss")
    if head.startswith(_PNG):
        width, height, samples = _read_png_header(head)
    else:
        try:
            tiff = TiffPyramid(path, red_only=True)
        except BrokenTiffError:
            raise
        except ValueError as error:
            width, height, samples = _read_tiff_header(path, error)
        else:
            _check_samples(path, tiff.samples)
            return lambda channel: _TiffChannel(path, channel) if channel else tiff, tiff.samples
    _check_samples(path, samples)
    if width * height > MAX_PX:
        command = _write_python(path) if head.startswith(_PNG) else suggest_vips_codes("cast", path, "uchar")
        raise ValueError(
            f"it is {width} x {height} px in a coding that is decoded whole, which ends at {MAX_PX} px; store codes of "
            f"8 bits in tiles: {command}"
        )
    return lambda channel: _Plane(path, channel, (width, height)), samples


def _check_samples(path: Path, samples: int) -> None:
    if samples not in _SEARCHED:
        raise ValueError(
            f"it has {samples} channels, of which none is known to be the label; extract it, here channel 0: "
            + suggest_vips_codes("extract_band", path, "0")
        )


def _read_png_header(head: bytes) -> tuple[int, int, int]:
    """Return width, height and channels of a PNG (ISO/IEC 15948, section 11.2.2)."""
    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    bits, colour = head[24:26] if len(head) == _PNG_HEAD else (0, 1)  # 1 is no type of colour
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if samples is None:
        raise ValueError("it is a damaged PNG; fetch it again")
    if bits == 16 and samples > 1:
        raise ValueError("it has several channels of 16 bits; store one channel of codes")
    return width, height, samples


def _read_tiff_header(path: Path, refusal: ValueError) -> tuple[int, int, int]:
    """Return width, height and channels of a TIFF that is not read in tiles; `refusal` says why."""
    try:
        with tifffile.TiffFile(path) as tif:
            pages = [page.aspage() for page in [*tif.pages]]  # counted first: a chain in a circle has no end
            page = pages[0]
            dtype, compression = np.dtype(page.dtype or "f4"), int(page.compression)
            size = int(page.imagewidth), int(page.imagelength)
            alike = sum((int(one.imagewidth), int(one.imagelength)) == size for one in pages)
            turned = int(page.tags.valueof("Orientation", default=1)) != 1
            samples = int(page.samplesperpixel)
    except Exception as error:
        raise_exhaustion(error)
        raise ValueError("it is neither a TIFF nor a PNG; store the mask as one of them") from error
    if alike > 1:
        raise ValueError(
            f"it has {alike} pages of full size; if each is a class, give them codes: {_write_python(path)}; "
            f"if one is the label, here page 0: {suggest_vips_codes('copy', path, page=0)}"
        ) from refusal
    if turned or compression not in _LOSSLESS:
        raise refusal
    if dtype.kind not in "iub":
        raise ValueError(
            f"its pixels are {dtype}; label codes are whole numbers: {suggest_vips_codes('cast', path, 'uchar')}"
        ) from refusal
    return *size, samples


def _write_python(path: Path) -> str:
    """Return a command that stores a PNG or the classes of several pages as codes in tiles."""
    target = path.with_name(f"{path.stem}_codes.tiff")
    png = path.suffix.lower() == ".png"
    read = f"np.asarray(I.open({str(path)!r}))" if png else f"t.imread({str(path)!r}).argmax(0).astype('u1')"
    write = f"t.imwrite({str(target)!r}, {read}, tile=(256, 256), compression='deflate')"
    code = f"import numpy as np, tifffile as t, PIL.Image as I; I.MAX_IMAGE_PIXELS = None; {write}"
    return f"python -c {shlex.quote(code)}"


def _decode(path: Path) -> NDArray[np.integer[Any] | np.bool_]:
    """Return all values of an image, (height, width, channels); a palette's are its indices."""
    with path.open("rb") as file:
        head = file.read(_PNG_HEAD)
    try:
        if not head.startswith(_PNG):
            values = np.asarray(tifffile.imread(path, key=0))
            if values.ndim == 3 and values.shape[0] < 5 < values.shape[2]:
                values = np.moveaxis(values, 0, 2)  # a plane for each channel
        else:
            with PIL.Image.open(path) as image:
                values = np.asarray(image)
            if head[25] == 0 and 1 < head[24] < 8:  # grey of 2 and 4 bits is scaled to 255
                values = values // (255 // (2 ** head[24] - 1))
    except Exception as error:
        raise_exhaustion(error)
        raise ValueError(f"it cannot be decoded ({error}); fetch it again") from error
    return values if values.ndim == 3 else values[..., None]
