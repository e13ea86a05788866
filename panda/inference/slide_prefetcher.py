"""Open each slide and find its tissue while the slide before it is processed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue


class SlidePrefetcher:
    """Opens slides and finds their tissue, one slide ahead.

    Args:
        paths: The slides, in the order in which they will be opened.
        open_slide: Opens one.
    """

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
        """Yield a slide and its tissue, and start to load the next slide; the slide is closed at the end.

        Raises:
            SlideError: If the slide cannot be opened, or has no tissue.
        """
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
