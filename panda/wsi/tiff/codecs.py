"""The codecs of TIFF's tiles and strips, none of which decodes more than its tile or strip holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from panda.memory import POOL

JPEG = 7
GREYS = WHITE_IS_0, BLACK_IS_0 = 0, 1  # photometric interpretations (TIFF 6.0, sections 4 to 6 and 21)
RGB, PALETTE, YCBCR = 2, 3, 6
_RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of JPEG XL's sizes

Shape = tuple[int, int, int]
"""Height, width and interleaved values a px."""

INFLATE: Mapping[int, Callable[[bytes, int], bytes | bytearray]] = {
    1: lambda data, size: data[:size],
    5: lambda data, size: imagecodecs.lzw_decode(data, out=size),
    8: lambda data, size: imagecodecs.deflate_decode(data, out=size),
    32773: lambda data, size: imagecodecs.packbits_decode(data, out=size),
    32946: lambda data, size: imagecodecs.deflate_decode(data, out=size),
    50000: lambda data, size: imagecodecs.zstd_decode(data, out=size),
}
"""By TIFF's number of the compression. Each takes the data and the number of bytes, and never returns more."""


def decode_jpeg(data: bytes, shape: Shape, photometric: int, tables: bytes | None) -> NDArray[np.uint8]:
    """Decode a JPEG with 1 or 3 samples; its colours are those of the page's tags, as in OpenSlide.

    Raises:
        ValueError: If it has another size. The codec raises others.
    """
    # Checked before the codec runs: a progressive JPEG takes memory by the size it claims.
    _check_size(read_jpeg_size(data), shape)
    colour = shape[2] == 3
    out = POOL.empty(shape if colour else shape[:2])
    imagecodecs.jpeg8_decode(
        data,
        tables=tables,
        colorspace={RGB: "RGB", YCBCR: "YCBCR"}.get(photometric) if colour else None,
        outcolorspace="RGB" if colour else "GRAYSCALE",
        out=out,
    )
    return out.reshape(shape)


def _decode_jpeg2000(data: bytes, shape: Shape) -> NDArray[Any]:
    _check_size(_read_jpeg2000_size(data), shape)
    return np.asarray(imagecodecs.jpeg2k_decode(data))


def _decode_jpegxl(data: bytes, shape: Shape) -> NDArray[Any]:
    _check_size((*_read_jpegxl_size(data), shape[2]), shape)
    return np.asarray(imagecodecs.jpegxl_decode(data, keeporientation=True, numthreads=1))


def _decode_webp(data: bytes, shape: Shape) -> NDArray[Any]:
    out = np.empty(shape, np.uint8)  # of another size, the codec refuses it before it decodes
    imagecodecs.webp_decode(data, hasalpha=shape[2] == 4, out=out)
    return out


PICTURES: Mapping[int, Callable[[bytes, Shape], NDArray[Any]]] = {
    33005: _decode_jpeg2000,  # Aperio, RGB
    34712: _decode_jpeg2000,
    50001: _decode_webp,
    50002: _decode_jpegxl,
    52546: _decode_jpegxl,
}
"""By TIFF's number of the compression. Each takes the data and the shape that the page gives to it."""


def _check_size(found: Shape | None, wanted: Shape) -> None:
    if found not in {None, wanted}:
        raise ValueError(f"it says (height, width, samples) {found}, not {wanted}")


def read_jpeg_size(data: bytes) -> Shape | None:
    """Return height, width and components of a JPEG's frame header (ITU-T T.81, section B.2.2), None without one.

    The header is found as libjpeg finds it.
    """
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        while data[at : at + 1] == b"\xff":
            at += 1
        marker = int.from_bytes(data[at : at + 1])
        if marker in {0xD8, 0xD9, 0xDA}:  # another picture, its end, or pixels
            return None
        at += 1
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            frame = data[at + 3 : at + 8]
            return int.from_bytes(frame[:2]), int.from_bytes(frame[2:4]), int.from_bytes(frame[4:])
        if marker > 1 and not 0xD0 <= marker <= 0xD7:  # only these have no content
            at += int.from_bytes(data[at : at + 2])
    return None


def _read_jpeg2000_size(data: bytes) -> Shape:
    """Return height, width and components of a JPEG 2000 codestream (ITU-T T.800, section A.5.1)."""
    if data[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("it is no JPEG 2000 codestream")
    right, bottom, left, top = (int.from_bytes(data[at : at + 4]) for at in range(8, 24, 4))
    return bottom - top, right - left, int.from_bytes(data[40:42])


def _read_jpegxl_size(data: bytes) -> tuple[int, int]:
    """Return height and width of a JPEG XL codestream (ISO/IEC 18181-1, section D.2)."""
    if data[:2] != b"\xff\x0a":
        raise ValueError("it is no JPEG XL codestream")
    bits = int.from_bytes(data[2:14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def take_side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height = take_side()
    ratio = take(3)
    across, down = _RATIOS[ratio]
    return height, height * across // down if ratio else take_side()
