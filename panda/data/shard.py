"""Shards: the K-th of N parts of the slides, so that jobs that do not know of each other share a data set.

A slide belongs to a shard by a hash of its id, so its shard does not depend on the other slides.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from panda.errors import ConfigError

MOST_SHARDS = 100_000
_GIVEN = re.compile(r"(auto|\d{1,9})(?:/(\d{1,9}))?")
_FORMS = "give K/N, such as 1/64 to 64/64, or auto in an array of SLURM, or auto/N"


@dataclass(frozen=True)
class Shard:
    """The shard `number` (from 1) of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def name_part(self, whole: str) -> str:
        """Return the name of the part of this shard in what `whole` names, such as `infer-3-of-64`."""
        return f"{whole}-{self.number}-of-{self.count}"

    def holds(self, slide_id: str) -> bool:
        """Return whether a slide belongs to the shard."""
        digest = hashlib.sha256(slide_id.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def take(self, paths: Iterable[Path]) -> list[Path]:
        """Return the files of the slides in the shard, in their order."""
        return [path for path in paths if self.holds(path.stem)]


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Return the shard that a text names: `K/N`, `auto` or `auto/N`.

    With `auto` the number is that of the task of a SLURM array, or that of the pod of an indexed job of Kubernetes.
    An array states how many tasks it has. A job of Kubernetes does not, and an array with gaps has tasks that do not
    know their places. Both need `auto/N`, which takes the number modulo N.

    Args:
        text: The text.
        environment: Environment variables of the task.

    Raises:
        ConfigError: If the text names no shard, or the environment does not say which.
    """
    match = _GIVEN.fullmatch(text)
    if match is None or (match[1] != "auto" and match[2] is None):
        raise ConfigError(f"shard={text} is no shard: {_FORMS}")
    count = None if match[2] is None else int(match[2])
    if count is not None and not 1 <= count <= MOST_SHARDS:
        raise ConfigError(f"shard={text}: N must be 1 to {MOST_SHARDS:,}")
    if match[1] == "auto":
        return _find_own_shard(text, count, environment)
    assert count is not None
    if not 1 <= int(match[1]) <= count:
        raise ConfigError(f"shard={text}: K must be 1 to {count}; {_FORMS}")
    return Shard(int(match[1]), count)


def _find_own_shard(text: str, count: int | None, environment: Mapping[str, str]) -> Shard:
    task, pod = "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"
    name = task if task in environment else pod
    if name not in environment:
        raise ConfigError(
            f"shard={text}: this is no task of a SLURM array and no pod of an indexed job of Kubernetes, because "
            f"neither {task} nor {pod} is set; give shard=K/N"
        )
    own = _read_number(text, name, environment)
    if count is not None:
        return Shard(own % count + 1, count)
    if name == pod:
        raise ConfigError(f"shard={text}: Kubernetes does not state the number of pods; give shard=auto/N")
    first, last, step, tasks = (
        _read_number(text, f"SLURM_ARRAY_TASK_{key}", environment) for key in ("MIN", "MAX", "STEP", "COUNT")
    )
    place, rest = divmod(own - first, max(step, 1))
    if rest or first + (tasks - 1) * step != last or not 0 <= place < tasks <= MOST_SHARDS:
        raise ConfigError(
            f"shard={text}: the array has gaps ({tasks} tasks from {first} to {last}), so that its tasks do not know "
            "their places; give shard=auto/N, where N is the number of all shards"
        )
    return Shard(place + 1, tasks)


def _read_number(text: str, name: str, environment: Mapping[str, str]) -> int:
    value = environment.get(name, "")
    if not re.fullmatch(r"\d{1,9}", value):
        raise ConfigError(f"shard={text}: {name} is {value!r}, which is no number; give shard=K/N")
    return int(value)
