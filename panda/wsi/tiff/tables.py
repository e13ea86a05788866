"""The tables of a TIFF, checked before any pixel is read.

OpenSlide allocates the memory that the tables ask for, and GLib ends the process if there is not so much. So TIFFs are
parsed here first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from panda.errors import raise_exhaustion
from panda.wsi.geometry import level_scale
from panda.wsi.tiff import conversions
from panda.wsi.tiff.codecs import BLACK_IS_0, GREYS, JPEG, PALETTE, PICTURES, RGB, YCBCR
from panda.wsi.tiff.segments import SEGMENT_BYTES, Decoder

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READ_KINDS = (("uint8", 8, 1, 1), ("uint16", 16, 1, 1))  # bits in order, no depth
_SEPARATE = 2  # PlanarConfiguration: a plane for each channel
_SLACK_BYTES = 2**16  # for headers and tables of a segment
_STRAIGHT_ALPHA = (2,)  # ExtraSamples: unassociated alpha
_BAND_BYTES = 2**23  # of a single strip without compression, which is read in bands of rows

Colours = Literal["RGB", "RGBA", "grey", "palette"]


class BrokenTiffError(ValueError):
    """The file is damaged: its tables cannot be read or cannot be true. No other reader may open it."""


class UnshownTiffError(ValueError):
    """The file is whole, but no reader shows its picture as it is meant; the message has the remedy."""


class CutShortError(BrokenTiffError):
    """The tables are whole, but the file ends before its pixels do."""


@dataclass(frozen=True, eq=False)
class Level:
    """The size of a level, and the positions of its tiles or strips in the file.

    The values of a px are interleaved in one plane, or each channel is a plane, and its segments follow each other.
    """

    width: int
    height: int
    segment_width: int
    segment_height: int
    tiled: bool
    offsets: NDArray[np.int64]
    byte_counts: NDArray[np.int64]
    planes: int = 1

    @property
    def columns(self) -> int:
        """Segments side by side."""
        return -(-self.width // self.segment_width)

    @property
    def rows(self) -> int:
        """Segments one below the other."""
        return -(-self.height // self.segment_height)

    @property
    def segment_px(self) -> int:
        """Px of a segment."""
        return self.segment_width * self.segment_height

    @property
    def count(self) -> int:
        """Segments of one plane."""
        return self.columns * self.rows

    def cut_rows(self, row_bytes: int) -> Level:
        """Return the level with its only strip, of `row_bytes` a row, cut into bands of rows."""
        band = max(1, _BAND_BYTES // row_bytes)
        starts = np.arange(0, self.height, band, dtype=np.int64)
        stored = np.minimum(starts + band, self.height) - starts
        offsets = [offset + starts * row_bytes for offset in self.offsets.tolist()]
        return replace(
            self,
            segment_height=band,
            offsets=np.concatenate(offsets),
            byte_counts=np.tile(stored * row_bytes, len(offsets)),
        )

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
        kind: Type, bits, fill order and depth of the values.
        samples: Values a px.
        decoder: Decoder of the segments, not yet checked.
        straight_alpha: The last value of a px is alpha, not premultiplied.
        palette: RGB of each value, (256, 3) uint8; None without a palette.
        orientation: Tag 274 (TIFF 6.0, section 8): 1 if the page is stored as it is shown.
    """

    level: Level
    kind: tuple[str, int, int, int]
    samples: int
    decoder: Decoder
    straight_alpha: bool
    palette: NDArray[np.uint8] | None
    orientation: int

    @classmethod
    def from_tifffile(cls, page: Any) -> Page:
        """Copy a page of tifffile's."""
        tiled, bits, samples = bool(page.is_tiled), int(np.max(page.bitspersample)), int(page.samplesperpixel)
        planes = samples if int(page.planarconfig) == _SEPARATE else 1
        level = Level(
            width=int(page.imagewidth),
            height=int(page.imagelength),
            segment_width=int(page.tilewidth if tiled else page.imagewidth),
            segment_height=int(page.tilelength if tiled else min(page.rowsperstrip, page.imagelength)),
            tiled=tiled,
            offsets=np.asarray(page.dataoffsets, np.int64),
            byte_counts=np.asarray(page.databytecounts, np.int64),
            planes=planes,
        )
        compression = int(page.compression)
        row_bytes = level.width * (samples // max(planes, 1)) * (bits // 8)
        whole = level.height * row_bytes
        if not tiled and compression == 1 and len(level.offsets) == planes and 0 < whole <= min(level.byte_counts):
            level = level.cut_rows(row_bytes)
        return cls(
            level=level,
            kind=(str(page.dtype), bits, int(page.fillorder), int(page.imagedepth)),
            samples=samples,
            decoder=Decoder(
                compression=compression,
                predictor=int(page.predictor),
                photometric=int(page.photometric),
                samples=samples // max(planes, 1),
                tables=None if page.jpegtables is None else bytes(page.jpegtables),
                dtype="|u1" if bits <= 8 else f"{page.parent.byteorder}u2",
            ),
            straight_alpha=tuple(page.extrasamples) == _STRAIGHT_ALPHA,
            palette=_read_palette(page),
            orientation=int(page.tags.valueof("Orientation", default=1)),
        )

    @property
    def colours(self) -> Colours | None:
        """Meaning of the decoded values, None for another; RGBA has straight alpha."""
        photometric, jpeg = self.decoder.photometric, self.decoder.compression == JPEG
        if self.samples == 1 and photometric in GREYS:
            return "grey"
        if self.samples == 1 and photometric == PALETTE and self.palette is not None:
            return "palette"
        if photometric != RGB and (photometric, jpeg, self.level.planes) != (YCBCR, True, 1):
            return None
        return "RGB" if self.samples == 3 else "RGBA" if self.samples == 4 and self.straight_alpha else None

    @property
    def colour_table(self) -> NDArray[np.uint8] | None:
        """RGB of each value of a page in grey or with a palette, (256, 3) uint8."""
        if self.colours == "palette":
            return self.palette
        if self.colours != "grey":
            return None
        ramp = np.arange(256, dtype=np.uint8)
        return np.repeat((ramp if self.decoder.photometric == BLACK_IS_0 else ramp[::-1])[:, None], 3, axis=1)

    @property
    def matches_openslide(self) -> bool:
        """Whether OpenSlide shows the same pixels: tiles of RGB, of JPEG's YCbCr, in grey or with a palette.

        In grey of 16 bits libtiff shears the tiles at the right edge for OpenSlide, see
        `findings/libtiff_grey16_edge_tiles.sh`.
        """
        plain = self.orientation == 1 and self.decoder.compression not in PICTURES
        return self.level.tiled and plain and self.colours in {"RGB", "grey", "palette"}

    def shrinks(self, first: Page) -> bool:
        """Return whether the page shows the first page's picture at a smaller size."""
        own, whole = self.level, first.level
        kinds = {(page.kind, page.samples, page.level.planes, page.level.tiled) for page in (self, first)}
        if len(kinds) > 1 or min(own.width, own.height, whole.width, whole.height) < 1:
            return False
        downsample, deviation = level_scale((whole.width, whole.height), (own.width, own.height))
        return downsample > 1 and deviation <= 1

    @property
    def segment_bytes(self) -> int:
        """Bytes of a decoded segment at most, before 16 bits are scaled to 8."""
        return self.level.segment_px * self.decoder.samples * max(1, self.kind[1] // 8)

    def check(self, path: Path, size: int, *, has_codes: bool = False) -> None:
        """Refuse a page of colours or codes that cannot be read in bounded memory, or not from its `size` bytes.

        Raises:
            BrokenTiffError: If the page is empty, its tiles are too large, or the file lacks some of them.
        """
        level, samples = self.level, self.decoder.samples
        if min(level.width, level.height, level.segment_width, level.segment_height, samples) < 1:
            size_px, segment_px = f"{level.width} x {level.height}", f"{level.segment_width} x {level.segment_height}"
            raise BrokenTiffError(f"it is {size_px} px in tiles or strips of {segment_px}")
        # OpenSlide decodes any tile to RGBA.
        segment = self.segment_bytes if not level.tiled else max(self.segment_bytes, 4 * level.segment_px)
        if segment > SEGMENT_BYTES:
            command = (
                conversions.suggest_vips_codes("copy", path) if has_codes else conversions.suggest_vips(path, "copy")
            )
            raise BrokenTiffError(
                f"its tiles or strips take {segment} bytes each, over {SEGMENT_BYTES}; write it with tiles of 256 px: "
                f"{command}"
            )
        wanted = level.count * level.planes
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


def read_pages(path: Path, *, has_codes: bool = False) -> list[Page]:
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
            page.check(path, size, has_codes=has_codes)
    _refuse_unshown(pages, path, has_codes=has_codes)
    if pages[0].kind not in _READ_KINDS:
        dtype, bits, fill, depth = pages[0].kind
        raise ValueError(
            f"pixels are {dtype} of {bits} bits, fill order {fill}, depth {depth}; only pixels of 8 or 16 bits are read"
        )
    return shown


def _read_palette(page: Any) -> NDArray[np.uint8] | None:
    """Return the ColorMap of a page of 8 bits as libtiff reads it: of 16 bits if any value has more than 8."""
    table = None if page.colormap is None else np.asarray(page.colormap)
    if table is None or table.shape != (3, 256):
        return None
    return np.ascontiguousarray(table.T >> 8 if table.max() > 255 else table.T, dtype=np.uint8)


def _refuse_unshown(pages: list[Page], path: Path, *, has_codes: bool) -> None:
    """Refuse floats, long integers, channels in pages of their own, and colours that are stored as grey."""
    first = pages[0]
    dtype, bits = first.kind[:2]
    if bits > 16 or "float" in dtype:
        raise UnshownTiffError(conversions.describe_long_values(dtype, bits, path))
    size = first.level.width, first.level.height
    channels = [page for page in pages if page.samples == 1 and (page.level.width, page.level.height) == size]
    if first.samples == 1 and len(channels) > 1:
        raise UnshownTiffError(conversions.describe_channel_pages(len(channels), path))
    if first.samples > 2 and first.decoder.photometric in GREYS and not has_codes:
        raise UnshownTiffError(conversions.describe_grey_channels(first.samples, path))
