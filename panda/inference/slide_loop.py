"""Run one step over many slides, and open each slide while the slide before it is processed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from panda.data.failures import Failure, record_failure
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue

T = TypeVar("T")
R = TypeVar("R")


def run_over_slides(
    items: Sequence[T],
    slide_id: Callable[[T], str],
    stage: str,
    work: Callable[[T, tqdm[Any]], R],
    on_failure: Callable[[Failure], None],
) -> list[R]:
    """Run `work` for each slide under a progress bar, and return the results; continue after a slide that fails.

    Args:
        items: One item per slide, for example its path or its record.
        slide_id: Returns the slide id of an item.
        stage: Name of the step, for the progress bar and the failures.
        work: Called with an item and the progress bar, which can show the progress over tiles.
        on_failure: Called at each failure, so that a list on disk is complete at any moment.

    Raises:
        OSError: If the disk is full or cannot be written, because the next slide would fail in the same way.
        ExhaustedError: If memory is exhausted, for the same reason.
    """
    results = []
    with tqdm(items, desc=stage, unit="slide", dynamic_ncols=True) as bar:
        for item in bar:
            try:
                results.append(work(item, bar))
            except Exception as error:
                on_failure(record_failure(slide_id(item), stage, error))
    return results


def make_tile_callback(bar: tqdm[Any]) -> Callable[[int, int], None]:
    """Return a callback that shows the finished tiles of the current slide on a progress bar over slides."""

    def show(done: int, total: int) -> None:
        bar.set_postfix_str(f"{done}/{total} tiles")

    return show


class SlidePrefetcher:
    """Opens slides and finds their tissue, one slide ahead in the order of `paths`."""

    def __init__(self, paths: Sequence[Path], open_slide: Callable[[Path], Slide]) -> None:
        self._after = dict(zip(paths, [*paths[1:], None], strict=True)) if paths else {}
        self._open_slide = open_slide
        self._pool = ThreadPoolExecutor(1)
        self._waiting: dict[Path, Future[tuple[Slide, TissueMap]]] = {}

    def _load(self, path: Path) -> tuple[Slide, TissueMap]:
        slide = self._open_slide(path)
        try:
            return slide, find_tissue(slide)
        except BaseException:
            slide.close()
            raise

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[tuple[Slide, TissueMap]]:
        """Yield a slide and its tissue, and start to load the next slide; the slide is closed at the end."""
        current = self._waiting.pop(path, None) or self._pool.submit(self._load, path)
        if (following := self._after.get(path)) is not None:
            self._waiting[following] = self._pool.submit(self._load, following)
        slide, tissue = current.result()
        with slide:
            yield slide, tissue

    def __enter__(self) -> SlidePrefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for future in self._waiting.values():
            if not future.cancelled() and future.exception() is None:
                future.result()[0].close()
