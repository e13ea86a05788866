"""Write the folders of mapped slides beside the mapping of the next ones."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from panda.app.slide_progress import SlideProgress
from panda.data.worker_pool import WorkerPool
from panda.inference.slide_files import SlideFiles
from panda.inference.slide_mapper import MappedSlide
from panda.inference.slide_result import SlideResult
from panda.report.slide_folder import write_slide_folder

_MOST_QUEUED = 2
"""Mapped slides that may wait for a free process, so that a slow disk stops the mapping and not the memory."""
_REMEDY = "lower engine.post_workers, or give it more memory, and run the slide again"


class SlideWriting:
    """Gives mapped slides to processes that write their folders.

    Args:
        progress: Gets the slides that are done.
        processes: The number of processes; with 0 the folders are written here, in turn.
    """

    def __init__(self, progress: SlideProgress, processes: int) -> None:
        self._progress = progress
        self._most = processes + _MOST_QUEUED if processes else 0
        self._pool: WorkerPool[SlideFiles, SlideResult] = WorkerPool(write_slide_folder, processes, _REMEDY)
        self._unfinished: dict[Future[SlideResult], MappedSlide] = {}

    def add(self, mapped: MappedSlide) -> None:
        """Let the folder of a slide be written."""
        future = self._pool.submit(mapped.files, mapped.closing)
        self._unfinished[future] = mapped
        # At once, and not when it is recorded: another run may wait for this canvas, and this run for one of its.
        future.add_done_callback(lambda _: mapped.release())

    def record(self, *, everything: bool = False) -> None:
        """Record the slides that are done; wait until few are unfinished, or none."""
        most = 0 if everything else self._most
        while self._unfinished:
            is_full = len(self._unfinished) > most
            done = wait(self._unfinished, None if is_full else 0, FIRST_COMPLETED).done
            if not done:
                return
            for future in done:
                mapped = self._unfinished.pop(future)
                try:
                    result = future.result()
                except Exception as error:
                    self._progress.fail(mapped.files.slide.slide_id, error)
                else:
                    self._progress.add(result, mapped.ungraded)

    def show_tiles(self, done: int, total: int) -> None:
        """Show the finished tiles of the present slide, and how many slides before it wait for their files."""
        waiting = len(self._unfinished)
        self._progress.show(f"{done}/{total} tiles" + (f", {waiting} slides wait for files" if waiting else ""))

    def __enter__(self) -> SlideWriting:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._pool.__exit__(*raised)
