"""How the slides of a command are divided over processes and machines."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from panda.app.cluster import ClusterSettings
from panda.app.registry import Slot
from panda.data.shard import Shard, parse_shard
from panda.errors import PandaError
from panda.settings import Settings, Text, rule

Cluster = Annotated[ClusterSettings, Slot(ClusterSettings, ("panda.app.cluster",))]

_MOST_SAMPLED = 20


class DivisionKeys(Settings):
    """The keys of a command that works on all slides or on a shard of them, here or on a cluster."""

    node: ClassVar[str] = ""

    shard: Text | None
    cluster: Cluster

    @functools.cached_property
    def own_shard(self) -> Shard | None:
        """The shard of this process, None if it works on all slides."""
        return None if self.shard is None else parse_shard(self.shard, os.environ)

    @rule
    def _check_shard(self) -> None:
        _ = self.own_shard


def sample_slides(paths: Sequence[Path]) -> list[Path]:
    """Return those of the first slides that exist."""
    return [path for path in paths[:_MOST_SAMPLED] if path.exists()]


def require_slides_here(sample: Sequence[Path]) -> None:
    """Refuse a worker that sees none of the slides that the driver sees.

    Raises:
        PandaError: If none of them exists.
    """
    if sample and not any(path.exists() for path in sample):
        raise PandaError(
            f"{sample[0]}: there is no such slide there: share the folder of the slides, under the same path"
        )
