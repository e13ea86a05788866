"""What both doors do around their work: logging, one message a refusal, the exit status."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from panda.app.command_line import explain
from panda.app.overrides import typed_arguments, write_overrides
from panda.app.resolvers import is_multirun, register_resolvers
from panda.errors import ConfigError, PandaError
from panda.files import remove, write_whole

log = logging.getLogger("panda")

register_resolvers()


class SomeSlidesFailed(PandaError):
    """Raised at the end of work that is whole but for some slides, so that the exit status says so.

    Args:
        message: How many, and where they are listed.
        figure: What the job returns all the same.
    """

    def __init__(self, message: str, figure: float | None = None) -> None:
        super().__init__(message)
        self.figure = figure


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what to do next; it ends a multirun too.

    Args:
        remedy: How to go on.
    """


_refusals: list[str] = []
_crashes: list[Exception] = []
_sweeps: list[Path] = []


def enter(main: Callable[[], Any]) -> NoReturn:
    """Open a door and leaves the program: status 0 only if no job was refused or lost slides, 130 after Ctrl-C.

    Args:
        main: The door's function, as `hydra.main` returns it.
    """
    # Hydra would print and leave by itself; so it hands its errors on, and they are told as ours are.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    debug = "debug=true" in (argument.lower() for argument in sys.argv)
    try:
        with typed_arguments(sys.argv[1:]):
            main()
    except KeyboardInterrupt as stop:
        set_up_logging(debug)
        log.error("interrupted; %s", str(stop) or "what was finished is kept, and the same command goes on from there")
        sys.exit(130)
    except Exception as error:
        if _crashes:
            raise
        set_up_logging(debug)
        _withdraw_sweeps()
        fault = ConfigError(explain(error, sys.argv[1:]))
        _refusals.append(str(fault))
        log.error("ConfigError: %s", fault, exc_info=error if debug else None)
    sys.exit(exit_status())


def guarded(job: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Make refusals one message without a traceback, and lets the other jobs of a multirun go on.

    Args:
        job: What a door does with its configuration.
    """

    @functools.wraps(job)
    def run(cfg: DictConfig) -> Any:
        set_up_logging(debug=cfg.debug is True)
        try:
            return job(cfg)
        except (PandaError, OSError) as error:
            refuse(error, Path(str(cfg.run_dir)), debug=cfg.debug is True)
            if isinstance(error, SomeSlidesFailed):
                return error.figure
            if cfg.run_dir:
                _leave_trace(Path(str(cfg.run_dir)), error)
            return float("nan")
        except Exception as error:
            if cfg.run_dir:
                _leave_trace(Path(str(cfg.run_dir)), error)
            if is_multirun():
                # Handed on, it would end the sweep with the next job, or at its end without a page.
                traceback.print_exc()
                _refusals.append(f"{type(error).__name__}: {error}")
                return float("nan")
            _crashes.append(error)
            raise
        finally:
            for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
                handler.close()
                log.removeHandler(handler)

    return run


def refuse(error: PandaError | OSError, folder: Path, debug: bool = False) -> None:
    """Says what went wrong, and lets the exit status know.

    Args:
        error: What ended the work.
        folder: That was written to.
        debug: Show a traceback.
    """
    told = _told(error, str(folder))
    _refusals.append(told)
    log.error("%s: %s", type(error).__name__, told, exc_info=error if debug else None)


_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room; what was finished is kept") | dict.fromkeys(
    (errno.EROFS, errno.EACCES, errno.EPERM), "give a folder that can be written, or the right to"
)
_REMEDIES[errno.EFBIG] = "raise the limit on the size of files (ulimit -f), or that of the file system"


def _told(error: PandaError | OSError, run_dir: str) -> str:
    """An error's message; of the system's own with the file or else the job's folder, and the remedy."""
    if isinstance(error, OSError) and (remedy := _REMEDIES.get(error.errno or 0)):
        return f"{error.filename2 or error.filename or run_dir}: {error.strerror}; {remedy}"
    return str(error)


def _leave_trace(run_dir: Path, error: Exception) -> None:
    """Keep the error with a job that had begun, or that is a row of a sweep; a refused command leaves nothing."""
    begun = any(isinstance(handler, logging.FileHandler) for handler in log.handlers)
    if begun or run_dir.parent.name.startswith("sweep-"):
        with contextlib.suppress(OSError):  # the disk may be what the error is about
            write_whole(run_dir / "error.txt", f"{type(error).__name__}: {error}\n")
            if not (run_dir / "overrides.txt").exists():
                write_overrides(run_dir)


def sweep_begins(folder: Path) -> None:
    """Remembers a sweep, which leaves nothing should Hydra refuse it before its first job."""
    _sweeps.append(folder)


def sweep_ends(failed: int) -> None:
    """Lets the exit status know of jobs that failed in processes of their own."""
    if failed and not _refusals:
        _refusals.append(f"{failed} jobs of the sweep failed")


def _withdraw_sweeps() -> None:
    """Remove the folders of sweeps that hold nothing but what Hydra writes before it looks at the jobs."""
    for folder in _sweeps:
        if folder.is_dir() and [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
            remove(folder)


def exit_status() -> int:
    """0 if no job of this process was refused or lost slides, else 1."""
    return int(bool(_refusals))


def make_folder(path: Path) -> None:
    """Make the folder that a job writes to.

    Raises:
        PandaError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PandaError(f"{path} cannot be made ({error.strerror}): give a folder that can be written") from error


def forget_refusals() -> None:
    """Start a new count for `exit_status`, for a program that opens a door more than once."""
    _refusals.clear()
    _crashes.clear()
    _sweeps.clear()


def set_up_logging(debug: bool) -> None:
    """Messages to the terminal, without disturbing progress bars."""
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False
    if not debug:
        # Lightning's notes on the hardware it did not find and products it could be used with.
        logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
        # What it finds wrong with a damaged file ends in an error of ours.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    if not any(isinstance(handler, _ThroughTqdm) for handler in log.handlers):
        handler = _ThroughTqdm()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


def log_to_file(path: Path) -> None:
    """Keep this run's messages in a file too, until the job ends."""
    handler = logging.FileHandler(path, encoding="utf-8")
    # Where the disk is full the error itself is told; a traceback for each line that could not be kept says no more.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    log.addHandler(handler)


class _ThroughTqdm(logging.Handler):
    """Writes above a progress bar instead of into it; tracebacks only with debug=true, the file has them anyway."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # noqa: PLC0415  (the doors' --help must not wait for it)

        tqdm.write(self.format(record) if log.isEnabledFor(logging.DEBUG) else record.getMessage(), file=sys.stderr)
