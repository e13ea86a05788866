"""Patch manifests: which patches of a store belong to each split.

A manifest is a CSV in `<store>/splits/<fingerprint of the split>/{train,val,test}.csv`, one row a patch:
`slide_id, provider, isup_grade, number, x, y, img, msk, tissue_fraction, tumor_fraction`, and `<class>_fraction` of
each class of cancer if there are several. `number` counts the slide's patches, and x and y are level-0 px. `img` and
`msk` are the files with the pixels, relative to the store. If the store keeps no pixels, they are the absolute paths of
slide and mask.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.data.patches import SlidePatches
from panda.data.pixel_stores import PatchRow, PixelStore, open_pixel_store
from panda.data.settings import PatchSettings
from panda.data.splits import SPLITS, Split
from panda.data.store import STORE_FILE, StoreResult, read_store
from panda.errors import ManifestError
from panda.files import advise_removal, fingerprint, hold_lock, write_beside
from panda.tables import decode_cell, write_table

Members = Mapping[Split, Sequence[tuple[SlidePatches, NDArray[np.int64]]]]
"""Split → slides with the numbers of their patches that belong to it."""


def list_columns(settings: PatchSettings) -> tuple[str, ...]:
    """Return the columns of the manifests of a store."""
    classes = settings.classes
    return (*PatchRow._fields, *(f"{name}_fraction" for name in classes.cancer_names if not classes.is_binary))


def _find_store(manifest: Path) -> Path:
    """Return the store of a manifest, or refuse a path that is none."""
    place = "give STORE/splits/FINGERPRINT/train.csv of a patch store, or val.csv or test.csv"
    if not manifest.is_file():
        raise ManifestError(f"{manifest}: the patch manifest does not exist; {place}")
    store = manifest.resolve().parents[:3][-1]
    if not (store / STORE_FILE).is_file():
        raise ManifestError(f"{manifest} is no patch manifest, because there is no {store / STORE_FILE}; {place}")
    return store


class PatchTable(Sequence[PatchRow]):
    """The rows of a manifest as columns, because PANDA has millions of patches and each worker has them all.

    Attributes:
        fractions: Share of tissue and of cancer, (N, 2) float32.
        class_fractions: Share of each class of cancer, (N, number of such classes) float32.

    Raises:
        ManifestError: If the manifest is missing, lacks a column, has no rows or a malformed one.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.store = _find_store(self.path)
        self.settings = read_store(self.store)
        self.pixels = open_pixel_store(self.settings)
        slides: dict[tuple[str, ...], int] = {}
        index, numbers, xy, fractions = array("i"), array("i"), array("q"), array("f")
        columns = list_columns(self.settings)
        remedy = "choose another folder with data.store_root, where it is written again"
        remedy = advise_removal(self.path.parent, self.path.name, remedy)
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.reader(file, strict=True)
                if (found := tuple(next(reader, ()))) != columns:
                    raise ManifestError(
                        f"{path}: the columns are {', '.join(found) or 'none'}, not {', '.join(columns)}; {remedy}"
                    )
                for row in reader:
                    slide_id, provider, grade, number, x, y, img, msk, *shares = map(decode_cell, row)
                    if len(row) != len(columns):
                        raise ValueError(f"{len(row)} values for {len(columns)} columns")
                    files = self.pixels.name_files(slide_id, int(x), int(y))
                    if files is not None and (img, msk) != files:
                        raise ValueError(f"img and msk are {img} and {msk}, not {files[0]} and {files[1]}")
                    key = (slide_id, provider, grade) if files else (slide_id, provider, grade, img, msk)
                    index.append(slides.setdefault(key, len(slides)))
                    numbers.append(int(number))
                    xy.extend((int(x), int(y)))
                    fractions.extend(map(float, shares))
        except OSError as error:
            raise ManifestError(f"{path}: the patch manifest cannot be read ({error.strerror})") from error
        except (ValueError, csv.Error) as error:
            raise ManifestError(f"{path}, row {reader.line_num}: {error}; {remedy}") from error
        if not index:
            raise ManifestError(f"{path}: the patch manifest lists no patches")
        self.slides = list(slides)
        self.slide_index = np.array(index, dtype=np.int32)
        self.numbers = np.array(numbers, dtype=np.int32)
        self.xy = np.array(xy, dtype=np.int64).reshape(-1, 2)
        shares_of = np.array(fractions, dtype=np.float32).reshape(len(index), -1)
        self.fractions = shares_of[:, :2]
        self.class_fractions = shares_of[:, 1 if self.settings.classes.is_binary else 2 :]

    def __len__(self) -> int:
        return len(self.slide_index)

    @overload
    def __getitem__(self, index: int) -> PatchRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PatchRow]: ...
    def __getitem__(self, index: int | slice) -> PatchRow | list[PatchRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        slide_id, provider, grade, *slide_files = self.slides[self.slide_index[index]]
        x, y = self.xy[index].tolist()
        tissue, tumor = self.fractions[index].tolist()
        img, msk = self.pixels.name_files(slide_id, x, y) or slide_files
        place = int(self.numbers[index]), x, y, self.store / img, self.store / msk
        return PatchRow(slide_id, provider, int(grade) if grade else None, *place, tissue, tumor)


def write_patch_manifests(result: StoreResult, split: Mapping[str, Split]) -> dict[Split, Path]:
    """Write the manifests of a split by slide, without the slides that failed or contradict their grade.

    A split of nothing but such contradictions keeps them, and `panda.data.label_check.require_cancer` refuses it.

    Args:
        result: The patches in the store.
        split: Slide id → split.

    Returns:
        Split → manifest, for the splits that have slides.

    Raises:
        ManifestError: If all slides of a split failed.
    """
    members: dict[Split, list[tuple[SlidePatches, NDArray[np.int64]]]] = {}
    for name in SPLITS:
        if name in split.values():
            slides = [patches for slide_id, patches in sorted(result.slides.items()) if split.get(slide_id) == name]
            sound = [patches for patches in slides if not patches.contradicts_grade]
            members[name] = [(patches, np.arange(len(patches))) for patches in sound or slides]
    if empty := [name for name, slides in members.items() if not slides]:
        first = result.failures[0].message if result.failures else "none"
        raise ManifestError(
            f"{result.store}: all slides of {', '.join(empty)} failed ({len(result.failures)} failures in all, in "
            f"failures.csv of the run; the first: {first}); repair or exclude them"
        )
    return _write(result.store, members)


def write_one_slide_manifests(
    store: Path, patches: SlidePatches, *, seed: int, val_fraction: float
) -> dict[Split, Path]:
    """Write the manifests of one slide whose patches are split at random: to learn with, not to generalize.

    At least one patch is for validation, and one for training.

    Raises:
        ManifestError: If the slide has fewer than two patches.
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
    settings = read_store(store)
    pixels, columns = open_pixel_store(settings), list_columns(settings)
    name = fingerprint(
        {
            split: [
                [patches.record.slide_id, patches.fingerprint, numbers.tolist(), _list_files(pixels, patches.record)]
                for patches, numbers in slides
            ]
            for split, slides in members.items()
        }
    )[:12]
    folder = store / "splits" / name
    with hold_lock(folder):
        if not folder.is_dir():
            with write_beside(folder) as partial:
                partial.mkdir()
                for split, slides in members.items():
                    rows = (row for patches, numbers in slides for row in _yield_rows(pixels, patches, numbers))
                    write_table(partial / f"{split}.csv", rows, columns)
    return {split: folder / f"{split}.csv" for split in members}


def _yield_rows(pixels: PixelStore, patches: SlidePatches, numbers: NDArray[np.int64]) -> Iterator[tuple[object, ...]]:
    """Yield the rows of some patches of a slide."""
    record = patches.record
    for number in numbers.tolist():
        x, y = patches.xy[number].tolist()
        img, msk = pixels.name_files(record.slide_id, x, y) or _list_files(pixels, record)
        shares = [patches.tissue_fraction[number], patches.tumor_fraction[number]]
        if not pixels.settings.classes.is_binary:
            shares += patches.class_fractions[number].tolist()
        yield record.slide_id, record.provider, record.isup_grade, number, x, y, img, msk, *shares


def _list_files(pixels: PixelStore, record: SlideRecord) -> list[str]:
    """Return the absolute paths of slide and mask if patches are read from them, else nothing."""
    if pixels.keeps_pixels:
        return []
    assert record.mask_path is not None, "patches are cut from slides with a mask"
    return [str(record.image_path.resolve()), str(record.mask_path.resolve())]
