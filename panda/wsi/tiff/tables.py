"""What the tables of a TIFF say, checked before anything is read by them.

Nothing that a file claims is believed for longer than it takes to compare: OpenSlide takes the memory that tables
ask for, and GLib ends the process where there is not so much. So files that come as TIFFs are parsed here first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from panda.wsi.geometry import level_scale
from panda.wsi.tiff.segments import JPEG, SEGMENT_BYTES, Decoder

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READ_KIND = ("uint8", 8, 1, 1, 1)  # interleaved, bits in order, no depth
_RGB, _YCBCR = 2, 6  # photometric interpretations (TIFF 6.0, sections 6 and 21)
_SLACK_BYTES = 2**16  # of headers and tables, of which a segment may have more than pixels
_STRAIGHT_ALPHA = (2,)  # ExtraSamples: unassociated alpha


class BrokenTiffError(ValueError):
    """The file is damaged: its tables cannot be read or cannot be true. No other reader is to be let at it."""


class CutShortError(BrokenTiffError):
    """Its tables are whole, but the file ends before its pixels do."""


class _OtherTablesError(ValueError):
    """It is a TIFF whose tables mean something else."""


@dataclass(frozen=True, eq=False)
class Level:
    """One level: its size, and where its tiles or strips lie."""

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
        """Height of a segment as stored: tiles are whole even past the edge, the last strip ends with the picture."""
        if self.tiled:
            return self.segment_height
        return min(self.segment_height, self.height - index // self.columns * self.segment_height)


@dataclass(frozen=True, eq=False)
class Page:
    """What a page's tags say, copied so that the parsed file can be closed.

    Attributes:
        level: Its size and segments.
        kind: Type of its values, and how they lie; pages of one pyramid have the same.
        samples: Values a px.
        bits: Of a value.
        compression: TIFF's number of it.
        predictor: Likewise.
        photometric: Likewise, of the colours' meaning.
        straight_alpha: The last of the values is alpha, not premultiplied.
        upright: It is stored as it is shown.
        tables: JPEG tables.
    """

    level: Level
    kind: tuple[str, int, int, int, int]
    samples: int
    bits: int
    compression: int
    predictor: int
    photometric: int
    straight_alpha: bool
    upright: bool
    tables: bytes | None

    @classmethod
    def of(cls, page: Any) -> Page:
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
            samples=int(page.samplesperpixel),
            bits=bits,
            compression=int(page.compression),
            predictor=int(page.predictor),
            photometric=int(page.photometric),
            straight_alpha=tuple(page.extrasamples) == _STRAIGHT_ALPHA,
            upright=int(page.tags.valueof("Orientation", default=1)) == 1,
            tables=None if page.jpegtables is None else bytes(page.jpegtables),
        )

    @property
    def colours(self) -> Literal["RGB", "RGBA"] | None:
        """What the values are once decoded: RGB, RGB with straight alpha, or anything else."""
        if self.photometric != _RGB and (self.photometric, self.compression) != (_YCBCR, JPEG):
            return None
        return "RGB" if self.samples == 3 else "RGBA" if self.samples == 4 and self.straight_alpha else None

    @property
    def matches_openslide(self) -> bool:
        """Whether OpenSlide shows the stored pixels as they are decoded here: tiles of RGB, or of JPEG's YCbCr."""
        return self.level.tiled and self.colours == "RGB" and self.upright

    def decoder(self) -> Decoder:
        """How its segments are decoded."""
        return Decoder(self.compression, self.predictor, self.photometric, self.samples, self.tables)

    def shrinks(self, first: Page) -> bool:
        """Whether it shows the first page's picture smaller."""
        own, whole = self.level, first.level
        if (self.kind, self.samples, own.tiled) != (first.kind, first.samples, whole.tiled):
            return False
        if min(own.width, own.height, whole.width, whole.height) < 1:
            return False
        downsample, deviation = level_scale((whole.width, whole.height), (own.width, own.height))
        return downsample > 1 and deviation <= 1

    def check(self, size: int) -> None:
        """Refuse a page that cannot be read, or not in bounded memory.

        Raises:
            BrokenTiffError: It is empty, its tiles are too large, or the file of `size` bytes does not list or
                hold all of them.
        """
        level = self.level
        if min(level.width, level.height, level.segment_width, level.segment_height, self.samples) < 1:
            raise BrokenTiffError(f"it is {level.width} x {level.height} px in tiles or strips of "
                                  f"{level.segment_width} x {level.segment_height}")  # fmt: skip
        each = self.samples * max(1, self.bits // 8)
        # OpenSlide makes RGBA of any tile.
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
            raise BrokenTiffError("it is damaged: tiles or strips lie at negative offsets")
        end = int((offsets + counts).max())
        if end > size:
            raise CutShortError(f"it is cut short: the file has {size} bytes, its pixels reach to {end}")
        if (stored := int(counts.max())) > 2 * segment + _SLACK_BYTES:
            raise BrokenTiffError(f"a tile or strip that comes to {segment} bytes is stored in {stored}")


def read_pages(path: Path) -> list[Page]:
    """Parse a TIFF, check its tables, and pick the pages that show one picture.

    Returns:
        The first page, and those that show the same smaller, largest first: further pages or sub-IFDs of the first.

    Raises:
        ValueError: It is no TIFF, one with tables of its own (NDPI), or its values are none that is read.
        BrokenTiffError: It is damaged.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) not in _MAGIC:
            raise ValueError("it is no TIFF")
    try:
        with tifffile.TiffFile(path) as tif:
            first, size = tif.pages.first, int(tif.filehandle.size)
            if first.is_ndpi:
                raise _OtherTablesError("it is an NDPI file, which only OpenSlide reads")
            pages = [Page.of(page.aspage()) for page in [*tif.pages, *(first.pages or [])]]
    except (OSError, _OtherTablesError):
        raise
    except Exception as exc:  # a damaged file may raise anything from inside the parser
        raise BrokenTiffError(f"it is cut short or damaged: its tables cannot be read ({exc})") from exc
    smaller = (page for page in pages[1:] if page.shrinks(pages[0]))
    shown = [pages[0], *sorted(smaller, key=lambda page: -page.level.width)]
    for page in pages:
        if page.level.tiled or page in shown:  # other strips are labels, which nothing reads
            page.check(size)
    if pages[0].kind != _READ_KIND:
        dtype, bits, planar, fill, depth = pages[0].kind
        raise ValueError(
            f"pixels are {dtype} of {bits} bits, planar configuration {planar}, fill order {fill}, depth {depth}; "
            "only uint8 pixels with interleaved channels are read"
        )
    return shown
