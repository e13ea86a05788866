"""Errors that a user can cause. Each message names the file or key, the value and the remedy."""

from __future__ import annotations

import contextlib
import difflib
import errno
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

INSTALL_CLUSTER = "pip install 'panda-wsi[cluster]'"
"""Remedy if a package for sweeps, workers, searches or long tables is absent."""


class PandaError(Exception):
    """Base of all errors that the input causes, not the program."""


class ConfigError(PandaError):
    """One or more faults in the configuration, each a sentence with key, value and remedy."""

    def __init__(self, faults: Sequence[str] | str) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)} in the configuration:\n{lines}")


class OptionError(ConfigError):
    """Options that a loss or a network refuses; each fault begins with the option's name, as they know no nodes."""


@contextlib.contextmanager
def name_options(node: str) -> Iterator[None]:
    """Begin the faults of an `OptionError` raised inside with the node of the options: `loss.alpha=2`."""
    try:
        yield
    except OptionError as error:
        raise ConfigError([f"{node}.{fault}" for fault in error.faults]) from error


class SlideError(PandaError):
    """A slide is missing, cannot be opened or read, or has no tissue."""


class MaskError(PandaError):
    """A label mask is missing, cannot be read, or does not fit its slide or provider."""


class ManifestError(PandaError):
    """A table of slides or patches, or a store, is missing, malformed or contradictory."""


class ExhaustedError(PandaError):
    """Memory, file handles or sizes of files ran out, so that the next slide or step would fail in the same way."""


class LockedError(PandaError):
    """Another process holds the lock on a name."""


class CheckpointError(PandaError):
    """A file is no checkpoint or canvas, or one for another task or of another version."""


_OF_PATHS = (
    dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room; finished work is kept")
    | dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions, or give another path")
    | {
        errno.EROFS: "give a folder that can be written",
        errno.EFBIG: "raise the limit on file size (ulimit -f), or use another file system",
        errno.EISDIR: "a folder is in the place of a file: move it",
        errno.ENOTDIR: "a file is in the place of a folder: move it",
        errno.EEXIST: "a file is in the place of a folder: move it",
    }
)
"""Remedies by the number of an error of the file system."""


def describe_path_error(error: OSError, folder: Path | str = "") -> str:
    """Return path, reason and remedy of an error of the file system; its own text if no remedy is known.

    Args:
        error: The error.
        folder: What is named if the error has no path.
    """
    remedy = _OF_PATHS.get(error.errno or 0)
    return f"{error.filename2 or error.filename or folder}: {error.strerror}; {remedy}" if remedy else str(error)


def suggest(name: str, known: Collection[str]) -> str:
    """Return the hint that ends a message about a wrong name: similar known names, else all if at most 20, else ""."""
    lowered = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.6)
    if matches:
        return f" (did you mean {', '.join(lowered[match] for match in matches)}?)"
    return f" (there are: {', '.join(sorted(known))})" if 0 < len(known) <= 20 else ""


_SHARED = re.compile(r"killed by signal: Bus error|shared memory|(to|from) file </torch_", re.IGNORECASE)
_GPU = re.compile(r"(CUDA|HIP|MPS)\b.* out of memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)
_CPU = re.compile(
    r"can'?t allocate memory|cannot allocate memory|DefaultCPUAllocator: not enough memory|std::bad_alloc"
    r"|bad allocation|insufficient memory|can't start new thread|failed to map segment|killed by signal: Killed"
    r"|could not (create|execute) a primitive$|^\S*MemoryError\b",
    re.IGNORECASE | re.MULTILINE,
)
_NO_MEMORY = (errno.ENOMEM, errno.EAGAIN)
"""The second is of a process that cannot be started."""
_FILES = re.compile(r"too many open files", re.IGNORECASE)
_SIZE = re.compile(r"file </torch_.*: file too large", re.IGNORECASE)
_ENDED = re.compile(r"DataLoader worker .* exited unexpectedly")
_REMEDIES = {
    "shared memory (/dev/shm) is exhausted": (
        "use data.num_workers=0, or give the container more of it (docker run --shm-size=8g)"
    ),
    "the memory of the GPU is exhausted": (
        "lower data.batch_size (segmentation), tiles.batch_size or model.chunk (grading) or engine.batch_size "
        "(inference), or free the GPU of other programs"
    ),
    "the memory of the computer, or the limit of the job or container (ulimit -v, ulimit -u), is exhausted": (
        "lower data.num_workers, data.extract_workers, audit.workers, data.batch_size, engine.batch_size or "
        "engine.post_workers, or give it more memory"
    ),
    "the limit on open files (ulimit -n) is exhausted": "raise it, or use data.num_workers=0",
    "the limit on the size of a file (ulimit -f), which holds for shared memory too, is exhausted": (
        "raise it, or use data.num_workers=0"
    ),
    "memory, processes or open files of a loader's process (ulimit -v, ulimit -u, ulimit -n) are exhausted": (
        "its own message is above; raise the limit, or use data.num_workers=0"
    ),
}


def find_exhaustion(error: BaseException) -> ExhaustedError | None:
    """Return the error for memory or file handles that ran out, with the remedy; None if the cause is another.

    Libraries have no common class for it, so the errors behind `error` are searched by class and text. A decoder says
    so of damaged files too, and only its MemoryError counts.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ExhaustedError):
            return link
        if (number := _classify(link)) is not None:
            what, remedy = list(_REMEDIES.items())[number]
            found = ExhaustedError(f"{what} ({_shorten(link)}): {remedy}; finished work is kept")
            found.__cause__ = error
            return found
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


def raise_exhaustion(error: BaseException) -> None:
    """Raise `ExhaustedError` if memory ran out; call it before an error is taken for the fault of a slide."""
    if (found := find_exhaustion(error)) is not None:
        raise found


@contextlib.contextmanager
def name_exhaustion() -> Iterator[None]:
    """Raise `ExhaustedError` if memory or file handles run out inside; it also decorates functions."""
    try:
        yield
    except Exception as error:
        raise_exhaustion(error)
        raise


def _classify(error: BaseException) -> int | None:
    """Return the number of the entry of `_REMEDIES`, or None."""
    text, kind = str(error), type(error)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _NO_MEMORY):
        return 2
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return 3
    if kind.__name__ == "OutOfMemoryError":  # torch's, which the patches are cut without
        return 1
    # A loader's process passes on the traceback as text, under the class of the error.
    passed_on = text.startswith("Caught ")
    if not (passed_on or kind in (RuntimeError, ImportError) or kind.__module__.partition(".")[0] in ("torch", "cv2")):
        return None
    return next(
        (number for number, sign in enumerate((_SHARED, _GPU, _CPU, _FILES, _SIZE, _ENDED)) if sign.search(text)), None
    )


def _shorten(error: BaseException) -> str:
    """Return class and last line of an error, at most 200 characters."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}"[:200] if lines else type(error).__name__
