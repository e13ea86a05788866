"""Make the slides to measure on: drawn ones, and ones of any size whose tiles are few and shared."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.files import write_beside
from panda.synthetic.dataset import DRAWING_VERSION, SyntheticSpec, draw_slide

CACHE = Path(__file__).parent / "cache"
TILE = 512
MPP = 0.48
PROVIDER = "radboud"
FULL = (20_000, 25_000)
QUICK = (4_096, 6_144)

Bytes = NDArray[np.uint8]


def make_slide(width: int, height: int) -> SlideRecord:
    """Draw a slide like PANDA's with its mask, or take the one drawn before.

    Args:
        width: Of level 0 in px.
        height: Of level 0 in px; the cores run along the longer side.

    Returns:
        The slide: JPEG tiles of 512 px, levels 1, 4 and 16.
    """
    record = _record(f"drawn{DRAWING_VERSION}_{width}x{height}")
    if not _is_there(record):
        draw_slide(
            record.image_path,
            mask_path(record),
            SyntheticSpec(width=width, height=height, tile=TILE, mpp=MPP),
            slide_id=record.slide_id,
            provider=PROVIDER,
            isup_grade=4,
            seed=5,
        )
    return record


def shared_tiles_slide(side: int, tissue: float = 0.02) -> SlideRecord:
    """Write a square slide of any size in a moment, or take the one written before.

    It is a BigTIFF whose offsets point again and again at the same few encoded tiles. Its tissue are needle cores,
    one tile wide.

    Args:
        side: Of level 0 in px.
        tissue: Share of it that is tissue, about.

    Returns:
        The slide: JPEG tiles of 512 px, levels 1, 4 and 16; its mask has the same form, deflated.
    """
    record = _record(f"shared_{side}" + ("" if tissue == 0.02 else f"_{tissue:g}"))
    if not _is_there(record):
        codes = _core_cells(side, tissue)
        picture = _tissue_texture()
        with write_beside(record.image_path) as path:
            _write_shared(path, side, (codes > 0).astype(np.uint8), {1: picture}, jpeg=True)
        with write_beside(mask_path(record)) as path:
            labels = {code: _label_tile(code) for code in (1, 4)}
            _write_shared(path, side, codes, labels, jpeg=False)
    return record


def _record(name: str) -> SlideRecord:
    CACHE.mkdir(parents=True, exist_ok=True)
    return SlideRecord(name, PROVIDER, 4, "4+4", CACHE / f"{name}.tiff", CACHE / f"{name}_mask.tiff", name)


def mask_path(record: SlideRecord) -> Path:
    """Return the path of the mask of a slide of this module."""
    if record.mask_path is None:
        raise AssertionError("slides of this module have masks")
    return record.mask_path


def _is_there(record: SlideRecord) -> bool:
    return record.image_path.is_file() and mask_path(record).is_file()


def _core_cells(side: int, tissue: float) -> Bytes:
    """Draw label codes by cells of one tile, (n, n): vertical cores on that share, a fifth cancer."""
    cells = -(-side // TILE)
    codes = np.zeros((cells, cells), np.uint8)
    wanted = round(tissue * (side / TILE) ** 2)
    lanes = max(1, wanted // max(8, cells // 2), -(-wanted // cells))
    for lane in range(lanes):
        length = wanted // lanes
        top = (cells - length) // 2
        column = (2 * lane + 1) * cells // (2 * lanes)
        codes[top : top + length, column] = 1
        codes[top : top + max(1, length // 5), column] = 4
    return codes


def _tissue_texture() -> Bytes:
    """Draw a tile (512, 512, 3) as pink as stained tissue, with darker blotches."""
    rng = np.random.Generator(np.random.PCG64(3))
    tile = np.empty((TILE, TILE, 3), np.float64)
    tile[:] = (226, 168, 206)
    for cells, depth in ((8, 24), (64, 30)):
        noise = cv2.resize(rng.random((cells, cells)), (TILE, TILE), interpolation=cv2.INTER_CUBIC)
        tile -= depth * noise[..., None] * (1.2, 1.4, 0.8)
    return np.clip(tile + rng.normal(0, 3, tile.shape), 0, 255).astype(np.uint8)


def _label_tile(code: int) -> Bytes:
    tile = np.zeros((TILE, TILE, 3), np.uint8)
    tile[..., 0] = code
    return tile


def _write_shared(path: Path, side: int, cells: Bytes, textures: dict[int, Bytes], *, jpeg: bool) -> None:
    """Write a pyramid of which each cell (one tile of level 0) is blank or shows a texture, by its number."""
    blank = np.full((TILE, TILE, 3), 255 if jpeg else 0, np.uint8)
    places: dict[bytes, tuple[int, int]] = {}
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        link = 8  # the place of the offset of the next directory
        for level, downsample in enumerate((1, 4, 16)):
            shrunk = {number: _shrink(texture, downsample) for number, texture in textures.items()}
            empty = _shrink(blank, downsample)
            size = side // downsample
            count = -(-size // TILE)
            padded = np.zeros((count * downsample, count * downsample), np.uint8)
            padded[: cells.shape[0], : cells.shape[1]] = cells
            tiles: list[tuple[int, int]] = []
            for row in range(count):
                for column in range(count):
                    block = padded[row * downsample :, column * downsample :][:downsample, :downsample]
                    key = bytes([level]) + block.tobytes()
                    if key not in places:
                        tile = np.block([[[shrunk.get(int(c), empty)] for c in line] for line in block])
                        places[key] = _append(file, _encode(tile, jpeg))
                    tiles.append(places[key])
            link = _write_directory(file, link, size, downsample, tiles, jpeg=jpeg)


def _shrink(tile: Bytes, downsample: int) -> Bytes:
    side = TILE // downsample
    return np.asarray(cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _encode(tile: Bytes, jpeg: bool) -> bytes:
    if not jpeg:
        return zlib.compress(tile.tobytes(), 6)
    how: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "YCBCR", "subsampling": "420"}
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(tile), level=80, **how))


def _append(file: Any, data: bytes) -> tuple[int, int]:
    """Write data at the end, and return its offset and length."""
    offset = file.seek(0, 2)
    file.write(data)
    return offset, len(data)


def _write_directory(
    file: Any, link: int, size: int, downsample: int, tiles: list[tuple[int, int]], *, jpeg: bool
) -> int:
    """Write the directory (IFD) of one level, and its offset at `link`; return the place of the next link."""
    per_cm = struct.pack("<II", round(10_000_000 / (MPP * downsample)), 1000)
    shorts, longs, rationals, long8s = 3, 4, 5, 16
    tags: list[tuple[int, int, int, bytes]] = [
        (254, longs, 1, struct.pack("<I", int(downsample > 1))),
        (256, longs, 1, struct.pack("<I", size)),
        (257, longs, 1, struct.pack("<I", size)),
        (258, shorts, 3, struct.pack("<3H", 8, 8, 8)),
        (259, shorts, 1, struct.pack("<H", 7 if jpeg else 8)),
        (262, shorts, 1, struct.pack("<H", 6 if jpeg else 2)),
        (277, shorts, 1, struct.pack("<H", 3)),
        (282, rationals, 1, per_cm),
        (283, rationals, 1, per_cm),
        (284, shorts, 1, struct.pack("<H", 1)),
        (296, shorts, 1, struct.pack("<H", 3)),
        (322, longs, 1, struct.pack("<I", TILE)),
        (323, longs, 1, struct.pack("<I", TILE)),
        (324, long8s, len(tiles), struct.pack(f"<{len(tiles)}Q", *(offset for offset, _ in tiles))),
        (325, longs, len(tiles), struct.pack(f"<{len(tiles)}I", *(length for _, length in tiles))),
    ]
    if jpeg:
        tags.append((530, shorts, 2, struct.pack("<2H", 2, 2)))
    entries = []
    for tag, kind, count, data in tags:
        # up to 8 bytes lie in the entry itself, longer ones elsewhere
        value = data.ljust(8, b"\0") if len(data) <= 8 else struct.pack("<Q", _append(file, data)[0])
        entries.append(struct.pack("<HHQ", tag, kind, count) + value)
    start, length = _append(file, struct.pack("<Q", len(entries)) + b"".join(entries) + bytes(8))
    file.seek(link)
    file.write(struct.pack("<Q", start))
    return int(start + length - 8)
