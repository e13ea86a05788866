"""Record the slides of a command that are done, and show the progress."""

from __future__ import annotations

from typing import Any

from panda.app.slide_tables import NamedResult, SlideTables
from panda.data.failures import Failure, record_failure
from panda.progress import Progress


class SlideProgress:
    """Records each slide that is wholly done, and shows the progress.

    Args:
        tables: Gets the results and failures.
        slides: The number of all slides, for the progress bar.
        stage: What is done with them.
    """

    def __init__(self, tables: SlideTables[Any], slides: int, stage: str) -> None:
        self._tables, self._stage = tables, stage
        self._bar = Progress(total=slides, stage=stage)

    def add(self, result: NamedResult, failure: Failure | None = None) -> None:
        """Record a slide whose files are written, and the failure of its last step if there is one."""
        self._tables.add(result, failure)
        self._bar.update()

    def fail(self, slide_id: str, error: Exception) -> None:
        """Record the failure of a slide; raise an error that the next slide would meet too, as `record_failure`."""
        self._tables.fail(record_failure(slide_id, self._stage, error))
        self._bar.update()

    def show(self, text: str) -> None:
        """Show a text beside the progress."""
        self._bar.set_postfix_str(text)

    def __enter__(self) -> SlideProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
