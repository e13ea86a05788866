"""Figures of a split with their intervals: what the models of single tasks have in common."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field


def _round_down(value: object) -> object:
    """Return 1 for a float above it by rounding: a run must not fail at its end for that."""
    return 1.0 if isinstance(value, float) and 1 < value < 1 + 1e-6 else value


Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_round_down)]
"""A computed share; settings take none above 1."""
Ends = Annotated[tuple[float, float], Field(strict=False)]
"""Low and high; read from a list, because JSON has no tuples."""
Interval = Annotated[
    Ends | None,
    Field(description="Bootstrap 95 % interval of the figure above. Null without figure, or with one group of slides."),
]


def write_now() -> str:
    """Return the present date and time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Plain(BaseModel, frozen=True, strict=True, extra="forbid", allow_inf_nan=False):
    """A part of `summary.json`: no other keys, exact types, no NaN."""


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

    def parts(self, by: str) -> Mapping[str, Figures]:
        """Return the figures of parts of the slides by name, for `by_provider` or `by_grade`; empty if not given."""
        found: Mapping[str, Figures] = getattr(self, by, {})
        return found
