"""Patches as a dataset: the manifests of a split, and the pairs of image and mask they list.

A manifest is a CSV in ``<store>/splits/<fingerprint of the split>/{train,val,test}.csv``, one row a patch:
``slide_id, provider, isup_grade, x, y, img, msk, tissue_fraction, tumor_fraction``; x and y in level-0 px, the
files relative to the store.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast, overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from panda.data.augment import Augmentation
from panda.data.loaders import Draw, drawn
from panda.data.patches import SlidePatches, patch_name
from panda.data.splits import SPLITS, Split
from panda.data.store import StoreResult
from panda.errors import ManifestError
from panda.files import fingerprint, whole_path

COLUMNS = (
    "slide_id",
    "provider",
    "isup_grade",
    "x",
    "y",
    "img",
    "msk",
    "tissue_fraction",
    "tumor_fraction",
)

Members = Mapping[Split, Sequence[tuple[SlidePatches, NDArray[np.int64]]]]
"""Split → slides with the numbers of their patches that belong to it."""


class PatchRow(NamedTuple):
    """One row of a manifest.

    Attributes:
        slide_id: the slide.
        provider: its provider.
        isup_grade: its grade, or None.
        x: left edge in level-0 px of the slide.
        y: top edge in level-0 px of the slide.
        img: image file.
        msk: mask file.
        tissue_fraction: share of tissue.
        tumor_fraction: share of cancer pixels.
    """

    slide_id: str
    provider: str
    isup_grade: int | None
    x: int
    y: int
    img: Path
    msk: Path
    tissue_fraction: float
    tumor_fraction: float


class PatchTable(Sequence[PatchRow]):
    """The rows of a manifest, kept as columns: PANDA has millions of patches, and each worker has them all.

    Args:
        path: the manifest.

    Raises:
        ManifestError: the manifest is missing, lacks a column, has no rows or a malformed one.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.store = self.path.resolve().parents[2]
        slides: dict[tuple[str, str, str], int] = {}
        index, xy, fractions = array("i"), array("q"), array("f")
        remedy = f"remove the folder {self.path.parent}, it will be written again"
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.reader(file, strict=True)
                if (found := tuple(next(reader, ()))) != COLUMNS:
                    raise ManifestError(
                        f"{path}: the columns are {', '.join(found) or 'none'}, not {', '.join(COLUMNS)}; {remedy}"
                    )
                for slide_id, provider, grade, x, y, img, msk, tissue, tumor in reader:
                    files = image_file(slide_id, int(x), int(y)), mask_file(slide_id, int(x), int(y))
                    if (img, msk) != files:
                        raise ValueError(f"img and msk are {img} and {msk}, not {files[0]} and {files[1]}")
                    index.append(slides.setdefault((slide_id, provider, grade), len(slides)))
                    xy.extend((int(x), int(y)))
                    fractions.extend((float(tissue), float(tumor)))
        except OSError as error:
            raise ManifestError(f"{path}: the patch manifest cannot be read ({error.strerror})") from error
        except (ValueError, csv.Error) as error:
            raise ManifestError(f"{path}, row {reader.line_num}: {error}; {remedy}") from error
        if not index:
            raise ManifestError(f"{path}: the patch manifest lists no patches")
        self.slides = list(slides)
        self.slide_index = np.array(index, dtype=np.int32)
        self.xy = np.array(xy, dtype=np.int64).reshape(-1, 2)
        self.fractions = np.array(fractions, dtype=np.float32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.slide_index)

    @overload
    def __getitem__(self, index: int) -> PatchRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PatchRow]: ...
    def __getitem__(self, index: int | slice) -> PatchRow | list[PatchRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        slide_id, provider, grade = self.slides[self.slide_index[index]]
        x, y = self.xy[index].tolist()
        tissue, tumor = self.fractions[index].tolist()
        return PatchRow(
            slide_id,
            provider,
            int(grade) if grade else None,
            x,
            y,
            self.store / image_file(slide_id, x, y),
            self.store / mask_file(slide_id, x, y),
            tissue,
            tumor,
        )

    def __iter__(self) -> Iterator[PatchRow]:
        return (self[number] for number in range(len(self)))


class PatchSet(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image and cancer mask.

    An item is ``(image, mask)``: (3, h, w) float32 in [0, 1], RGB; (1, h, w) float32, 0 or 1.

    Args:
        manifest: CSV of a split.
        transform: applied to image and mask together; None for none. Its random choices follow the `Draw` that
            indexes the set or, with a plain index, torch's random generator.

    Raises:
        ManifestError: the manifest is faulty; on access also a patch file that is missing, unreadable, of an
            odd size, or a mask with values other than 0 and 255.
    """

    def __init__(self, manifest: Path | str, transform: Augmentation | None = None) -> None:
        self.rows = PatchTable(manifest)
        self.transform = transform
        self.size = _read(self.rows[0].img, cv2.IMREAD_COLOR_RGB).shape[:2]

    @property
    def slide_ids(self) -> list[str]:
        """The slides of the patches, each once, in the manifest's order."""
        return list(dict.fromkeys(slide_id for slide_id, _, _ in self.rows.slides))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, Tensor]:
        number, seed = drawn(index)
        row = self.rows[number]
        image = _read(row.img, cv2.IMREAD_COLOR_RGB)
        mask = _read(row.msk, cv2.IMREAD_GRAYSCALE)
        for path, part in ((row.img, image), (row.msk, mask)):
            if part.shape[:2] != self.size:
                raise _broken(path, f"is {part.shape[1]} x {part.shape[0]} px, not {self.size[1]} x {self.size[0]}")
        if not np.isin(mask, (0, 255)).all():
            raise _broken(row.msk, "has values other than 0 and 255")
        tumor = (mask > 0).astype(np.uint8)
        if self.transform is not None:
            image, tumor = self.transform(image, tumor, seed)
        return image_tensor(image), torch.from_numpy(tumor.astype(np.float32))[None]


def image_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(h, w, 3) uint8 → (3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / 255)


def image_file(slide_id: str, x: int, y: int) -> str:
    """Image file of the patch at (x, y) level-0 px, relative to the store."""
    return f"{slide_id}/img/{patch_name(slide_id, x, y)}"


def mask_file(slide_id: str, x: int, y: int) -> str:
    """Mask file of the patch at (x, y) level-0 px, relative to the store."""
    return f"{slide_id}/msk/{patch_name(slide_id, x, y)}"


def write_patch_manifests(result: StoreResult, split: Mapping[str, Split]) -> dict[Split, Path]:
    """Write the manifests of a split by slide.

    Args:
        result: the patches in the store; slides that failed are in none of the manifests.
        split: slide id → split.

    Returns:
        Split → manifest, for the splits that have patches.

    Raises:
        ManifestError: all slides of a split failed.
    """
    members: dict[Split, list[tuple[SlidePatches, NDArray[np.int64]]]] = {
        name: [
            (patches, np.arange(len(patches)))
            for slide_id, patches in sorted(result.slides.items())
            if split.get(slide_id) == name
        ]
        for name in SPLITS
        if name in split.values()
    }
    if empty := [name for name, slides in members.items() if not slides]:
        raise ManifestError(
            f"{result.store}: all slides of {', '.join(empty)} failed ({len(result.failures)} failures in all; "
            f"the first: {result.failures[0].message if result.failures else 'none'}); mend or exclude them"
        )
    return _write(result.store, members)


def write_one_slide_manifests(
    store: Path, patches: SlidePatches, *, seed: int, val_fraction: float
) -> dict[Split, Path]:
    """Write the manifests of one slide whose patches are split at random: to learn from, not to generalise.

    Args:
        store: the store.
        patches: of the slide.
        seed: of the shuffle.
        val_fraction: share of the patches for validation; at least one.

    Returns:
        Manifests of ``train`` and ``val``.

    Raises:
        ManifestError: the slide has fewer than two patches.
    """
    if len(patches) < 2:
        raise ManifestError(
            f"{patches.folder}: the slide has {len(patches)} patch, two are needed for training and validation; "
            f"choose another with data.slide_id, or lower data.patch_size or data.min_tissue"
        )
    order = np.random.default_rng(seed).permutation(len(patches))
    val = min(max(1, round(val_fraction * len(patches))), len(patches) - 1)
    return _write(store, {"train": [(patches, np.sort(order[val:]))], "val": [(patches, np.sort(order[:val]))]})


def _write(store: Path, members: Members) -> dict[Split, Path]:
    """Write the manifests into a folder named by their content; the same split is written once."""
    name = fingerprint(
        {
            split: [[patches.record.slide_id, patches.made_from, numbers.tolist()] for patches, numbers in slides]
            for split, slides in members.items()
        }
    )[:12]
    folder = store / "splits" / name
    if not folder.is_dir():
        with whole_path(folder) as partial:
            partial.mkdir()
            for split, slides in members.items():
                with (partial / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                    writer = csv.writer(file)
                    writer.writerow(COLUMNS)
                    for patches, numbers in slides:
                        writer.writerows(_csv_rows(patches, numbers))
    return {split: folder / f"{split}.csv" for split in members}


def _csv_rows(patches: SlidePatches, numbers: NDArray[np.int64]) -> Iterator[tuple[object, ...]]:
    """The rows of some patches of a slide."""
    record = patches.record
    for number in numbers.tolist():
        x, y = patches.xy[number].tolist()
        yield (
            record.slide_id,
            record.provider,
            "" if record.isup_grade is None else record.isup_grade,
            x,
            y,
            image_file(record.slide_id, x, y),
            mask_file(record.slide_id, x, y),
            patches.tissue_fraction[number],
            patches.tumor_fraction[number],
        )


def _read(path: Path, flags: int) -> NDArray[np.uint8]:
    """Read a patch file."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise _broken(path, f"cannot be read ({error.strerror})") from error
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        raise _broken(path, "is not an image")
    return cast("NDArray[np.uint8]", image)


def _broken(path: Path, fault: str) -> ManifestError:
    """The error of a patch file, with the remedy."""
    return ManifestError(f"{path} {fault}; delete the slide's folder {path.parents[1]}, its patches will be cut again")
