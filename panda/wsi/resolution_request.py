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

    def faults(self, prefix: str) -> list[str]:
        """Return what is wrong with the request.

        Args:
            prefix: The config node that holds both keys, for example `data.`.

        Returns:
            One sentence a fault that names key, value and remedy; empty if all is well.
        """
        level, mpp = self.level, self.mpp
        if (level is None) == (mpp is None):
            given = "neither" if level is None else "both"
            return [
                f"{prefix}level is {level} and {prefix}mpp is {mpp}: give exactly one, not {given} (the other null)"
            ]
        if level is not None and level < 0:
            return [f"{prefix}level is {level}: give 0 (full resolution) or a higher pyramid level"]
        if mpp is not None and not mpp > 0:
            return [f"{prefix}mpp is {mpp}: give µm per px, over 0"]
        return []

    def resolve(self, slide: Slide) -> Resolution:
        """Return the working resolution of a slide, see `Slide.at`."""
        return slide.at(level=self.level, mpp=self.mpp)
