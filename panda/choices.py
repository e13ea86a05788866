"""Choices: the YAML files of the package's `conf/`, and of a folder `conf` of the user's own.

An installed package holds its `conf`; in a checkout it is beside the package. Files in the folder `conf` of the
working folder add to it, so that a user of an installed package needs no checkout. Processes that this one starts see
the same.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn

from panda.errors import ConfigError, describe_path_error

_INSTALLED = Path(__file__).resolve().parent / "conf"
CONF = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "conf"
"""The choices of the package."""
_by_name = ContextVar("_by_name", default=False)


def name_command(name: str) -> str:
    """Return how a job is started, `panda NAME` by an installed package and `python NAME.py` in a checkout."""
    return f"panda {name}" if CONF == _INSTALLED else f"python {name}.py"


def name_tool(module: str, *words: str | Path) -> str:
    """Return how a command without a configuration is started, with arguments, which are quoted if they need it.

    It is `panda NAME` if a command was started so, otherwise `python -m MODULE`.
    """
    by_name = CONF == _INSTALLED or _by_name.get()
    start = f"panda {module.rpartition('.')[2]}" if by_name else f"python -m {module}"
    return " ".join([start, *(shlex.quote(str(word)) for word in words)])


@contextlib.contextmanager
def remember_name() -> Iterator[None]:
    """Remember inside that a command was started by its name, see `name_tool`."""
    token = _by_name.set(True)
    try:
        yield
    finally:
        _by_name.reset(token)


def find_own_conf() -> Path | None:
    """Return the folder `conf` of the working folder, or None if it is absent or the package's."""
    own = Path("conf").absolute()
    return own if own.is_dir() and not own.samefile(CONF) else None


def check_own_conf(own: Path) -> None:
    """Refuse a user's own file with the name of a file of the package; unchanged copies are left out.

    Raises:
        ConfigError: With all such files, or if a folder cannot be read.
    """
    folders = sorted(place for place, _, _ in os.walk(own, onerror=_refuse))
    files = [(path, CONF / path.relative_to(own)) for folder in folders for path in list_yaml(Path(folder))]
    if faults := [
        f"{path}: the package has another file of this name, {known}: rename yours, or work in another folder"
        for path, known in files
        if known.is_file() and known.read_bytes() != path.read_bytes()
    ]:
        raise ConfigError(faults)


def find_files(group: str) -> dict[str, Path]:
    """Return the files of a group, such as `encoders`, by their sorted names."""
    folders = [CONF / group, *([own / group] if (own := find_own_conf()) else [])]
    return dict(sorted({path.stem: path for folder in reversed(folders) for path in list_yaml(folder)}.items()))


def list_yaml(folder: Path) -> list[Path]:
    """Return the YAML files of a folder, sorted; none without a folder.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".yaml") if folder.is_dir() else []
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise ConfigError(describe_path_error(error)) from error
