"""The progress of a long step: a bar in a terminal, otherwise a line in the log each minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0
"""Time between two lines of a step, in s."""


class Progress(tqdm):  # type: ignore[misc]  # tqdm states no types
    """A progress bar of tqdm that draws only into a terminal, because a batch log would get thousands of them.

    Args:
        items: What the step goes over; None if `update` counts.
        stage: Name of the step.
        total: Number of all items; None for that of `items`.
        unit: Name of an item.
        initial: Items that were done before.
        hidden: Show nothing.
    """

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        stage: str = "",
        total: int | None = None,
        *,
        unit: str = "slide",
        initial: int = 0,
        hidden: bool = False,
    ) -> None:
        self._stage, self._items, self._hidden, self._said = stage, unit, hidden, time.monotonic()
        super().__init__(
            items,
            stage,
            total,
            unit=unit,
            initial=initial,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=True if hidden else None,  # tqdm asks whether there is a terminal
        )

    def update(self, n: int = 1) -> None:
        """Count items that are done."""
        if not self.disable:
            super().update(n)
            return
        self.n += n
        if not self._hidden and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            log.info("%s: %d of %s %ss", self._stage, self.n, self.total, self._items)

    def __iter__(self) -> Iterator[Any]:
        """Yield the items and count each."""
        if not self.disable:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update()
