"""The slides of a command, and those of them that this process works on."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from panda.app.inference_slides import FoundSlides, find_slides
from panda.data.settings import SlideSettings
from panda.data.shard import Shard, parse_shard
from panda.settings import Text, rule


class ShardedSlides(SlideSettings):
    """The keys of a command that works on slides, or on a shard of them."""

    slides: Text
    shard: Text | None

    @functools.cached_property
    def slide_list(self) -> FoundSlides:
        """All slides, and what was passed over."""
        return find_slides(self.slides)

    @functools.cached_property
    def own_shard(self) -> Shard | None:
        """The shard of this process, None if it works on all slides."""
        return None if self.shard is None else parse_shard(self.shard, os.environ)

    @property
    def own_slides(self) -> list[Path]:
        """The slides of the shard."""
        paths = self.slide_list.paths
        return self.own_shard.take(paths) if self.own_shard else paths

    @rule
    def _check_slides(self) -> None:
        _ = self.slide_list

    @rule
    def _check_shard(self) -> None:
        _ = self.own_shard
