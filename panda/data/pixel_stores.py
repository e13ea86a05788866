"""The kinds of patch store: each class writes the pixels of patches once, and reads them for `PatchSet`.

All kinds give the same samples, bit for bit. To add a kind, write a class and name it in `StoreKind` and in `STORES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from panda.data.settings import PatchSettings, StoreKind
from panda.data.slide_entry import SLIDE_FILE, FileIdentity, SlideEntry
from panda.errors import ManifestError, PandaError
from panda.files import advise_removal
from panda.wsi.classes import ANY_CANCER, IGNORED, ClassSet
from panda.wsi.geometry import Resolution
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide

OPEN_SLIDES = 32
"""Slides, or packed files, that a process holds open to read patches."""
SAVED_ANNOTATIONS = "annotations.npz"
"""Annotations of a slide as arrays, in its folder of a store without pixels."""

Image = NDArray[np.uint8]
"""(h, w, 3) RGB, or (h, w) one channel."""
WritePatch = Callable[[int, int, int, Image, Image], None]
"""Writes a patch: its number on the slide, x and y in level-0 px, image (h, w, 3) RGB and target (h, w)."""

_BLOCK = 4096  # bytes; a file takes whole blocks, and a mask as PNG takes about one
_IGNORED_GREY, _ANY_CANCER_GREY = 128, 230
_NO_TARGET = 253


class PatchRow(NamedTuple):
    """One row of a patch manifest, see `panda.data.patch_manifests`; `img` and `msk` are absolute paths."""

    slide_id: str
    provider: str
    isup_grade: int | None
    number: int
    x: int
    y: int
    img: Path
    msk: Path
    tissue_fraction: float
    tumor_fraction: float


class PixelStore(ABC):
    """The pixels of a patch store; picklable, and safe in several processes."""

    keeps_pixels: ClassVar[bool] = True
    """The store has the pixels. If False, the extraction reads no images and writes no patches."""

    def __init__(self, settings: PatchSettings) -> None:
        self.settings = settings

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.settings,)

    @abstractmethod
    def name_files(self, slide_id: str, x: int, y: int) -> tuple[str, str] | None:
        """Return image and mask file of a patch, relative to the store; None if the store keeps no pixels."""

    @abstractmethod
    def open_writer(self, folder: Path, slide_id: str, count: int) -> AbstractContextManager[WritePatch]:
        """Open the empty folder of a slide; the context gives a function that takes each patch once, in any order."""

    @abstractmethod
    def read(self, row: PatchRow, store: Path) -> tuple[Image, Image]:
        """Read image (h, w, 3) RGB and target (h, w) of a patch of a store, see `LabelMask.read_target`.

        Raises:
            ManifestError: If a file of the store is missing or damaged, or the slide or mask has changed since.
            PandaError: If the slide or its mask cannot be read there.
        """

    @abstractmethod
    def estimate_bytes(self, image: Image) -> int:
        """Estimate the bytes on the disk of a patch that looks like this image."""


class PngStore(PixelStore):
    """Files to look at, one a patch.

    `<SLIDE_ID>/img/<SLIDE_ID>_x1234_y5678.png`, and the mask in `msk/` under the same name: 255 cancer, 0 other, 128
    ignored. Several classes of cancer divide the greys up to 255 evenly, and 230 is cancer of an unknown class. x and y
    are the patch's top-left corner in level-0 px of the slide.
    """

    def __init__(self, settings: PatchSettings) -> None:
        super().__init__(settings)
        self._greys = list_greys(settings.classes)
        self._to_grey = np.zeros(256, np.uint8)
        self._from_grey = np.full(256, _NO_TARGET, np.uint8)
        for target, grey in self._greys.items():
            self._to_grey[target], self._from_grey[grey] = grey, target

    def name_files(self, slide_id: str, x: int, y: int) -> tuple[str, str]:
        """Return the two files of the patch."""
        name = f"{slide_id}_x{x}_y{y}.png"
        return f"{slide_id}/img/{name}", f"{slide_id}/msk/{name}"

    @contextmanager
    def open_writer(self, folder: Path, slide_id: str, count: int) -> Iterator[WritePatch]:
        """Make the folders of images and masks."""
        for name in ("img", "msk"):
            (folder / name).mkdir()

        def write(number: int, x: int, y: int, image: Image, target: Image) -> None:
            for name, pixels in zip(
                self.name_files(slide_id, x, y),
                (image, np.asarray(cv2.LUT(target, self._to_grey), np.uint8)),
                strict=True,
            ):
                (folder / Path(name).relative_to(slide_id)).write_bytes(encode_png(pixels))

        yield write

    def read(self, row: PatchRow, store: Path) -> tuple[Image, Image]:
        """Read the two files."""
        image = self._decode(row.img, cv2.IMREAD_COLOR_RGB)
        mask = self._decode(row.msk, cv2.IMREAD_GRAYSCALE)
        target = np.asarray(cv2.LUT(mask, self._from_grey), np.uint8)
        if (target == _NO_TARGET).any():
            *greys, last = sorted(self._greys.values())
            raise _make_file_error(row.msk, f"has values other than {', '.join(map(str, greys))} and {last}")
        return image, target

    def estimate_bytes(self, image: Image) -> int:
        """Return the size of the image as PNG, and the rest of its last block and of the mask's."""
        return len(encode_png(image)) + 2 * _BLOCK

    def _decode(self, path: Path, flags: int) -> Image:
        try:
            data = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise _make_file_error(path, f"cannot be read ({error.strerror})") from error
        image = cv2.imdecode(data, flags) if data.size else None
        if image is None:
            raise _make_file_error(path, "is not an image")
        size = self.settings.patch_size
        if image.shape[:2] != (size, size):
            raise _make_file_error(path, f"is {image.shape[1]} x {image.shape[0]} px, not {size} x {size}")
        return np.asarray(image, np.uint8)


class PackedStore(PixelStore):
    """Memory-mapped arrays, two a slide.

    `<SLIDE_ID>/img.npy` is (N, h, w, 3) uint8 and `msk.npy` (N, h, w) uint8: the target, see `panda.wsi.classes`.
    """

    def __init__(self, settings: PatchSettings) -> None:
        super().__init__(settings)
        self._open = lru_cache(2 * OPEN_SLIDES)(self._map)

    def name_files(self, slide_id: str, x: int, y: int) -> tuple[str, str]:
        """Return the two files of the slide."""
        return f"{slide_id}/img.npy", f"{slide_id}/msk.npy"

    @contextmanager
    def open_writer(self, folder: Path, slide_id: str, count: int) -> Iterator[WritePatch]:
        """Create both files and write their headers."""
        side = self.settings.patch_size
        with ExitStack() as stack:
            # Plain files and not memory maps: a full disk is an error in the first, and a crash in the second.
            files = [stack.enter_context((folder / name).open("wb")) for name in ("img.npy", "msk.npy")]
            for file, shape in zip(files, ((count, side, side, 3), (count, side, side)), strict=True):
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            starts = [file.tell() for file in files]

            def write(number: int, x: int, y: int, image: Image, target: Image) -> None:
                for file, start, pixels in zip(files, starts, (image, target), strict=True):
                    file.seek(start + number * pixels.nbytes)
                    file.write(np.ascontiguousarray(pixels).data)

            yield write

    def read(self, row: PatchRow, store: Path) -> tuple[Image, Image]:
        """Copy the patch from the mapped arrays."""
        images, masks = self._open(row.img), self._open(row.msk)
        if not row.number < min(len(images), len(masks)):
            raise _make_file_error(row.img, f"holds {len(images)} patches, number {row.number} is asked for")
        return np.array(images[row.number]), np.array(masks[row.number])

    def estimate_bytes(self, image: Image) -> int:
        """Return the size of the patch as an array; it is exact."""
        return 4 * self.settings.patch_size**2

    def _map(self, path: Path) -> Image:
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _make_file_error(path, f"cannot be read ({error})") from error
        side = self.settings.patch_size
        if mapped.dtype != np.uint8 or mapped.shape[1:3] != (side, side):
            raise _make_file_error(path, f"holds {mapped.dtype} {mapped.shape}, not patches of {side} px")
        return np.asarray(mapped, np.uint8)


class SlideStore(PixelStore):
    """No pixels: each patch is read from its slide and its labels each time.

    `<SLIDE_ID>/annotations.npz` has annotations as arrays, which open faster than their file.
    """

    keeps_pixels = False

    def __init__(self, settings: PatchSettings) -> None:
        super().__init__(settings)
        self._open = lru_cache(OPEN_SLIDES)(self._open_slide)

    def name_files(self, slide_id: str, x: int, y: int) -> None:
        """Return None."""

    def open_writer(self, folder: Path, slide_id: str, count: int) -> AbstractContextManager[WritePatch]:
        """Return a context whose function does nothing."""
        return nullcontext(lambda *patch: None)

    def read(self, row: PatchRow, store: Path) -> tuple[Image, Image]:
        """Read the patch from the slide and the mask."""
        slide, mask, resolution = self._open(row.img, row.msk, row.provider, store / row.slide_id)
        corner, size = (row.x, row.y), (self.settings.patch_size, self.settings.patch_size)
        target = self.settings.read_target(mask, resolution, corner)
        return slide.read(resolution, corner, size), target

    def estimate_bytes(self, image: Image) -> int:
        """Return 0."""
        return 0

    def _open_slide(self, img: Path, msk: Path, provider: str, folder: Path) -> tuple[Slide, LabelMask, Resolution]:
        settings = self.settings
        slide = settings.slide_options.open(img)
        mask = settings.open_labels(msk, slide, provider, folder / SAVED_ANNOTATIONS)
        _require_unchanged(folder, img, msk)
        return slide, mask, settings.resolution.resolve(slide)


STORES: dict[StoreKind, type[PixelStore]] = {"png": PngStore, "packed": PackedStore, "slide": SlideStore}
"""Every kind of patch store by its name in `data.store`."""


def list_greys(classes: ClassSet) -> dict[int, int]:
    """Return the grey value of each target in a mask file."""
    most = len(classes.names) - 1
    greys = {number: 255 * number // most for number in range(most + 1)} | {IGNORED: _IGNORED_GREY}
    return greys if classes.is_binary else greys | {ANY_CANCER: _ANY_CANCER_GREY}


def open_pixel_store(settings: PatchSettings) -> PixelStore:
    """Return the pixels of a store of these settings."""
    return STORES[settings.store](settings)


def encode_png(image: Image) -> bytes:
    """Encode (h, w, 3) uint8 RGB or a mask (h, w) uint8 as PNG, with the fastest options for stained tissue.

    A mask needs no filter, and so it is decoded five times as fast. docs/performance.md has the measurements.
    """
    strategy, filters = imagecodecs.PNG.STRATEGY, imagecodecs.PNG.FILTER
    options = (strategy.RLE, filters.UP) if image.ndim == 3 else (strategy.DEFAULT, filters.NO)
    return bytes(imagecodecs.png_encode(image, level=1, strategy=options[0], filter=options[1]))


def _require_unchanged(folder: Path, img: Path, msk: Path) -> None:
    """Raise `ManifestError` if slide or mask changed since the patches in a slide's folder of the store were cut."""
    try:
        entry = SlideEntry.read(folder)
    except (OSError, PandaError) as error:
        raise _make_file_error(folder / SLIDE_FILE, f"cannot be read ({error})") from error
    for what, path, before in (("slide", img, entry.slide), ("mask", msk, entry.mask)):
        now = FileIdentity.read(path)
        if before is None or (now.bytes, now.mtime_ns) != (before.bytes, before.mtime_ns):
            raise ManifestError(
                f"{path}: the {what} has changed since its patches were cut: {before or 'no file'} then, "
                f"{now} now; run again to cut them again, or restore the old file with its time of change"
            )


def _make_file_error(path: Path, fault: str) -> ManifestError:
    """Return the error for a file of the store, with the remedy."""
    folder = path.parents[path.suffix == ".png"]
    remedy = advise_removal(folder, SLIDE_FILE, "choose another folder with data.store_root")
    return ManifestError(f"{path} {fault}; {remedy}: the patches of the slide will be cut again")
