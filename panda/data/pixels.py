"""The pixels of patches as each kind of store keeps them: written once by the extraction, read by `PatchSet`.

- `png`: files to look at, `<SLIDE_ID>/img/<SLIDE_ID>_x1234_y5678.png` and the mask (255 cancer, 0 other, 128
  ignored) in `msk/` under the same name; x and y are the patch's top-left corner in level-0 px of the slide.
- `packed`: mapped arrays, `<SLIDE_ID>/img.npy` (N, h, w, 3) uint8 and `msk.npy` (N, h, w) uint8,
  0 other, 1 cancer, 2 ignored.
- `slide`: nothing; a patch is read from its slide and mask each time.

The samples are the same, bit for bit.
"""

from __future__ import annotations

import json
import struct
import zlib
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from panda.data.settings import PatchSettings, StoreKind
from panda.errors import ManifestError
from panda.files import identity
from panda.wsi.geometry import Resolution
from panda.wsi.label_mask import CANCER, IGNORED, OTHER, LabelMask
from panda.wsi.slide import Slide

SLIDE_FILE = "slide.json"
"""Name of the record of a slide's extraction, in its folder of the store."""

OPEN_SLIDES = 32
"""Slides, or packed files, that a process holds open for reading patches."""

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""An image (h, w, 3) RGB, and its target (h, w): see `LabelMask.read_target`."""

_GREYS = {OTHER: 0, CANCER: 255, IGNORED: 128}
"""Value in a mask file of each target."""
_TO_GREY = np.zeros(256, np.uint8)
_FROM_GREY = np.full(256, 255, np.uint8)
for _target, _grey in _GREYS.items():
    _TO_GREY[_target], _FROM_GREY[_grey] = _grey, _target


class Place(NamedTuple):
    """Where the pixels of a patch are found.

    Attributes:
        folder: Of the slide in the store.
        provider: Whose codes the slide's mask holds.
        number: Of the patch on its slide, from 0.
        x: Left edge in level-0 px of the slide.
        y: Top edge in level-0 px of the slide.
        img: The file with the image: a patch's own, a packed one, or the slide.
        msk: The file with the mask likewise.
    """

    folder: Path
    provider: str
    number: int
    x: int
    y: int
    img: Path
    msk: Path


def patch_name(slide_id: str, x: int, y: int) -> str:
    """File name of the patch whose top-left corner is (x, y) in level-0 px."""
    return f"{slide_id}_x{x}_y{y}.png"


def kept_files(kind: StoreKind, slide_id: str, x: int, y: int) -> tuple[str, str] | None:
    """Image and mask file of a patch, relative to the store; None where the store keeps none."""
    if kind == "png":
        name = patch_name(slide_id, x, y)
        return f"{slide_id}/img/{name}", f"{slide_id}/msk/{name}"
    return (f"{slide_id}/img.npy", f"{slide_id}/msk.npy") if kind == "packed" else None


class PatchWriter(Protocol):
    """Takes the patches of one slide, each once, in any order."""

    wants_images: bool
    """Whether the images matter: where not, the extraction does not read them."""

    def write(self, number: int, x: int, y: int, image: NDArray[np.uint8] | None, target: NDArray[np.uint8]) -> None:
        """Keep a patch: its number on the slide, its place, (h, w, 3) RGB and (h, w) target."""

    def close(self) -> None:
        """Close the files."""


def patch_writer(kind: StoreKind, folder: Path, slide_id: str, count: int, size: int) -> PatchWriter:
    """Open a slide's folder for its patches.

    Args:
        kind: Of the store.
        folder: Exists and is empty.
        slide_id: Of the slide.
        count: Patches to come.
        size: Their side in px.
    """
    if kind == "png":
        return _PngWriter(folder, slide_id)
    return _PackedWriter(folder, count, size) if kind == "packed" else _NoWriter()


class _PngWriter:
    wants_images = True

    def __init__(self, folder: Path, slide_id: str) -> None:
        self._folder, self._slide_id = folder, slide_id
        for name in ("img", "msk"):
            (folder / name).mkdir()

    def write(self, number: int, x: int, y: int, image: NDArray[np.uint8] | None, target: NDArray[np.uint8]) -> None:
        assert image is not None, "this store wants images"
        name = patch_name(self._slide_id, x, y)
        (self._folder / "img" / name).write_bytes(png(image))
        (self._folder / "msk" / name).write_bytes(_mask_png(target))

    def close(self) -> None:
        pass


def _mask_png(target: NDArray[np.uint8]) -> bytes:
    """Write a target as PNG."""
    first = target.flat[0]
    if (target == first).all():  # as most are
        return _even_png(*target.shape, int(_TO_GREY[first]))
    return png(np.asarray(cv2.LUT(target, _TO_GREY), np.uint8))


@lru_cache(16)
def _even_png(height: int, width: int, value: int) -> bytes:
    return png(np.full((height, width), value, np.uint8))


def png(image: NDArray[np.uint8]) -> bytes:
    """Write a picture as PNG (ISO/IEC 15948), each row as its difference from the one above, by libdeflate.

    The PNG writers at hand are slower or make larger files, or both (docs/performance.md).

    Args:
        image: (h, w, 3) uint8 RGB, or (h, w) uint8 grey.

    Returns:
        The file.
    """
    height, width = image.shape[:2]
    flat = np.ascontiguousarray(image).reshape(height, -1)
    rows: Any = np.empty((height, flat.shape[1] + 1), np.uint8)
    rows[:, 0] = 2  # the filter "up"; above the first row there are zeros
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", imagecodecs.deflate_encode(rows, level=1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
        for name, data in chunks
    )


class _PackedWriter:
    wants_images = True

    def __init__(self, folder: Path, count: int, size: int) -> None:
        # Written as plain files and not through a map: a full disk is an error there, and a crash here.
        self._files = [(folder / name).open("wb") for name in ("img.npy", "msk.npy")]
        for file, shape in zip(self._files, ((count, size, size, 3), (count, size, size)), strict=True):
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        self._starts = [file.tell() for file in self._files]

    def write(self, number: int, x: int, y: int, image: NDArray[np.uint8] | None, target: NDArray[np.uint8]) -> None:
        assert image is not None, "this store wants images"
        for file, start, part in zip(self._files, self._starts, (image, target), strict=True):
            file.seek(start + number * part.nbytes)
            file.write(np.ascontiguousarray(part).data)

    def close(self) -> None:
        for file in self._files:
            file.close()


class _NoWriter:
    wants_images = False

    def write(self, number: int, x: int, y: int, image: NDArray[np.uint8] | None, target: NDArray[np.uint8]) -> None:
        pass

    def close(self) -> None:
        pass


class PatchPixels(Protocol):
    """Reads the patches of a store; picklable, safe in several processes."""

    def read(self, place: Place) -> Pair:
        """Read a patch.

        Raises:
            ManifestError: What the store keeps of it is missing or damaged, or the slide or mask that it is read from
                has changed.
            PandaError: The slide or its mask cannot be read there.
        """


def patch_pixels(settings: PatchSettings) -> PatchPixels:
    """Choose how the patches of a store are read."""
    if settings.store == "png":
        return _PngPixels(settings.patch_size)
    return _PackedPixels(settings.patch_size) if settings.store == "packed" else _SlidePixels(settings)


class _PngPixels:
    def __init__(self, size: int) -> None:
        self._size = size

    def read(self, place: Place) -> Pair:
        image = self._file(place.img, cv2.IMREAD_COLOR_RGB)
        mask = self._file(place.msk, cv2.IMREAD_GRAYSCALE)
        target = np.asarray(cv2.LUT(mask, _FROM_GREY), np.uint8)
        if target.max() > IGNORED:
            raise _broken(place.msk, "has values other than 0, 128 and 255")
        return image, target

    def _file(self, path: Path, flags: int) -> NDArray[np.uint8]:
        try:
            data = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise _broken(path, f"cannot be read ({error.strerror})") from error
        image = cv2.imdecode(data, flags) if data.size else None
        if image is None:
            raise _broken(path, "is not an image")
        if image.shape[:2] != (self._size, self._size):
            raise _broken(path, f"is {image.shape[1]} x {image.shape[0]} px, not {self._size} x {self._size}")
        return np.asarray(image, np.uint8)


class _PackedPixels:
    def __init__(self, size: int) -> None:
        self._size = size
        self._open = lru_cache(2 * OPEN_SLIDES)(self._mapped)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._size,)

    def read(self, place: Place) -> Pair:
        images, masks = self._open(place.img), self._open(place.msk)
        if not place.number < min(len(images), len(masks)):
            raise _broken(place.img, f"holds {len(images)} patches, number {place.number} is asked for")
        return np.array(images[place.number]), np.array(masks[place.number])

    def _mapped(self, path: Path) -> NDArray[np.uint8]:
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _broken(path, f"cannot be read ({error})") from error
        if mapped.dtype != np.uint8 or mapped.shape[1:3] != (self._size, self._size):
            raise _broken(path, f"holds {mapped.dtype} {mapped.shape}, not patches of {self._size} px")
        return np.asarray(mapped, np.uint8)


class _SlidePixels:
    def __init__(self, settings: PatchSettings) -> None:
        self._settings = settings
        self._open = lru_cache(OPEN_SLIDES)(self._opened)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._settings,)

    def read(self, place: Place) -> Pair:
        slide, mask, resolution = self._open(place.img, place.msk, place.provider, place.folder)
        size = self._settings.patch_size, self._settings.patch_size
        image = slide.read(resolution, (place.x, place.y), size)
        ignore = self._settings.ignore_background
        return image, mask.read_target(resolution, (place.x, place.y), size, ignore_background=ignore)

    def _opened(self, img: Path, msk: Path, provider: str, folder: Path) -> tuple[Slide, LabelMask, Resolution]:
        settings = self._settings
        slide = settings.slide_options.open(img)
        mask = LabelMask.open(msk, slide, provider)
        _check_unchanged(folder / SLIDE_FILE, {"slide": img, "mask": msk})
        return slide, mask, settings.resolution.resolve(slide)


def _check_unchanged(cut: Path, files: dict[str, Path]) -> None:
    """Compare the slide and the mask that patches are read from with those that they were cut from.

    Args:
        cut: The record of the extraction.
        files: `"slide"` and `"mask"`.

    Raises:
        ManifestError: The record is missing or damaged, or a file's size or time of change is not what it says.
    """
    try:
        stored = json.loads(cut.read_text(encoding="utf-8"))
        were = {which: (stored[which]["bytes"], stored[which]["mtime_ns"]) for which in files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(cut, f"cannot be read ({error})") from error
    for which, path in files.items():
        found = identity(path)
        now = found["bytes"], found["mtime_ns"]
        if now != were[which]:
            was, is_now = (f"{size} bytes of {_time(changed)}" for size, changed in (were[which], now))
            raise ManifestError(
                f"{path}: the {which} has changed since its patches were cut: {was} then, {is_now} now; run again, and "
                "they will be cut anew, or put the old file back, with its time"
            )


def _time(ns: int | str) -> str:
    """A file's time of change for people, in UTC."""
    return datetime.fromtimestamp(int(ns) / 1e9, UTC).isoformat(sep=" ", timespec="milliseconds")


def _broken(path: Path, fault: str) -> ManifestError:
    """The error of a file of the store, with the remedy."""
    folder = path.parents[path.suffix == ".png"]
    return ManifestError(f"{path} {fault}; delete the slide's folder {folder}, its patches will be cut again")
