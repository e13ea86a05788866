"""Write the probability map of a slide as OME-TIFF."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from panda.files import write_beside
from panda.inference.canvas_store import Canvas
from panda.inference.class_colours import Colour, find_class_colour
from panda.inference.codes import STEPS
from panda.inference.geojson import ID_SPACE
from panda.wsi.geometry import Resolution
from panda.wsi.levels import describe_frame
from panda.wsi.slide import Slide

_TILE = 512
_CLASSIC_BYTES = 2**31
"""A file that may be larger is a BigTIFF, which some readers cannot open or find no levels in."""


def write_ome_tiff(canvas: Canvas, slide: Slide, path: Path | str) -> None:
    """Write the probability map as a pyramidal OME-TIFF of uint8: `round(255 × probability)`.

    With several classes of cancer there is a channel for the tumour and one for each class, by name. Levels halve
    until one tile holds the whole slide. They are in SubIFDs as OME asks; QuPath, Bio-Formats and tifffile find them
    there, OpenSlide opens level 0 only. The file is a classic TIFF if it is certainly below 2 GiB, else a BigTIFF.
    Pixels that were not scored are 0. The physical pixel size is left out if µm/px is unknown. Each level waits in an
    unnamed file until the next one is made, so that memory holds one row of tiles at most.
    """
    resolution = canvas.resolution
    height, width = canvas.shape
    names = ("tumour", *(() if canvas.classes.is_binary else canvas.classes.cancer_names))
    several = len(names) > 1
    sizes = _list_sizes(height, width)
    map_id = uuid.uuid5(ID_SPACE, f"{slide.slide_id}/{canvas.fingerprint}")  # the same map gives the same bytes
    metadata: dict[str, Any] = {
        "axes": "CYX" if several else "YX",
        "Name": f"{slide.slide_id} tumour probability x 255",
        "Description": f"{resolution.downsample:g} {describe_frame(slide.bounds)} per px",
        "UUID": str(map_id),
        "Channel": {"Name": [f"{name} probability x 255" for name in names]},
    }
    if several:
        colours = [find_class_colour(canvas.classes.patterns[name]) for name in names[1:]]
        metadata["Channel"]["Color"] = [_encode_colour(colour) for colour in ((255, 255, 255), *colours)]
    if resolution.mpp is not None:
        for axis, mpp in zip("XY", resolution.mpp, strict=True):
            metadata |= {f"PhysicalSize{axis}": mpp, f"PhysicalSize{axis}Unit": "µm"}
    target = Path(path).parent
    target.mkdir(parents=True, exist_ok=True)
    with (
        write_beside(path) as partial,
        tifffile.TiffWriter(partial, ome=True, bigtiff=_find_bound(len(names), sizes) >= _CLASSIC_BYTES) as tif,
        tempfile.TemporaryFile(dir=target) as first,
        tempfile.TemporaryFile(dir=target) as second,
    ):
        options = _make_tiff_options(resolution, (len(names), height, width))
        tif.write(_read_base_tiles(canvas, first), subifds=len(sizes) - 1, metadata=metadata, **options)
        source, following = first, second
        for number, size in enumerate(sizes[1:], start=1):
            shape = len(names), *size
            options = _make_tiff_options(resolution, shape, 2**number)
            tif.write(_read_smaller_tiles(source, shape, following), subfiletype=1, metadata=None, **options)
            source, following = following, source


def _list_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return height and width of each level, in px."""
    count = 1 + (-(-max(height, width) // _TILE) - 1).bit_length()
    return [(-(-height // 2**number), -(-width // 2**number)) for number in range(count)]


def _find_bound(channels: int, sizes: Sequence[tuple[int, int]]) -> int:
    """Return bytes that a file with these levels does not reach, with any pixels.

    Deflate stores what it cannot compress with less than 1 % more. A tile has an offset and a length in the file.
    """
    tiles = channels * sum(-(-height // _TILE) * -(-width // _TILE) for height, width in sizes)
    return 2**20 + tiles * (_TILE**2 * 101 // 100 + 32)


def _encode_colour(colour: Colour) -> int:
    """Return a colour as OME writes it: the bytes of RGBA as a signed number."""
    return int.from_bytes(bytes((*colour, 255)), "big", signed=True)


def _make_tiff_options(resolution: Resolution, shape: tuple[int, int, int], factor: int = 1) -> dict[str, Any]:
    """Return the options of a level of (channels, height, width)."""
    options: dict[str, Any] = {"shape": shape if shape[0] > 1 else shape[1:], "dtype": np.uint8, "tile": (_TILE, _TILE)}
    options |= {"photometric": "minisblack", "compression": "adobe_deflate", "predictor": True}
    options["compressionargs"] = {"level": 1}  # a higher level takes three times as long, for a tenth
    if resolution.mpp is not None:
        per_cm = [1e4 / (mpp * factor) for mpp in resolution.mpp]
        options |= {"resolution": tuple(per_cm), "resolutionunit": "CENTIMETER"}
    return options


def _read_base_tiles(canvas: Canvas, following: IO[bytes]) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of level 0 row by row, channel after channel, and write the rows of the next level."""
    height, width = canvas.shape
    channels = 0 if canvas.classes.is_binary else len(canvas.classes.cancer_names)
    for channel in range(1 + channels):
        for y0 in range(0, height, _TILE):
            rows = min(_TILE, height - y0)
            half = np.zeros((-(-rows // 2), -(-width // 2)), np.uint8)
            for x0 in range(0, width, _TILE):
                window = x0, y0, min(_TILE, width - x0), rows
                codes = canvas.read_class_codes(*window)[channel - 1] if channel else canvas.read_codes(*window)
                part = _convert_to_bytes(codes)
                half[:, x0 // 2 : x0 // 2 + _TILE // 2] = _halve(part)
                if x0 + _TILE >= width:  # before the last tile: the generator is not resumed after it
                    following.write(half.data)
                yield _pad(part)


def _convert_to_bytes(codes: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return `round(255 × probability)` of the codes of a canvas; 0 for a pixel that was not scored."""
    step = 255 / STEPS
    return np.asarray(cv2.convertScaleAbs(codes, alpha=step, beta=-step), np.uint8)  # code 0 gives round(step), 0


def _read_smaller_tiles(
    source: IO[bytes], shape: tuple[int, int, int], following: IO[bytes]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of a reduced level of (channels, height, width) from its file, and write the next level."""
    source.seek(0)
    following.seek(0)
    channels, height, width = shape
    for _ in range(channels):
        for y0 in range(0, height, _TILE):
            rows = min(_TILE, height - y0)
            band = np.frombuffer(source.read(rows * width), np.uint8).reshape(rows, width)
            following.write(_halve(band).data)
            for x0 in range(0, width, _TILE):
                yield _pad(band[:, x0 : x0 + _TILE])


def _pad(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
    tile = np.zeros((_TILE, _TILE), np.uint8)
    tile[: part.shape[0], : part.shape[1]] = part
    return tile


def _halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return averages of 2 × 2 px; an odd last row or column is doubled first."""
    height, width = image.shape
    even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    # OpenCV adds four px and 2, and divides by 4.
    return np.asarray(
        cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA), np.uint8
    )
