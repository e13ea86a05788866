"""What was typed for a job: `key=value` on the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from panda.files import write_whole

_arguments: list[list[str]] = []


@contextlib.contextmanager
def typed_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Remember the arguments of the command line while its jobs run.

    Hydra's list of a job's overrides cannot stand for them: a file adds to it by `hydra.sweeper.params`.
    """
    _arguments.append(list(arguments))
    try:
        yield
    finally:
        _arguments.pop()


def overrides() -> list[str]:
    """Return the overrides of this job, `key=value`; an empty list without a command line."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def is_typed(key: str) -> bool:
    """Return whether a key was typed on the command line.

    A process of a launcher has no command line of its own, so that the job's overrides count there.
    """
    return any(_read_key(text) == key for text in (_arguments[-1] if _arguments else overrides()))


def find_idle_faults(idle: Collection[str], cause: str) -> list[str]:
    """Return one fault that names all typed keys which have no effect, or an empty list.

    Args:
        idle: Keys that have no effect in this job.
        cause: The setting that makes them idle.
    """
    given = [text for text in overrides() if _read_key(text) in idle]
    verb, them = ("are", "them") if len(given) > 1 else ("is", "it")
    return [f"{', '.join(given)} {verb} not used with {cause}: remove {them}"] if given else []


def write_overrides(folder: Path, resumed: bool = False) -> None:
    """Write the job's overrides to `overrides.txt`: columns of a sweep's table, and labels in a comparison.

    Args:
        folder: Folder of the job.
        resumed: Keep the overrides of the resumed run, except for keys that are typed again.
    """
    path, lines = folder / "overrides.txt", overrides()
    if resumed:
        lines = [line for line in lines if _read_key(line) not in ("resume", "debug")]
        typed = {_read_key(line) for line in lines}
        before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        lines = [line for line in before if _read_key(line) not in typed] + lines
    write_whole(path, "".join(f"{line}\n" for line in lines))


def _read_key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]
