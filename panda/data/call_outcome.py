"""What a call in another process leaves: its result or error, and its log messages."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from panda.errors import find_exhaustion

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger("panda")


@dataclass(frozen=True)
class CallOutcome(Generic[Result]):
    """Result or error of a call, which can be pickled, with the log messages until its end."""

    result: Result | None
    error: Exception | None
    trace: str
    records: tuple[logging.LogRecord, ...]

    @classmethod
    def record_call(
        cls, work: Callable[[Item], Result], item: Item, collected: list[logging.LogRecord]
    ) -> CallOutcome[Result]:
        """Call a function. `collected` is the list of `collect_logs`; it is emptied."""
        result, error, trace = None, None, ""
        try:
            result = work(item)
        except Exception as caught:
            error, trace = _make_picklable(find_exhaustion(caught) or caught), traceback.format_exc()
        records = tuple(collected)
        collected.clear()
        return cls(result, error, trace, records)

    def unpack(self) -> Result:
        """Log the messages here, and return the result or raise the error."""
        for record in self.records:
            if log.isEnabledFor(record.levelno):
                logging.getLogger(record.name).handle(record)
        if self.error is not None:
            raise self.error from _TraceOfWorker(self.trace)
        return cast(Result, self.result)


def collect_logs(level: int) -> list[logging.LogRecord]:
    """Let all further messages of this process be collected in a list for another process, and return the list."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    records: list[logging.LogRecord] = []
    log.addHandler(_Collector(records))
    log.setLevel(level)
    log.propagate = False
    return records


class _TraceOfWorker(Exception):
    """The traceback of an error in a worker, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Collector(logging.Handler):
    """Keeps records for another process: their texts instead of their arguments and errors."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)  # writes the traceback as text into the record
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._records.append(record)


def _make_picklable(error: Exception) -> Exception:
    """Return the error, or one with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
