"""Encode the tissue tiles of slides into feature files, while threads prepare the next slides and write the last."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from panda.data.feature_files import write_feature_file
from panda.data.slide_entry import FileIdentity
from panda.errors import LockedError, SlideError
from panda.files import fingerprint, hold_lock
from panda.inference.feature_output import FeatureOutput, FeatureRecord
from panda.inference.feature_store import describe_features
from panda.inference.features import BagInProgress, TileBag, TileEncoder, encode_bags
from panda.inference.tile_pictures import write_tile_picture
from panda.wsi.grid import tissue_grid
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.stain_normalization import find_stain
from panda.wsi.tissue import How, find_tissue, list_slide_notes

_MOST_PREPARING = 4
"""Threads that open slides and find their tissue, which takes less time than most slides in the network."""
_MOST_WRITING = 2
"""Slides that wait until their file is written, so that a slow disk stops the network and not the memory."""

OnSlide = Callable[[Path, FeatureRecord | Exception], None]
"""Takes a slide with the record of its features, or its error. What it raises ends the work on all slides."""


@dataclass(eq=False)
class _Prepared:
    """An open slide with its tiles; `stack` closes the slide and frees its lock."""

    path: Path
    identity: FileIdentity
    slide: Slide
    bag: TileBag
    tissue_how: How
    notes: tuple[str, ...]
    stack: contextlib.ExitStack

    def close(self) -> None:
        """Close the slide and free its lock."""
        self.stack.close()


_Upcoming = tuple[Path, Callable[[], "_Prepared | FeatureRecord"]]


class FeatureExtractor:
    """Writes the features of slides into a folder, each once, also if several processes share the folder.

    Args:
        encoder: The encoder.
        folder: Gets the files.
        options: How slides are opened.
        on_slide: Called once for each slide, in the thread that calls `extract`.
        on_tiles: Called with the number of tiles after each batch.
        pictures: Write a picture of each slide with its tiles too.
    """

    def __init__(
        self,
        encoder: TileEncoder,
        folder: FeatureOutput,
        options: SlideOptions,
        on_slide: OnSlide,
        on_tiles: Callable[[int], None],
        *,
        pictures: bool = False,
    ) -> None:
        self.encoder, self.folder, self.options, self.pictures = encoder, folder, options, pictures
        self._on_slide, self._on_tiles = on_slide, on_tiles
        self._threads = min(_MOST_PREPARING, encoder.settings.thread_count)
        self._last = time.monotonic()

    def extract(self, slides: Sequence[Path]) -> None:
        """Encode slides, each in batches of its own, so that its features do not depend on the others.

        A slide that another process encodes at the same time waits for the end. Otherwise two processes that wait for
        each other, each with locks of its own, would never end.

        Raises:
            OSError: If the disk cannot be written.
            ExhaustedError: If memory is exhausted.
        """
        busy: list[Path] = []
        with contextlib.closing(self._prepare_ahead(slides)) as ahead:
            self._encode(ahead, busy)
        for path in busy:
            self._encode([(path, partial(self._prepare, path, wait=True))], busy=[])

    def _prepare_ahead(self, slides: Sequence[Path]) -> Generator[_Upcoming]:
        """Yield slides in their order, while threads prepare the next ones."""
        waiting: deque[tuple[Path, Future[_Prepared | FeatureRecord]]] = deque()
        pool, upcoming = ThreadPoolExecutor(self._threads), iter(slides)
        try:
            while True:
                for path in islice(upcoming, self._threads + 1 - len(waiting)):
                    waiting.append((path, pool.submit(self._prepare, path, wait=False)))
                if not waiting:
                    return
                path, future = waiting[0]
                yield path, future.result
                waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)
            for _, future in waiting:
                if not future.cancelled() and future.exception() is None:
                    prepared = future.result()
                    if isinstance(prepared, _Prepared):
                        prepared.close()

    def _prepare(self, path: Path, *, wait: bool) -> _Prepared | FeatureRecord:
        """Lock the features of a slide and find its tiles, or return their record if they are there."""
        plan = self.folder.settings.plan
        with contextlib.ExitStack() as stack:
            stack.enter_context(hold_lock(self.folder.find_file(path.stem), wait=wait))
            if record := self.folder.find_record(path):
                return record
            self.folder.remove_leftovers(path.stem)
            slide = stack.enter_context(self.options.open(path))
            identity = FileIdentity.read(path)
            view, tissue = plan.request.resolve(slide), find_tissue(slide)
            if view.mean_mpp is None and not slide.allow_unknown_mpp:
                raise SlideError(
                    f"{path}: {slide.mpp_note}; or give allow_unknown_mpp=true to read its level {plan.level} as it is"
                )
            grid = tissue_grid(view, tissue, plan.tile_size, plan.stride, min_tissue=plan.min_tissue)
            if not len(grid):
                raise SlideError(
                    f"{path}: no tile of {plan.tile_size} px at {plan.request} holds at least {plan.min_tissue:.0%} "
                    "tissue; lower min_tissue, or leave the slide out"
                )
            stain = find_stain(slide, tissue) if plan.normalize else None
            notes = list_slide_notes(slide, tissue)
            if plan.normalize and stain is None:
                notes += ("Its tissue does not show two stains, so its colours are not normalized.",)
            bag = TileBag(path, grid.level0, view, plan.tile_size, stain)
            return _Prepared(path, identity, slide, bag, tissue.how, notes, stack.pop_all())

    def _encode(self, upcoming: Iterable[_Upcoming], busy: list[Path]) -> None:
        """Encode slides as they are prepared, and add those that another process has locked to `busy`."""
        begun: dict[TileBag, _Prepared] = {}
        writing: deque[tuple[Path, Future[FeatureRecord]]] = deque()

        def begin() -> Iterator[tuple[TileBag, Slide]]:
            for path, prepare in upcoming:
                try:
                    prepared = prepare()
                except LockedError:
                    busy.append(path)
                    continue
                except Exception as error:
                    self._on_slide(path, error)
                    continue
                if isinstance(prepared, FeatureRecord):
                    self._on_slide(path, prepared)
                    continue
                begun[prepared.bag] = prepared
                yield prepared.bag, prepared.slide

        def report(most: int) -> None:
            while writing and (len(writing) > most or writing[0][1].done()):
                path, future = writing.popleft()
                try:
                    found: FeatureRecord | Exception = future.result()
                except Exception as error:
                    found = error
                self._on_slide(path, found)

        size = self.folder.settings.plan.tile_size
        try:
            with (
                ThreadPoolExecutor(1) as pool,  # its slides are closed below only after it
                contextlib.closing(
                    encode_bags(self.encoder, begin(), size, self._on_tiles, share_batches=False)
                ) as done,
            ):
                for encoded in done:
                    prepared = begun.pop(encoded.bag)
                    now, before = time.monotonic(), self._last
                    self._last = now
                    writing.append((prepared.path, pool.submit(self._write, prepared, encoded, now - before)))
                    report(_MOST_WRITING)
                report(0)
        finally:
            for prepared in begun.values():
                prepared.close()

    def _write(self, prepared: _Prepared, encoded: BagInProgress, seconds: float) -> FeatureRecord:
        """Write the features of a slide and their record, and close the slide."""
        settings, slide, bag = self.folder.settings, prepared.slide, prepared.bag
        with prepared.stack:
            path = self.folder.find_file(slide.slide_id)
            made_with = settings.fingerprint
            key = fingerprint({"settings": made_with, "slide": prepared.identity.model_dump(mode="json")})
            content = describe_features(
                settings.origin, slide, bag, encoded.get_features(), key=key, overlap=settings.plan.overlap_px
            )
            write_feature_file(path, content, settings.format)
            if self.pictures:
                write_tile_picture(slide, bag, self.folder.find_picture(slide.slide_id))
            beside = [one for one in self.folder.list_beside(slide.slide_id) if one.exists()]
            mpp = bag.resolution.mean_mpp
            record = FeatureRecord(
                slide_id=slide.slide_id,
                made_with=made_with,
                slide=prepared.identity,
                file=path.relative_to(self.folder.path).as_posix(),
                bytes=path.stat().st_size,
                beside={one.relative_to(self.folder.path).as_posix(): one.stat().st_size for one in beside},
                tiles=len(bag.coords),
                dim=content.origin.dim,
                mpp=mpp,
                mpp_override=self.folder.mpp_override if slide.mpp_source == "override" else None,
                tile_um=None if mpp is None else bag.tile_size * mpp,
                tile_px0=bag.tile_size * bag.resolution.downsample,
                tissue_how=prepared.tissue_how,
                seconds=round(seconds, 2),
                notes=prepared.notes,
            )
            self.folder.write_record(record)
        return record
