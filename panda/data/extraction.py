"""Extraction: cut the patches of slides into a patch store.

The folder of a slide is written beside its final name and renamed when complete, so it is whole or absent. It has
the fingerprint of its slide, mask and settings: if one of them changes, the slide is cut again.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.data.disk import require_room
from panda.data.failures import Failure
from panda.data.label_check import warn_of_unlabelled
from panda.data.manifest import SlideRecord
from panda.data.patches import SlidePatches, fingerprint_patches, load_slide
from panda.data.pixel_stores import SAVED_ANNOTATIONS, WritePatch, open_pixel_store
from panda.data.settings import PatchSettings
from panda.data.slide_entry import (
    PatchEntry,
    ResolutionEntry,
    SlideEntry,
    SlideOrigin,
    TissueEntry,
    identify_file,
    read_origin,
)
from panda.data.store import (
    STORE_FILE,
    StoreResult,
    describe_unwritable,
    locate_store,
    prepare_store,
)
from panda.errors import MaskError, PandaError, SlideError, name_exhaustion, raise_exhaustion
from panda.files import hold_lock, write_beside
from panda.progress import Progress
from panda.wsi.annotations.source import AnnotationSource
from panda.wsi.classes import ANY_CANCER
from panda.wsi.grid import Grid
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue

log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """Another slide has ended the run."""


@name_exhaustion()
def extract_store(
    records: Sequence[SlideRecord],
    settings: PatchSettings,
    store_root: Path | str,
    root: Path | str,
    *,
    workers: int = 2,
    progress: bool = True,
) -> StoreResult:
    """Cut the patches of all slides that the store does not have yet.

    A slide that fails is listed in the result, and the others continue. The process may be killed at any moment: the
    next call keeps the finished slides. A second process on the same store waits for the first.

    Args:
        records: The slides.
        settings: How patches are cut.
        store_root: The folder of all stores.
        root: The data folder, for the store's name.
        workers: Slides cut at the same time, in threads.
        progress: Show a bar over the slides, with the patches so far.

    Raises:
        PandaError: If the store cannot be written (a full disk) or will not fit; finished slides are kept.
        ManifestError: If the folder holds a store of other settings.
        ExhaustedError: If memory, threads or file handles run out.
    """
    store = locate_store(store_root, root, settings)
    slides: dict[str, SlidePatches] = {}
    failures: dict[str, Failure] = {}
    try:
        store.mkdir(parents=True, exist_ok=True)
        with hold_lock(store / STORE_FILE):
            prepare_store(store, settings)
            for record in records:
                if (found := load_slide(record, settings, store)) is not None:
                    slides[record.slide_id] = found
            pending = [record for record in records if record.slide_id not in slides]
            if pending:
                warn_of_unlabelled(pending, settings)
                require_room(pending, settings, store)
            _extract_pending(pending, settings, store, slides, failures, workers=workers, progress=progress)
    except OSError as error:
        raise PandaError(describe_unwritable(store, error)) from error
    ids = [record.slide_id for record in records]  # the order does not depend on the threads
    found_slides = {slide_id: slides[slide_id] for slide_id in ids if slide_id in slides}
    return StoreResult(store, found_slides, [failures[slide_id] for slide_id in ids if slide_id in failures])


def _extract_pending(
    pending: Sequence[SlideRecord],
    settings: PatchSettings,
    store: Path,
    slides: dict[str, SlidePatches],
    failures: dict[str, Failure],
    *,
    workers: int,
    progress: bool,
) -> None:
    """Cut the slides in threads, and add them to `slides` or `failures`; the first error of the store ends all."""
    stop = threading.Event()
    patches = sum(map(len, slides.values()))
    total = len(slides) + len(pending)
    with (
        ThreadPoolExecutor(max(1, workers), thread_name_prefix="extract") as pool,
        Progress(total=total, stage="patches", initial=len(slides), hidden=not progress) as bar,
    ):
        futures = [pool.submit(_try_slide, record, settings, store, stop) for record in pending]
        try:
            for future in as_completed(futures):
                outcome = future.result()
                if isinstance(outcome, Failure):
                    failures[outcome.slide_id] = outcome
                else:
                    slides[outcome.record.slide_id] = outcome
                    patches += len(outcome)
                bar.set_postfix(patches=patches, failed=len(failures), refresh=False)
                bar.update()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _try_slide(
    record: SlideRecord, settings: PatchSettings, store: Path, stop: threading.Event
) -> SlidePatches | Failure:
    """Cut one slide. Its failure is returned, an error of the store is raised."""
    stage = "slide"

    def on_stage(name: str) -> None:
        nonlocal stage
        if stop.is_set():
            raise _StoppedError
        stage = name

    try:
        return extract_slide(record, settings, store, on_stage)
    except _StoppedError:
        raise
    except Exception as error:
        raise_exhaustion(error)
        if isinstance(error, OSError) and stage == "write":
            raise PandaError(describe_unwritable(store, error)) from error
        if not isinstance(error, PandaError):
            log.debug("slide %s", record.slide_id, exc_info=True)
        return Failure(record.slide_id, stage, type(error).__name__, str(error))


def extract_slide(
    record: SlideRecord,
    settings: PatchSettings,
    store: Path,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> SlidePatches:
    """Cut the patches of one slide, unless the store has them already.

    One process at a time may work on a store: `extract_store` holds its lock. `on_stage` is called with the name of
    each stage as it begins (`slide`, `mask`, `tissue`, `grid`, and for each patch `read` and `write`). An exception of
    it ends the extraction.

    Raises:
        SlideError: If the slide is missing, cannot be read, changes while it is read, lacks the resolution, or has too
            little tissue.
        MaskError: If the mask is missing, cannot be read, changes while it is read, or disagrees with the slide or the
            provider.
        OSError: If the store cannot be written; the stage is `write`.
    """
    if (found := load_slide(record, settings, store)) is not None:
        return found
    on_stage("slide")
    slide_file = identify_file(record.image_path, SlideError)
    with settings.slide_options.open(record.image_path, record.slide_id) as slide:
        resolution = settings.resolution.resolve(slide)
        on_stage("mask")
        if record.mask_path is None or not os.path.lexists(record.mask_path):
            raise MaskError(
                f"{record.slide_id}: no mask; put the mask at {record.mask_path}, or leave such slides out with "
                f"data.exclude=[missing_mask]"
            )
        mask_file = identify_file(record.mask_path, MaskError)
        with settings.open_labels(record.mask_path, slide, record.provider) as mask:
            on_stage("tissue")
            tissue = find_tissue(slide)
            on_stage("grid")
            grid = settings.lay_grid(resolution, tissue)
            if len(grid.level0) == 0:
                raise SlideError(
                    f"{record.image_path}: no patch of {settings.patch_size} px holds at least "
                    f"{settings.min_tissue:.0%} tissue; lower data.min_tissue or data.patch_size"
                )
            on_stage("write")
            with write_beside(store / record.slide_id) as partial:
                partial.mkdir()
                pixels = open_pixel_store(settings)
                read_target = functools.partial(settings.read_target, mask, grid.resolution)
                kinds = (*range(1, len(settings.classes.names)), ANY_CANCER)
                with pixels.open_writer(partial, record.slide_id, len(grid)) as write:
                    source = slide if pixels.keeps_pixels else None
                    cancer = _write_patches(write, source, read_target, grid, on_stage, kinds=kinds)
                if not pixels.keeps_pixels and isinstance(mask.source, AnnotationSource):
                    mask.source.save(partial / SAVED_ANNOTATIONS)
                on_stage("read")
                origin = read_origin(record, settings.classes)
                if origin.slide != slide_file:
                    raise SlideError(f"{record.image_path}: changed while it was read; run again to cut it again")
                if origin.mask != mask_file:
                    raise MaskError(f"{record.mask_path}: changed while it was read; run again to cut it again")
                on_stage("write")
                entry = _describe_slide(origin, settings, slide, tissue=tissue, grid=grid, cancer=cancer)
                entry.write(partial)
    return SlidePatches.from_entry(record, store / record.slide_id, entry)


def _write_patches(
    write: WritePatch,
    slide: Slide | None,
    read_target: Callable[[tuple[int, int]], NDArray[np.uint8]],
    grid: Grid,
    on_stage: Callable[[str], None],
    *,
    kinds: Sequence[int],
) -> NDArray[np.int64]:
    """Write all patches of the grid and return how many px of each have each target of `kinds`, (N, kinds).

    Neighbours share tiles of the file, and the readers keep some of these. So wide slides are read in columns, each
    column row by row. If the store keeps no pixels, `slide` is None and nothing is written.
    """
    size = (grid.patch_size, grid.patch_size)
    counts = np.zeros((len(grid), len(kinds)), np.int64)
    for number in grid.reading_order().tolist():
        x, y = grid.level0[number].tolist()
        on_stage("read")
        image = None if slide is None else slide.read(grid.resolution, (x, y), size)
        target = read_target((x, y))
        on_stage("write")
        if image is not None:
            write(number, x, y, image, target)
        counts[number] = [np.count_nonzero(target == kind) for kind in kinds]
    return counts


def _describe_slide(
    origin: SlideOrigin,
    settings: PatchSettings,
    slide: Slide,
    *,
    tissue: TissueMap,
    grid: Grid,
    cancer: NDArray[np.int64],
) -> SlideEntry:
    """Return the content of `slide.json`."""
    resolution = grid.resolution
    tumor, by_class = (part / settings.patch_size**2 for part in (cancer.sum(1), cancer[:, :-1]))
    return SlideEntry(
        **dict(origin),
        fingerprint=fingerprint_patches(origin, settings),
        resolution=ResolutionEntry(
            downsample=resolution.downsample,
            level=resolution.level,
            resampled=resolution.is_resampled,
            mpp=resolution.mpp,
            mpp_note=slide.mpp_note,
        ),
        tissue=TissueEntry(how=tissue.how, fraction=round(float(tissue.fraction), 6)),
        patches=[
            PatchEntry(
                x=x,
                y=y,
                tissue_fraction=round(float(share), 6),
                tumor_fraction=round(whole, 6),
                class_fractions=[round(part, 6) for part in parts],
            )
            for (x, y), share, whole, parts in zip(
                grid.level0.tolist(), grid.tissue_fraction, tumor.tolist(), by_class.tolist(), strict=True
            )
        ],
    )
