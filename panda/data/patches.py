"""Patches of one slide: laid over its tissue, their pixels kept in a folder of its own (`panda.data.pixels`).

A slide's folder is written beside its final name and renamed when complete: it is whole or absent. It carries
what it was made from, so that a slide or mask that has changed since is extracted again.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.data.pixels import SLIDE_FILE, PatchWriter, patch_writer
from panda.data.settings import PatchSettings
from panda.errors import MaskError, PandaError, SlideError
from panda.files import fingerprint, identity, remove, replace, sync
from panda.wsi.geometry import Resolution
from panda.wsi.grid import Grid, tissue_grid
from panda.wsi.label_maps import find_label_map
from panda.wsi.label_mask import CANCER, LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue

PARTIAL = ".partial"
COLUMN_PX = 4096
"""Width in px of the level that is read of the columns in which a slide is cut: a row of it, of 9 tiles of 512 px and
those of the mask, is kept by `panda.wsi.tiff.segments` for each of two threads."""


@dataclass(frozen=True, eq=False)
class SlidePatches:
    """The finished patches of one slide, by y and then x.

    Attributes:
        record: The slide.
        folder: The slide's folder in the store.
        downsample: Level-0 px per patch px.
        mpp: µm per patch px as (x, y), or None where unknown.
        xy: (N, 2) int64, top-left corners in level-0 px.
        tissue_fraction: (N,) float64, share of tissue in each patch.
        tumor_fraction: (N,) float64, share of cancer pixels in each patch.
        made_from: Fingerprint of the settings and of the slide's and the mask's files.
        reused: The folder was there already.
    """

    record: SlideRecord
    folder: Path
    downsample: float
    mpp: tuple[float, float] | None
    xy: NDArray[np.int64]
    tissue_fraction: NDArray[np.float64]
    tumor_fraction: NDArray[np.float64]
    made_from: str
    reused: bool

    def __len__(self) -> int:
        return len(self.xy)


def load_slide(record: SlideRecord, settings: PatchSettings, store: Path) -> SlidePatches | None:
    """Find a slide's finished patches in the store.

    Args:
        record: The slide.
        settings: Of the store.
        store: The store's folder.

    Returns:
        The patches, or None where there are none, or where they were made from other files or another row.
    """
    try:
        made_from = _made_from(_origin(record), settings)
        folder = store / record.slide_id
        stored = json.loads((folder / SLIDE_FILE).read_text(encoding="utf-8"))
        if stored["made_from"] != made_from:
            return None
        mpp = stored["resolution"]["mpp"]
        return SlidePatches(
            record=record,
            folder=folder,
            downsample=float(stored["resolution"]["downsample"]),
            mpp=None if mpp is None else (float(mpp[0]), float(mpp[1])),
            xy=np.array([(patch["x"], patch["y"]) for patch in stored["patches"]], dtype=np.int64),
            tissue_fraction=_column(stored["patches"], "tissue_fraction"),
            tumor_fraction=_column(stored["patches"], "tumor_fraction"),
            made_from=made_from,
            reused=True,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, PandaError):
        return None


def extract_slide(
    record: SlideRecord,
    settings: PatchSettings,
    store: Path,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> SlidePatches:
    """Cut the patches of one slide, unless the store has them already.

    One process at a time may work on a store: `panda.data.store.extract_store` holds its lock.

    Args:
        record: The slide.
        settings: How to cut.
        store: The store's folder; it is made where missing.
        on_stage: Called with the name of each stage as it begins (`slide`, `mask`, `tissue`, `grid`, and
            for each patch `read` and `write`); what it raises ends the extraction.

    Returns:
        The patches.

    Raises:
        SlideError: The slide is missing, cannot be read, changes meanwhile, lacks the resolution, or has too little
            tissue.
        MaskError: The mask is missing, cannot be read, changes meanwhile, or disagrees with the slide or the provider.
        OSError: The store cannot be written; the stage is `write`.
    """
    if (found := load_slide(record, settings, store)) is not None:
        return found
    on_stage("slide")
    slide_file = _identity(record.image_path, SlideError)
    with settings.slide_options.open(record.image_path) as slide:
        resolution = settings.resolution.resolve(slide)
        on_stage("mask")
        if record.mask_path is None or not os.path.lexists(record.mask_path):
            raise MaskError(
                f"{record.slide_id}: no mask; put the mask at {record.mask_path}, or leave such slides out with "
                f"data.exclude=[missing_mask]"
            )
        mask_file = _identity(record.mask_path, MaskError)
        with LabelMask.open(record.mask_path, slide, record.provider) as mask:
            on_stage("tissue")
            tissue = find_tissue(slide)
            on_stage("grid")
            grid = tissue_grid(
                resolution,
                tissue,
                settings.patch_size,
                settings.step,
                edge=settings.edge,
                min_tissue=settings.min_tissue,
            )
            if len(grid.level0) == 0:
                raise SlideError(
                    f"{record.image_path}: no patch of {settings.patch_size} px holds at least "
                    f"{settings.min_tissue:.0%} tissue; lower data.min_tissue or data.patch_size"
                )
            on_stage("write")
            partial = store / f"{record.slide_id}{PARTIAL}"
            remove(partial)
            try:
                partial.mkdir(parents=True)
                with closing(
                    patch_writer(settings.store, partial, record.slide_id, len(grid), settings.patch_size)
                ) as writer:
                    tumor = _write_patches(
                        writer,
                        slide,
                        functools.partial(mask.read_target, ignore_background=settings.ignore_background),
                        grid,
                        on_stage,
                    )
                    on_stage("read")
                    origin = _origin(record)
                    if origin["slide"] != slide_file:
                        raise SlideError(f"{record.image_path}: changed while it was read; run again to cut it anew")
                    if origin["mask"] != mask_file:
                        raise MaskError(f"{record.mask_path}: changed while it was read; run again to cut it anew")
                    on_stage("write")
                content = {
                    "made_from": _made_from(origin, settings),
                    **origin,
                    "resolution": _resolution(resolution, slide),
                    "tissue": {"how": tissue.how, "fraction": round(float(tissue.fraction), 6)},
                    "patches": _patches(grid, tumor),
                }
                (partial / SLIDE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
                sync(partial)
                replace(partial, store / record.slide_id)
            except BaseException:
                remove(partial)
                raise
    return SlidePatches(
        record=record,
        folder=store / record.slide_id,
        downsample=resolution.downsample,
        mpp=resolution.mpp,
        xy=grid.level0,
        tissue_fraction=_column(content["patches"], "tissue_fraction"),
        tumor_fraction=_column(content["patches"], "tumor_fraction"),
        made_from=content["made_from"],
        reused=False,
    )


def _write_patches(
    writer: PatchWriter,
    slide: Slide,
    read_target: Callable[..., NDArray[np.uint8]],
    grid: Grid,
    on_stage: Callable[[str], None],
) -> list[float]:
    """Write all patches of the grid; the share of cancer in each.

    Neighbours share tiles of the file, of which the readers keep some. So wide slides are read in columns, each of
    them row by row.
    """
    size = (grid.patch_size, grid.patch_size)
    fractions = [0.0] * len(grid)
    column = grid.level0[:, 0] // round(COLUMN_PX * grid.resolution.level_downsample)
    for number in np.argsort(column, kind="stable").tolist():
        x, y = grid.level0[number].tolist()
        on_stage("read")
        image = slide.read(grid.resolution, (x, y), size) if writer.wants_images else None
        target = read_target(grid.resolution, (x, y), size)
        on_stage("write")
        writer.write(number, x, y, image, target)
        fractions[number] = round(int(np.count_nonzero(target == CANCER)) / target.size, 6)
    return fractions


def _patches(grid: Grid, tumor: list[float]) -> list[dict[str, Any]]:
    """The patches as plain data."""
    return [
        {"x": x, "y": y, "tissue_fraction": round(float(share), 6), "tumor_fraction": cancer}
        for (x, y), share, cancer in zip(grid.level0.tolist(), grid.tissue_fraction, tumor, strict=True)
    ]


def _resolution(resolution: Resolution, slide: Slide) -> dict[str, Any]:
    """The patches' resolution as plain data."""
    return {
        "downsample": resolution.downsample,
        "level": resolution.level,
        "resampled": resolution.resampled,
        "mpp": None if resolution.mpp is None else list(resolution.mpp),
        "mpp_note": slide.mpp_note,
    }


def _origin(record: SlideRecord) -> dict[str, Any]:
    """The slide's row and files as plain data: what its patches depend on beside the settings.

    Raises:
        SlideError: The slide is missing.
        MaskError: The mask is missing, or its provider has no label map.
    """
    return {
        "slide_id": record.slide_id,
        "provider": record.provider,
        "isup_grade": record.isup_grade,
        "codes": find_label_map(record.provider).codes(),
        "slide": _identity(record.image_path, SlideError),
        "mask": None if record.mask_path is None else _identity(record.mask_path, MaskError),
    }


def _made_from(origin: dict[str, Any], settings: PatchSettings) -> str:
    """Fingerprint of all that a slide's patches depend on."""
    return fingerprint({"settings": asdict(settings), **origin})


def _identity(path: Path, error: type[PandaError]) -> dict[str, str | int]:
    """See `panda.files.identity`: to open every slide only to see that it is unchanged would take long."""
    try:
        return identity(path)
    except OSError as exc:
        raise error(f"{path}: cannot be found ({exc.strerror}); check data.root and the image_id") from exc


def _column(patches: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """One number of every patch."""
    return np.array([patch[name] for patch in patches], dtype=np.float64)
