"""What both doors do around their work: logging, one message a refusal, the exit status."""

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from panda.app.config import register_resolvers
from panda.errors import PandaError
from panda.files import write_whole

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


_refusals: list[str] = []


def guarded(job: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Makes refusals one message without a traceback, and lets the other jobs of a multirun go on.

    Args:
        job: What a door does with its configuration.
    """

    @functools.wraps(job)
    def run(cfg: DictConfig) -> Any:
        run_dir = Path(cfg.run_dir)
        set_up_logging(debug=bool(cfg.debug))
        try:
            return job(cfg)
        except PandaError as error:
            _refusals.append(str(error))
            log.error("%s: %s", type(error).__name__, error, exc_info=cfg.debug)
            if isinstance(error, SomeSlidesFailed):
                return error.figure
            _leave_trace(run_dir, error)
            return float("nan")
        finally:
            for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
                handler.close()
                log.removeHandler(handler)

    return run


def _leave_trace(run_dir: Path, error: PandaError) -> None:
    """Keeps the error where there is work to go with it, and no empty folder where there is none."""
    if not run_dir.is_dir():
        return
    if any(run_dir.iterdir()) or _is_sweep_job(run_dir):
        write_whole(run_dir / "error.txt", f"{type(error).__name__}: {error}\n")
    else:
        run_dir.rmdir()


def _is_sweep_job(run_dir: Path) -> bool:
    return run_dir.parent.name.startswith("sweep-")


def exit_status() -> int:
    """0 if no job of this process was refused or lost slides, else 1."""
    return int(bool(_refusals))


def forget_refusals() -> None:
    """Starts a new count for `exit_status`, for a program that opens a door more than once."""
    _refusals.clear()


def set_up_logging(debug: bool) -> None:
    """Messages to the terminal, without disturbing progress bars."""
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False
    if not debug:
        # Lightning's notes on the hardware it did not find and products it could be used with.
        logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    if not log.handlers:
        handler = _ThroughTqdm()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


def log_to_file(path: Path) -> None:
    """Keeps this run's messages in a file too, until the job ends."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    log.addHandler(handler)


class _ThroughTqdm(logging.Handler):
    """Writes above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # noqa: PLC0415  (the doors' --help must not wait for it)

        tqdm.write(self.format(record), file=sys.stderr)
