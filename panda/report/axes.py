"""The axes of a chart: its colours, round values, and the place of a value in px."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from markupsafe import Markup

from panda.report.page import ENVIRONMENT

PALETTE = tuple(f"var(--series-{number})" for number in range(1, 9))
"""Colours that `page.css` defines for light and dark; those for light are `sheet.SERIES`."""
TRAIN, VALIDATION, TEST, GREY = "var(--train)", "var(--validation)", "var(--test)", "var(--faint)"


def pick_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Choose about so many round values that span `low` to `high`: multiples of 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low if high > low else max(abs(high), 1e-6)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power * about >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def format_label(value: float) -> str:
    """Write the label of a value of an axis."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class Axis:
    """A linear axis: the value `low` is drawn at px `start`, and `high` at px `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def fit(cls, values: Sequence[float], start: float, end: float) -> Self:
        """Make the axis from the first to the last of its values."""
        return cls(values[0], values[-1], start, end)

    def place(self, value: float) -> float:
        """Return the px of a value, to a tenth."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def mark(self, values: Iterable[float], write: Callable[[float], str] = format_label) -> list[tuple[float, str]]:
        """Return px and label of each value."""
        return [(self.place(value), write(value)) for value in values]


Ticks = Sequence[tuple[float, str]]


def draw(
    template: str,
    title: str,
    size: tuple[int, int],
    frame: tuple[float, float, float, float],
    *,
    legend: Sequence[tuple[str, str, str]] = (),
    x_ticks: Ticks = (),
    y_ticks: Ticks = (),
    x_label: str = "",
    y_label: str = "",
    **marks: Any,
) -> Markup:
    """Render a `<figure>` with inline SVG.

    Args:
        template: Name of a template that extends `chart.html` by its marks.
        title: Title above the chart.
        size: Width and height, px.
        frame: Left, top, right and bottom of the plotted area, px.
        legend: Name, colour and class of each entry: `dot`, `dot ring`, or none for a line.
        x_ticks: Px and label of the values at the lower side.
        y_ticks: Px and label of the values at the left side.
        x_label: Label below the axis.
        y_label: Label beside the axis, which needs 64 px to the left of the frame.
        marks: Other variables of the template; `zero` is the px of a horizontal axis.
    """
    axes = {"legend": legend, "x_ticks": x_ticks, "y_ticks": y_ticks, "x_label": x_label, "y_label": y_label}
    html = ENVIRONMENT.get_template(template).render(title=title, size=size, frame=frame, **axes, **marks)
    return Markup(html)
