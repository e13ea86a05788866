"""Run one step over many slides: a bad slide is recorded and the loop continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from panda.data.failures import Failure, record_failure

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Outcome(Generic[R]):
    """Results of the slides that succeeded and failures of the others, both in slide order."""

    results: list[R] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def run_over_slides(
    items: Sequence[T],
    slide_id: Callable[[T], str],
    stage: str,
    work: Callable[[T, tqdm[Any]], R],
    on_failure: Callable[[Failure], None] | None = None,
) -> Outcome[R]:
    """Run `work` for each slide under a progress bar; record a slide that fails and continue with the next.

    Args:
        items: One item per slide, for example its path or its record.
        slide_id: Returns the slide id of an item.
        stage: Name of the step, for the progress bar and the failures.
        work: Called with an item and the progress bar, which can show the progress over tiles.
        on_failure: Called at each failure, so that a list on disk is complete at any moment.

    Raises:
        OSError: If the disk is full or cannot be written, because the next slide would fail in the same way.
        MemoryError: If memory is exhausted, for the same reason; `torch.OutOfMemoryError` for a GPU.
    """
    outcome: Outcome[R] = Outcome()
    with tqdm(items, desc=stage, unit="slide", dynamic_ncols=True) as bar:
        for item in bar:
            try:
                outcome.results.append(work(item, bar))
            except Exception as error:
                failure = record_failure(slide_id(item), stage, error)
                outcome.failures.append(failure)
                if on_failure:
                    on_failure(failure)
    return outcome


def tile_progress(bar: tqdm[Any]) -> Callable[[int, int], None]:
    """Return a callback that shows the finished tiles of the current slide on a progress bar over slides."""

    def show(done: int, total: int) -> None:
        bar.set_postfix_str(f"{done}/{total} tiles")

    return show
