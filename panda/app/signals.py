"""Signals of schedulers: SIGTERM, SIGUSR1 and SIGUSR2 end a job as Ctrl-C does.

A launcher of a sweep that has handlers of its own gets SIGUSR1 and SIGUSR2 after the job has stopped, for example to
put it into the queue again. Its handler of SIGTERM stays, because schedulers send SIGTERM first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals that end a job; Windows has one of them."""

_received: list[str] = []
_launcher_handlers: dict[int, Callable[[int, FrameType | None], object]] = {}


def _stop(number: int, frame: FrameType | None) -> None:
    # Schedulers repeat a signal, and the second one must not disturb the clean end.
    _received.append(signal.Signals(number).name)
    if len(_received) == 1:
        raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first signal of `STOPPING`, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in STOPPING}
    if _stop not in before.values():
        _received.clear()
        _launcher_handlers.clear()
        _launcher_handlers.update((number, handler) for number, handler in before.items() if callable(handler))
    handle_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handle_signals(*, ignore: bool = False) -> None:
    """Set the handlers of this process; a process that another one ends ignores the signals."""
    for number in STOPPING:
        own = _launcher_handlers.get(number, _stop) if number == signal.SIGTERM else _stop
        signal.signal(number, signal.SIG_IGN if ignore else own)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Deliver Ctrl-C and the signals of `STOPPING` at the end of the block, if this is the main thread.

    Of them, processes that are started inside, or by its threads, get SIGTERM only: a terminal signals all processes of
    a command, and the command itself ends its helpers.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # otherwise it starts inside, and unblocks SIGINT again
    held: list[int] = []
    numbers = (signal.SIGINT, *STOPPING)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    for number in numbers:
        signal.signal(number, lambda received, _: held.append(received))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*numbers} - {signal.SIGTERM})  # new processes and threads have it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


def pass_on_signal() -> None:
    """Give the signal that ended the job to the launcher's handler, if it has one; it may end the process."""
    for name in _received[:1]:
        if (handler := _launcher_handlers.get(number := signal.Signals[name])) is not None:
            handler(number, None)


def forget_signals() -> None:
    """Take the signals so far for a consequence of another error, which is the reason of the end."""
    _received.clear()


def name_signal() -> str:
    """Return the name of the signal that ended the job; empty if there was none."""
    return _received[0] if _received else ""


def is_interruption(error: BaseException) -> bool:
    """Return whether an error ends the job because of Ctrl-C or a signal.

    A scheduler signals all processes of a job, and the end of a helper process can be noticed before the signal.
    """
    return isinstance(error, KeyboardInterrupt) or bool(_received)
