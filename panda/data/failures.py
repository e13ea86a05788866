"""Slides that could not be used: one record a failure, and their table."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from panda.errors import PandaError, describe_path_error, raise_exhaustion
from panda.tables import write_table

log = logging.getLogger(__name__)

FAILURE_COLUMNS = ("slide_id", "stage", "error", "message")
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Error numbers of a disk that cannot be written: every later slide would fail in the same way."""


@dataclass(frozen=True)
class Failure:
    """A slide that could not be used: the step that failed (`"mask"`), and class and message of the error."""

    slide_id: str
    stage: str
    error: str
    message: str


def record_failure(slide_id: str, stage: str, error: Exception) -> Failure:
    """Log the failure of a slide and return its record; the log file keeps the traceback of an unexpected error.

    If the next slide would fail in the same way, `ExhaustedError` (no memory) or the error itself (no disk to write to)
    is raised.
    """
    raise_exhaustion(error)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        raise error
    message = describe_path_error(error) if isinstance(error, OSError) else str(error)
    failure = Failure(slide_id, stage, type(error).__name__, message)
    if isinstance(error, PandaError):
        log.warning("%s of %s: %s", stage, slide_id, failure.message)
        log.debug("", exc_info=error)
    else:
        log.warning("%s of %s: %s: %s", stage, slide_id, failure.error, failure.message, exc_info=error)
    return failure


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write `failures.csv`: a row for each failed slide, or only the header."""
    write_table(path, map(asdict, failures), FAILURE_COLUMNS)
