"""Run one step over many slides, and open each slide while the slides before it are processed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from panda.data.failures import Failure, record_failure
from panda.data.manifest import SlideRecord
from panda.progress import Progress
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tissue import TissueMap, find_tissue

T = TypeVar("T", bound=Hashable)
R = TypeVar("R")


def run_over_slides(
    records: Sequence[SlideRecord],
    options: SlideOptions,
    stage: str,
    work: Callable[[SlideRecord, Slide, TissueMap, tqdm[Any]], R],
    on_failure: Callable[[Failure], None],
    *,
    ahead: int = 1,
) -> list[R]:
    """Run `work` for each slide under a progress bar, and return the results; continue after a slide that fails.

    Args:
        records: The slides.
        options: How slides are opened.
        stage: Name of the step, for the progress bar and the failures.
        work: Called with a slide, open, its tissue, and the progress bar, which can show the progress over tiles.
        on_failure: Called at each failure, so that a list on disk is complete at any moment.
        ahead: See `SlidePrefetcher`.

    Raises:
        OSError: If the disk is full or cannot be written, because the next slide would fail in the same way.
        ExhaustedError: If memory is exhausted, for the same reason.
    """

    def open_slide(record: SlideRecord) -> Slide:
        return options.open(record.image_path, record.slide_id)

    def run(record: SlideRecord, bar: tqdm[Any]) -> R:
        with prefetcher.open(record) as (slide, tissue):
            return work(record, slide, tissue, bar)

    with SlidePrefetcher(records, open_slide, ahead) as prefetcher:
        return run_over_items(records, get_slide_id, stage, run, on_failure)


def run_over_items(
    items: Sequence[T],
    slide_id: Callable[[T], str],
    stage: str,
    work: Callable[[T, tqdm[Any]], R],
    on_failure: Callable[[Failure], None],
) -> list[R]:
    """Run `work` as `run_over_slides` does, for one item a slide, which is not opened; `slide_id` returns its id."""
    results = []
    with Progress(items, stage) as bar:
        for item in bar:
            try:
                results.append(work(item, bar))
            except Exception as error:
                on_failure(record_failure(slide_id(item), stage, error))
    return results


def get_slide_id(record: SlideRecord) -> str:
    """Return the id of the slide of a record."""
    return record.slide_id


def make_tile_callback(bar: tqdm[Any]) -> Callable[[int, int], None]:
    """Return a callback that shows the finished tiles of the current slide on a progress bar over slides."""

    def show(done: int, total: int) -> None:
        bar.set_postfix_str(f"{done}/{total} tiles")

    return show


class SlidePrefetcher(Generic[T]):
    """Opens slides and finds their tissue in threads, before their turn.

    Args:
        items: One item a slide, in their order.
        open_slide: Opens the slide of an item.
        ahead: How many slides are opened before their turn, each by a thread of its own.
    """

    def __init__(self, items: Sequence[T], open_slide: Callable[[T], Slide], ahead: int = 1) -> None:
        self._items = items
        self._places = {item: place for place, item in enumerate(items)}
        self._open_slide = open_slide
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(ahead)
        self._waiting: dict[int, Future[tuple[Slide, TissueMap]]] = {}

    def _load(self, item: T) -> tuple[Slide, TissueMap]:
        slide = self._open_slide(item)
        try:
            return slide, find_tissue(slide)
        except BaseException:
            slide.close()
            raise

    @contextlib.contextmanager
    def open(self, item: T) -> Iterator[tuple[Slide, TissueMap]]:
        """Yield a slide and its tissue, and start to load the next slides; the slide is closed at the end."""
        own = self._places[item]
        for place in range(own, min(own + 1 + self._ahead, len(self._items))):
            if place not in self._waiting:
                self._waiting[place] = self._pool.submit(self._load, self._items[place])
        slide, tissue = self._waiting.pop(own).result()
        with slide:
            yield slide, tissue

    def __enter__(self) -> SlidePrefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for future in self._waiting.values():
            if not future.cancelled() and future.exception() is None:
                future.result()[0].close()
