"""The slides of a command, those of them that this process does, and where they are worked on."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Self

from panda.app.inference_slides import FoundSlides, SlideNames, find_slides
from panda.app.slide_division import DivisionKeys
from panda.data.settings import SlideSettings
from panda.inference.compute import EngineSettings
from panda.settings import rule
from panda.tables import require_parquet


class ShardedSlides(DivisionKeys, SlideSettings):
    """The keys of a command that works on slides, or on a shard of them, here or on a cluster."""

    slides: SlideNames
    engine: EngineSettings

    @functools.cached_property
    def slide_list(self) -> FoundSlides:
        """All slides, and what was passed over."""
        return find_slides(self.slides)

    @property
    def own_slides(self) -> list[Path]:
        """The slides of the shard."""
        paths = self.slide_list.paths
        return self.own_shard.take(paths) if self.own_shard else paths

    def divide_threads(self) -> Self:
        """Return the keys with the read threads of a worker of the cluster, unless they are given."""
        engine, threads = self.engine, self.cluster.threads
        if engine.read_threads != "auto" or threads is None:
            return self
        return self.model_copy(update={"engine": engine.model_copy(update={"read_threads": threads})})

    def __getstate__(self) -> dict[Any, Any]:
        """Return what is pickled for a worker: the keys without what was read from files, such as weights."""
        state = super().__getstate__()
        fields = type(self).model_fields
        return state | {"__dict__": {key: value for key, value in state["__dict__"].items() if key in fields}}

    @rule
    def _check_slides(self) -> None:
        _ = self.slide_list

    @rule
    def _check_length(self) -> None:
        require_parquet(len(self.slide_list.paths))
