"""The frame around the jobs of an entry point: logging, one message per refusal, the exit status."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, NoReturn, ParamSpec, TypeVar

from omegaconf import DictConfig

from panda.app.command_line import explain, parse_arguments
from panda.app.help import describe_command
from panda.app.hydra_check import install_hydra_check
from panda.app.hydra_job import is_multirun, read_key, register_resolvers, remember_arguments, write_overrides
from panda.app.launcher import advise_sweep, explain_launcher, has_submitted
from panda.app.own_conf import add_own_conf
from panda.app.own_sweeps import close_sweeps, forget_sweeps, list_sweeps, restore_sweeps
from panda.app.ranks import RankError, find_launch
from panda.app.signals import is_interruption, name_signal, pass_on_signal, stop_on_signals
from panda.app.sweep_check import describe_job, forget_jobs, install_sweep_check, is_said
from panda.errors import ConfigError, PandaError, describe_path_error, find_exhaustion
from panda.files import open_log
from panda.report.job_end import JobEnd, forget_end

log = logging.getLogger("panda")

register_resolvers()
add_own_conf()
install_hydra_check()
install_sweep_check()


class SomeSlidesFailed(PandaError):
    """Raised after a job that is complete except for some slides; `figure` is the return value of the job."""

    def __init__(self, message: str, figure: float | None = None) -> None:
        super().__init__(message)
        self.figure = figure


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with the command to continue as its message. It ends a multirun too."""


_refusals: list[str] = []
_crashes: list[BaseException] = []
_closes_logs = ContextVar("_closes_logs", default=False)

P = ParamSpec("P")
R = TypeVar("R")


def enter(main: Callable[[], Any], entry_point: str = "", purpose: str = "", *, joint: bool = False) -> NoReturn:
    """Run an entry point and exit.

    The status is 0 only if no job was refused or lost slides, and 130 after Ctrl-C or a signal that ends it.

    Args:
        main: A function that Hydra wrapped.
        entry_point: Name of its configuration in `conf/`.
        purpose: What it does, for `--help`.
        joint: All ranks that srun started find the same faults of a command, and rank 0 says them.
    """
    # Otherwise Hydra prints its errors and exits by itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    debug = "debug=true" in (argument.lower() for argument in sys.argv)
    set_up_logging(debug)
    try:
        with end_at_closed_output(), remember_arguments(sys.argv[1:]), stop_on_signals():
            asked = parse_arguments(sys.argv[1:], entry_point)
            if asked.help and entry_point:
                print(describe_command(entry_point, purpose, asked.overrides))
            else:
                main()
    except KeyboardInterrupt as stop:
        by = f" by {name_signal()}" if name_signal() else ""
        close_sweeps()
        submitted = [advise_sweep(folder) for folder in list_sweeps() if has_submitted(folder)]
        remedy = "; ".join(submitted) or str(stop) or "finished work is kept, and the same command continues from there"
        log.error("interrupted%s; %s", by, remedy)
        sys.exit(130)
    except Exception as error:
        if _crashes:
            raise
        close_sweeps()
        said = next(filter(None, (explain_launcher(error, folder) for folder in list_sweeps())), None)
        fault = error if isinstance(error, ConfigError) else ConfigError(said or explain(error, sys.argv[1:])[0])
        _refusals.append(str(fault))
        if not (joint and find_launch().rank):
            log.error("ConfigError: %s", fault, exc_info=error if debug else None)
    finally:
        restore_sweeps()
    sys.exit(exit_status())


@contextlib.contextmanager
def end_at_closed_output() -> Iterator[None]:
    """End the block without an error if the reader of the output has ended, for example `--help | head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        if isinstance(error.__context__, SystemExit):
            raise error.__context__ from None


@contextlib.contextmanager
def pause_collection() -> Iterator[None]:
    """Import inside without collecting garbage, and let later collections pass over what was imported.

    Imports leave no garbage, but half a million objects that each full collection would visit, in half a second.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        _freeze_once()
        if was_enabled:
            gc.enable()


@functools.cache
def _freeze_once() -> None:
    """Freeze what a new process has imported; later on, the garbage of earlier jobs would be kept with it."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries that count what they leave, such as triton, report frozen objects


def guard(job: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Wrap a job so that a refusal is one message without a traceback, and other jobs of a multirun continue."""

    @functools.wraps(job)
    def run(cfg: DictConfig) -> Any:
        # A launcher pickles this function for other processes, and its globals with it: `run_guarded` goes by name.
        return run_guarded(job, cfg)

    return run


def close_logs(job: Callable[P, R]) -> Callable[P, R]:
    """Wrap a job so that its files of `log_to_file` are closed at its end, or at that of the job that it is part of."""

    @functools.wraps(job)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if _closes_logs.get():
            return job(*args, **kwargs)
        is_outermost = _closes_logs.set(True)
        try:
            return job(*args, **kwargs)
        finally:
            _closes_logs.reset(is_outermost)
            for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
                handler.close()
                log.removeHandler(handler)

    return run


@close_logs
def run_guarded(job: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a job as `guard` says."""
    debug, folder = read_key(cfg, "debug") is True, str(read_key(cfg, "collect") or read_key(cfg, "run_dir") or ".")
    set_up_logging(debug)
    if is_multirun() and not find_launch().rank:
        log.info("%s", describe_job(Path(folder)))
    try:
        with stop_on_signals():
            return job(cfg)
    except (Exception, KeyboardInterrupt) as error:
        if not is_interruption(error):
            return _end_failed(error, Path(folder), debug)
        try:
            pass_on_signal()
        except Exception as refused:  # launchers have errors of their own
            _refusals.append(str(refused))
            log.error("interrupted by %s, and not started again: %s", name_signal(), refused)
            return float("nan")
        if isinstance(error, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt from error


def _end_failed(raised: BaseException, folder: Path, debug: bool) -> Any:
    """Say why a job failed, in its folder too; return its figure if it has one. Without a multirun raise crashes."""
    error = find_exhaustion(raised) or raised
    if isinstance(error, SomeSlidesFailed):
        refuse(error, folder, debug)
        return error.figure
    _leave_trace(folder, error)
    if isinstance(error, PandaError | OSError):
        refuse(error, folder, debug)
    elif is_multirun():
        # If raised, it would end the sweep before its other jobs, or before its page.
        traceback.print_exc()
        _refusals.append(f"{type(error).__name__}: {error}")
    else:
        _crashes.append(error)
        raise error
    return float("nan")


def refuse(error: PandaError | OSError, folder: Path, debug: bool = False) -> None:
    """Log the error that ended a job in `folder`, with a traceback in debug, and record it for the exit status."""
    message = describe_path_error(error, folder) if isinstance(error, OSError) else str(error)
    _refusals.append(message)
    if is_said(message):
        log.error("refused, see above")
    elif not isinstance(error, RankError):  # its reason is logged already
        log.error("%s: %s", type(error).__name__, message, exc_info=error if debug else None)


def _leave_trace(folder: Path, error: BaseException) -> None:
    """Write the error to the folder of a job that began or is a row of a sweep. A refused command leaves nothing."""
    if isinstance(error, RankError) and find_launch().rank:
        return  # rank 0 does
    begun = any(isinstance(handler, logging.FileHandler) for handler in log.handlers)
    refused_job = folder.parent.name.startswith("sweep-") and not (folder / "checkpoints").exists()
    if begun or refused_job:
        with contextlib.suppress(OSError):  # the error may be that the disk is full
            JobEnd(state="failed", message=f"{type(error).__name__}: {error}").write(folder)
            if not (folder / "overrides.txt").exists():
                write_overrides(folder)


def record_failed_jobs(failed: int) -> None:
    """Record for the exit status that jobs failed in processes of their own."""
    if failed and not _refusals:
        _refusals.append(f"{failed} jobs of the sweep failed")


def list_refusals() -> list[str]:
    """Return why jobs of this process were refused or lost slides."""
    return list(_refusals)


def exit_status() -> int:
    """Return 0 if no job of this process was refused or lost slides, otherwise 1."""
    return int(bool(_refusals))


def make_folder(path: Path) -> None:
    """Make the folder of a job, or raise a PandaError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PandaError(f"{path} cannot be made ({error.strerror}): give a folder that can be written") from error


def forget_refusals() -> None:
    """Reset `exit_status`, for a program that runs several entry points."""
    _refusals.clear()
    _crashes.clear()
    forget_sweeps()
    forget_jobs()


def set_up_logging(debug: bool) -> None:
    """Write messages to the terminal without breaking progress bars."""
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False
    if not debug:
        # Notes on missing hardware, and advertisements.
        logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
        # A damaged file ends in an error of this package.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    if not any(isinstance(handler, _ThroughTqdm) for handler in log.handlers):
        handler = _ThroughTqdm()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


def log_to_file(path: Path) -> None:
    """Begin a job in a folder: write messages to its file too, until the end, see `close_logs`.

    How an earlier job ended there is forgotten.
    """
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    log.addHandler(handler)
    forget_end(path.parent)


class _LogFile(logging.FileHandler):
    """Appends to a plain file. On a full disk it is silent, because the error itself has a message already."""

    def _open(self) -> IO[str]:  # type: ignore[override]
        return open_log(Path(self.baseFilename))

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback for a line that cannot be written."""

    def close(self) -> None:
        """Close the file, even if its last lines cannot be written."""
        with contextlib.suppress(OSError):
            super().close()


class _ThroughTqdm(logging.Handler):
    """Writes above a progress bar instead of into it. Tracebacks are shown only with debug=true."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # noqa: PLC0415  (--help must not wait for it)

        tqdm.write(self.format(record) if log.isEnabledFor(logging.DEBUG) else record.getMessage(), file=sys.stderr)
