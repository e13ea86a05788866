"""The tables of a TIFF, checked before any pixel is read.

OpenSlide allocates the memory that the tables ask for, and GLib ends the process if there is not so much. So TIFFs are
parsed here first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from panda.errors import raise_exhaustion
from panda.wsi.geometry import level_scale
from panda.wsi.tiff.segments import JPEG, SEGMENT_BYTES, Decoder

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READ_KIND = ("uint8", 8, 1, 1, 1)  # interleaved, bits in order, no depth
_RGB, _YCBCR = 2, 6  # photometric interpretations (TIFF 6.0, sections 6 and 21)
_SLACK_BYTES = 2**16  # for headers and tables of a segment
_STRAIGHT_ALPHA = (2,)  # ExtraSamples: unassociated alpha


class BrokenTiffError(ValueError):
    """The file is damaged: its tables cannot be read or cannot be true. No other reader may open it."""


class UnshownTiffError(ValueError):
    """The file is whole, but no reader shows its picture as it is meant; the message has the remedy."""


class CutShortError(BrokenTiffError):
    """The tables are whole, but the file ends before its pixels do."""


@dataclass(frozen=True, eq=False)
class Level:
    """The size of a level, and the positions of its tiles or strips in the file."""

    width: int
    height: int
    segment_width: int
    segment_height: int
    tiled: bool
    offsets: NDArray[np.int64]
    byte_counts: NDArray[np.int64]

    @property
    def columns(self) -> int:
        """Segments side by side."""
        return -(-self.width // self.segment_width)

    @property
    def rows(self) -> int:
        """Segments one below the other."""
        return -(-self.height // self.segment_height)

    def stored_height(self, index: int) -> int:
        """Return the stored height of a segment: tiles are whole past the edge, the last strip ends at the edge."""
        if self.tiled:
            return self.segment_height
        return min(self.segment_height, self.height - index // self.columns * self.segment_height)


@dataclass(frozen=True, eq=False)
class Page:
    """The tags of a page, copied so that the parsed file can be closed.

    Attributes:
        level: Size and segments.
        kind: Type, bits, planar configuration, fill order and depth of the values.
        decoder: Decoder of the segments, not yet checked.
        straight_alpha: The last value of a px is alpha, not premultiplied.
        orientation: Tag 274 (TIFF 6.0, section 8): 1 if the page is stored as it is shown.
    """

    level: Level
    kind: tuple[str, int, int, int, int]
    decoder: Decoder
    straight_alpha: bool
    orientation: int

    @classmethod
    def from_tifffile(cls, page: Any) -> Page:
        """Copy a page of tifffile's."""
        tiled, bits = bool(page.is_tiled), int(np.max(page.bitspersample))
        level = Level(
            width=int(page.imagewidth),
            height=int(page.imagelength),
            segment_width=int(page.tilewidth if tiled else page.imagewidth),
            segment_height=int(page.tilelength if tiled else page.rowsperstrip),
            tiled=tiled,
            offsets=np.asarray(page.dataoffsets, np.int64),
            byte_counts=np.asarray(page.databytecounts, np.int64),
        )
        return cls(
            level=level,
            kind=(str(page.dtype), bits, int(page.planarconfig), int(page.fillorder), int(page.imagedepth)),
            decoder=Decoder(
                compression=int(page.compression),
                predictor=int(page.predictor),
                photometric=int(page.photometric),
                samples=int(page.samplesperpixel),
                tables=None if page.jpegtables is None else bytes(page.jpegtables),
            ),
            straight_alpha=tuple(page.extrasamples) == _STRAIGHT_ALPHA,
            orientation=int(page.tags.valueof("Orientation", default=1)),
        )

    @property
    def colours(self) -> Literal["RGB", "RGBA"] | None:
        """Meaning of the decoded values: RGB, RGB with straight alpha, or None for another."""
        photometric, samples = self.decoder.photometric, self.decoder.samples
        if photometric != _RGB and (photometric, self.decoder.compression) != (_YCBCR, JPEG):
            return None
        return "RGB" if samples == 3 else "RGBA" if samples == 4 and self.straight_alpha else None

    @property
    def matches_openslide(self) -> bool:
        """Whether OpenSlide shows the same pixels: tiles of RGB, or of JPEG's YCbCr."""
        return self.level.tiled and self.colours == "RGB" and self.orientation == 1

    def shrinks(self, first: Page) -> bool:
        """Return whether the page shows the first page's picture at a smaller size."""
        own, whole = self.level, first.level
        kinds = {(page.kind, page.decoder.samples, page.level.tiled) for page in (self, first)}
        if len(kinds) > 1 or min(own.width, own.height, whole.width, whole.height) < 1:
            return False
        downsample, deviation = level_scale((whole.width, whole.height), (own.width, own.height))
        return downsample > 1 and deviation <= 1

    def check(self, size: int) -> None:
        """Refuse a page that cannot be read in bounded memory, or not from a file of `size` bytes.

        Raises:
            BrokenTiffError: If the page is empty, its tiles are too large, or the file lacks some of them.
        """
        level, samples = self.level, self.decoder.samples
        if min(level.width, level.height, level.segment_width, level.segment_height, samples) < 1:
            size_px, segment_px = f"{level.width} x {level.height}", f"{level.segment_width} x {level.segment_height}"
            raise BrokenTiffError(f"it is {size_px} px in tiles or strips of {segment_px}")
        each = samples * max(1, self.kind[1] // 8)
        # OpenSlide decodes any tile to RGBA.
        segment = level.segment_width * level.segment_height * (max(4, each) if level.tiled else each)
        if segment > SEGMENT_BYTES:
            raise BrokenTiffError(
                f"its tiles or strips take {segment} bytes each, over {SEGMENT_BYTES}; write it with tiles of 256 px"
            )
        wanted = level.columns * level.rows
        listed = min(len(level.offsets), len(level.byte_counts))
        if listed < wanted:
            raise BrokenTiffError(f"it is cut short or damaged: it lists {listed} of {wanted} tiles or strips")
        offsets, counts = level.offsets[:listed], level.byte_counts[:listed]
        if min(offsets.min(), counts.min()) < 0:
            raise BrokenTiffError("it is damaged: tiles or strips have negative offsets")
        end = int((offsets + counts).max())
        if end > size:
            raise CutShortError(f"it is cut short: the file has {size} bytes, its pixels reach to {end}")
        if (stored := int(counts.max())) > 2 * segment + _SLACK_BYTES:
            raise BrokenTiffError(f"a tile or strip of {segment} bytes is stored in {stored}")


def read_pages(path: Path) -> list[Page]:
    """Parse a TIFF, check its tables, and return the pages that show one picture, largest first.

    These are the first page, and further pages or sub-IFDs of the first that show it at a smaller size.

    Raises:
        ValueError: If the file is no TIFF, is an NDPI file, or has unsupported values.
        BrokenTiffError: If the file is damaged.
        UnshownTiffError: If its pixels are floats or longer than 16 bits, or each channel is a page of its own.
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) not in _MAGIC:
            raise ValueError("it is no TIFF")
    try:
        with tifffile.TiffFile(path) as tif:
            first, size = tif.pages.first, int(tif.filehandle.size)
            is_ndpi = bool(first.is_ndpi)
            found = [] if is_ndpi else [*tif.pages, *(first.pages or [])]
            pages = [Page.from_tifffile(page.aspage()) for page in found]
    except OSError:
        raise
    except Exception as exc:  # a damaged file may raise anything from inside the parser
        raise_exhaustion(exc)
        raise BrokenTiffError(f"it is cut short or damaged: its tables cannot be read ({exc})") from exc
    if is_ndpi:
        raise ValueError("it is an NDPI file, which only OpenSlide reads")
    smaller = (page for page in pages[1:] if page.shrinks(pages[0]))
    shown = [pages[0], *sorted(smaller, key=lambda page: -page.level.width)]
    for page in pages:
        if page.level.tiled or page in shown:  # other strips are label images, which nothing reads
            page.check(size)
    _refuse_unshown(pages)
    if pages[0].kind != _READ_KIND:
        dtype, bits, planar, fill, depth = pages[0].kind
        raise ValueError(
            f"pixels are {dtype} of {bits} bits, planar configuration {planar}, fill order {fill}, depth {depth}; "
            "only uint8 pixels with interleaved channels are read"
        )
    return shown


def describe_orientation(orientation: int) -> str:
    """Return why a page with an Orientation tag other than 1 is refused, with the remedy."""
    return (
        f"its Orientation tag is {orientation}, by which OpenSlide turns each tile and not the picture; store it as it "
        "is shown, with Orientation 1"
    )


def _refuse_unshown(pages: list[Page]) -> None:
    """Refuse a picture of floats or of long integers, and channels in pages of their own."""
    first = pages[0]
    dtype, bits = first.kind[:2]
    if bits > 16 or "float" in dtype:
        raise UnshownTiffError(f"its pixels are {dtype} of {bits} bits, which no reader shows as colours; store uint8")
    size = first.level.width, first.level.height
    channels = [page for page in pages if page.decoder.samples == 1 and (page.level.width, page.level.height) == size]
    if first.decoder.samples == 1 and len(channels) > 1:
        raise UnshownTiffError(
            f"it has {len(channels)} pages of one channel at full size, of which readers show the first in grey; "
            "store one page with all channels"
        )
