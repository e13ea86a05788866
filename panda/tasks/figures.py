"""Figures of a split with their intervals: what the models of single tasks have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from pydantic import Field

from panda.stored import AmountEnds, KappaEnds, Plain, ShareEnds

S = TypeVar("S")

INTERVAL = "Bootstrap 95 % interval of the figure above. Null without figure, or with fewer than five groups of slides."
Interval = Annotated[ShareEnds | None, Field(description=INTERVAL)]
KappaInterval = Annotated[KappaEnds | None, Field(description=INTERVAL)]
AmountInterval = Annotated[AmountEnds | None, Field(description=INTERVAL)]


def make_timestamp() -> str:
    """Return the present date and time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def split_slides(slides: Sequence[S], name_part: Callable[[S], str]) -> dict[str, list[S]]:
    """Return the slides of each part, by the names of the parts in order."""
    names = sorted(set(map(name_part, slides)))
    return {name: [slide for slide in slides if name_part(slide) == name] for name in names}


class Figures(Plain, frozen=True):
    """Figures of the slides of a split. The interval of `<key>` is `<key>_interval`."""

    @property
    def numbers(self) -> dict[str, float | None]:
        """Figures and counts by key; an undefined figure is None."""
        return {
            key: value
            for key, value in self
            if (value is None or isinstance(value, int | float)) and not key.endswith("_interval")
        }

    def find_interval(self, key: str) -> tuple[float, float] | None:
        """Return the 95 % interval of a figure, or None if it has none."""
        ends: tuple[float, float] | None = getattr(self, f"{key}_interval", None)
        return ends

    def explain_no_interval(self, key: str) -> str:
        """Say why a figure has no interval; an empty text if no reason is recorded."""
        reasons: Mapping[str, str] = getattr(self, "no_interval", {})
        return reasons.get(key, "")

    def find_parts(self, by: str) -> Mapping[str, Figures]:
        """Return the figures of parts of the slides by name, for `by_provider` or `by_grade`; empty if not given."""
        found: Mapping[str, Figures] = getattr(self, by, {})
        return found
