"""The working resolution that a user asks for, before a slide is known."""

from __future__ import annotations

from dataclasses import dataclass

from panda.wsi.geometry import Resolution
from panda.wsi.slide import Slide


@dataclass(frozen=True)
class ResolutionRequest:
    """A pyramid level or µm/px; exactly one of them is given.

    Attributes:
        level: Number of a pyramid level, 0 for full resolution; None if `mpp` is given.
        mpp: µm per working px, read at the nearest finer level and resampled; None if `level` is given.
    """

    level: int | None = None
    mpp: float | None = None

    def __str__(self) -> str:
        return f"level {self.level}" if self.mpp is None else f"{self.mpp:g} µm/px"

    def resolve(self, slide: Slide) -> Resolution:
        """Return the working resolution of a slide, see `Slide.choose_resolution`."""
        return slide.choose_resolution(level=self.level, mpp=self.mpp)
