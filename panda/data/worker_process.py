"""Worker processes that end with the process that started them, and never leave it waiting."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from multiprocessing import connection
from multiprocessing.queues import Queue


def end_with_parent() -> None:
    """End this process after its parent: a killed parent cannot end its workers, which would wait."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def end_at_lost_result() -> None:
    """End this process when its queue cannot pass on a result, which the parent would wait for without end.

    Python's queue prints the error and continues. This happens when memory, processes or open files run out.
    """
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]


def _end(error: Exception, _: object) -> None:
    print(f"a loader's process cannot pass on its batch: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)
