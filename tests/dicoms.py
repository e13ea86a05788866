"""Write whole-slide DICOM series that OpenSlide opens: one instance a level, uncompressed RGB tiles."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


def write_dicom_series(
    folder: Path,
    levels: Sequence[NDArray[np.uint8]],
    *,
    uid: str = "1.2.3",
    tile: int = 128,
    mpp: float = 0.5,
    flavor: str = "VOLUME",
) -> list[Path]:
    """Write one instance for each level, named by its position, and by its flavor if that is another one.

    Args:
        folder: The folder of the series; it is made.
        levels: (h, w, 3) uint8 RGB each, level 0 first.
        uid: Its SeriesInstanceUID.
        tile: Side of the tiles in px.
        mpp: µm per level-0 px.
        flavor: What the instances show: `VOLUME`, `LABEL`, `OVERVIEW` or `THUMBNAIL` (third value of ImageType).

    Returns:
        The files, level 0 first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, level in enumerate(levels):
        spacing = mpp * levels[0].shape[1] / level.shape[1] / 1000
        kind = "" if flavor == "VOLUME" else f"_{flavor.lower()}"
        path = folder / f"{uid.replace('.', '_')}{kind}_{number}.dcm"
        path.write_bytes(_encode_instance(level, uid, f"{len(kind)}.{number}", tile, spacing, flavor))
        paths.append(path)
    return paths


def _encode_instance(  # noqa: PLR0917 - one argument each of what is varied
    image: NDArray[np.uint8], uid: str, number: str, tile: int, spacing_mm: float, flavor: str
) -> bytes:
    height, width = image.shape[:2]
    down, across = -(-height // tile), -(-width // tile)
    padded = np.zeros((down * tile, across * tile, 3), np.uint8)
    padded[:height, :width] = image
    frames = padded.reshape(down, tile, across, tile, 3).swapaxes(1, 2)
    instance = f"{uid}.{number}"
    syntax = _element(0x0002, 0x0002, "UI", _SOP_CLASS) + _element(0x0002, 0x0003, "UI", instance)
    syntax += _element(0x0002, 0x0010, "UI", _EXPLICIT_LITTLE_ENDIAN)
    measures = _element(0x0028, 0x0030, "DS", f"{spacing_mm}\\{spacing_mm}")
    shared = _sequence(0x0028, 0x9110, measures)
    elements = [
        _element(0x0008, 0x0008, "CS", f"ORIGINAL\\PRIMARY\\{flavor}\\NONE"),
        _element(0x0008, 0x0016, "UI", _SOP_CLASS),
        _element(0x0008, 0x0018, "UI", instance),
        _element(0x0020, 0x000E, "UI", uid),
        _element(0x0020, 0x9311, "CS", "TILED_FULL"),
        _element(0x0028, 0x0002, "US", 3),
        _element(0x0028, 0x0004, "CS", "RGB"),
        _element(0x0028, 0x0006, "US", 0),
        _element(0x0028, 0x0008, "IS", str(down * across)),
        _element(0x0028, 0x0010, "US", tile),
        _element(0x0028, 0x0011, "US", tile),
        *(_element(0x0028, tag, "US", value) for tag, value in ((0x0100, 8), (0x0101, 8), (0x0102, 7), (0x0103, 0))),
        _element(0x0048, 0x0006, "UL", width),
        _element(0x0048, 0x0007, "UL", height),
        _sequence(0x5200, 0x9229, shared),
        _element(0x7FE0, 0x0010, "OB", np.ascontiguousarray(frames).tobytes()),
    ]
    return bytes(128) + b"DICM" + _element(0x0002, 0x0000, "UL", len(syntax)) + syntax + b"".join(elements)


def _element(group: int, tag: int, kind: str, value: str | int | bytes) -> bytes:
    """Encode a data element with explicit VR (DICOM PS3.5, section 7.1.2)."""
    if isinstance(value, int):
        data = struct.pack("<H" if kind == "US" else "<I", value)
    else:
        data = value.encode() if isinstance(value, str) else value
        data += (b"\0" if kind in ("UI", "OB") else b" ") * (len(data) % 2)
    head = struct.pack("<HH", group, tag) + kind.encode()
    return head + (struct.pack("<HI", 0, len(data)) if kind in ("OB", "SQ") else struct.pack("<H", len(data))) + data


def _sequence(group: int, tag: int, item: bytes) -> bytes:
    """Encode a sequence of one item."""
    return _element(group, tag, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item)
