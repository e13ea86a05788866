"""Charts as inline SVG: lines over a common axis, and figures with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from panda.report.effects import Effect
from panda.report.page import ENVIRONMENT

# Okabe and Ito's colours (2008), distinct with any color vision, without the yellow, which has no contrast on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b4b9a", "#444444")
TRAIN, VALIDATION, TEST = "#7a8194", "#0072b2", "#3b2f7d"
GREY = "#c3c6ce"
_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: Name in the legend.
        xs: X of its points, ascending.
        ys: Y of its points.
        colour: Color of the line.
        marks: Highlighted points: x, y, and the text of their tooltip.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    marks: Sequence[tuple[float, float, str]] = ()


@dataclass(frozen=True)
class Bar:
    """One row of a chart of figures.

    Args:
        name: Label at the left.
        value: The figure.
        low: Lower end of its interval, or None.
        high: Upper end of its interval, or None.
        other: A second figure in the same row, or None.
        href: Link of the name.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    other: float | None = None
    href: str = ""


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Choose round values for an axis.

    Args:
        low: Lowest value to show.
        high: Highest value to show.
        about: Wanted number of values.

    Returns:
        Multiples of 1, 2, 2.5 or 5 times a power of ten that span `low` to `high`.
    """
    span = high - low if high > low else max(abs(high), 1e-6)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power * about >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def axis_label(value: float) -> str:
    """Write the label of a value of an axis."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    y_range: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
    whole_x: bool = False,
    size: tuple[int, int] = (540, 270),
) -> Markup:
    """Draw lines over a common axis.

    Args:
        title: Title above the chart.
        lines: The lines, the first on top. Lines without a point are left out, and lines with the same name share an
            entry in the legend.
        x_label: Label below the axis.
        y_range: Least range of the y axis; None for the range of the data.
        mark: X and text of a vertical dashed line.
        whole_x: Whether only whole numbers are labelled on the x axis.
        size: Width and height in px.

    Returns:
        A `<figure>` with inline SVG; empty if no line has a point.
    """
    lines = [line for line in lines if line.xs]
    if not lines:
        return Markup("")
    (width, height), left, right, top, bottom = size, 48, 14, 12, 42
    x_values = [x for line in lines for x in line.xs]
    y_values = [y for line in lines for y in line.ys] + list(y_range or ())
    y_ticks = ticks(min(y_values), max(y_values))
    x_low, x_high = min(x_values), max(x_values)
    end = ticks(x_low, x_high, 6)[-1]
    # Thresholds end at 0.999: the axis ends at 1.
    x_high = end if end - x_high < 0.01 * (x_high - x_low) else x_high
    x_ticks = [t for t in ticks(x_low, x_high, 6) if x_low <= t <= x_high and (not whole_x or t == int(t))] or [x_low]
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - x_low) / (x_high - x_low) * (width - left - right)
        down = height - bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - top - bottom)
        return round(across, 1), round(down, 1)

    drawn = []
    for line in reversed(lines):
        step = math.ceil(len(line.xs) / _POINTS)
        points = [
            (*place(x, y), f"{line.name}: {y:.4g} at {x_label} {x:g}")
            for x, y in list(zip(line.xs, line.ys, strict=True))[::step]
        ]
        marks = [(*place(x, y), text) for x, y, text in line.marks]
        drawn.append((line, " ".join(f"{x},{y}" for x, y, _ in points), points if len(points) <= 60 else [], marks))
    html = ENVIRONMENT.get_template("line_chart.html").render(
        title=title,
        drawn=drawn,
        legend=list({line.name: line for line in reversed(lines)}.values())[::-1],
        x_label=x_label,
        size=(width, height),
        frame=(left, top, width - right, height - bottom),
        y_ticks=[(place(x_low, t)[1], axis_label(t)) for t in y_ticks],
        x_ticks=[(place(t, y_ticks[0])[0], axis_label(t)) for t in x_ticks],
        mark=None if mark is None else (place(min(max(mark[0], x_low), x_high), y_ticks[0])[0], mark[1]),
    )
    return Markup(html)


def bar_chart(title: str, bars: Sequence[Bar], names: tuple[str, str]) -> Markup:
    """Draw figures between 0 and 1 (or from −1, as κ may be) as dots with their intervals, one a row.

    Args:
        title: Title above the chart.
        bars: The rows, from top to bottom.
        names: What `value` and `other` are, for the legend.

    Returns:
        A `<figure>` with inline SVG; empty if there is no row.
    """
    if not bars:
        return Markup("")
    values = [v for bar in bars for v in (bar.value, bar.low, bar.high, bar.other) if v is not None]
    axis = ticks(min(0.0, *values), max(1.0, *values))
    left, right, top, row, width = 340, 70, 8, 26, 1100
    scale = (width - left - right) / (axis[-1] - axis[0])

    def place(value: float | None) -> float | None:
        return None if value is None else round(left + (value - axis[0]) * scale, 1)

    html = ENVIRONMENT.get_template("bar_chart.html").render(
        title=title,
        names=names,
        size=(width, top + row * len(bars) + 26),
        left=left,
        top=top,
        row=row,
        axis=[(place(t), axis_label(t)) for t in axis],
        bars=[(bar, place(bar.value), place(bar.low), place(bar.high), place(bar.other)) for bar in bars],
        zero=place(0.0),
    )
    return Markup(html)


def paired_chart(
    title: str,
    slides: Sequence[tuple[str, str, float, float]],
    names: tuple[str, str],
    colours: Mapping[str, str],
) -> Markup:
    """Draw a figure between 0 and 1 of the same slides in two runs: against each other, and its differences sorted.

    Args:
        title: Title above the chart.
        slides: Slide, provider, and the figure in either run.
        names: Of the runs.
        colours: Of the providers.

    Returns:
        A `<figure>` with inline SVG; empty if there is no slide.
    """
    if not slides:
        return Markup("")
    width, height = 1100, 400
    box, fall = (64, 10, 404, 350), (500, 10, 1090, 350)
    gaps = sorted(((b - a, slide, provider) for slide, provider, a, b in slides), reverse=True)
    axis = ticks(min(0.0, gaps[-1][0]), max(0.0, gaps[0][0]))
    step = (fall[2] - fall[0]) / len(gaps)

    def place(a: float, b: float) -> tuple[float, float]:
        return round(box[0] + a * (box[2] - box[0]), 1), round(box[3] - b * (box[3] - box[1]), 1)

    def down(gap: float) -> float:
        return round(fall[1] + (axis[-1] - gap) / (axis[-1] - axis[0]) * (fall[3] - fall[1]), 1)

    html = ENVIRONMENT.get_template("paired_chart.html").render(
        title=title,
        names=names,
        size=(width, height),
        legend=list(colours.items()),
        box=box,
        fall=fall,
        scatter_ticks=[(place(t, t), axis_label(t)) for t in ticks(0, 1)],
        dots=[
            (*place(a, b), colours[provider], f"{slide}: {names[0]} {a:.3f}, {names[1]} {b:.3f}")
            for slide, provider, a, b in slides
        ],
        fall_ticks=[(down(t), f"{t:+.4g}" if t else "0") for t in axis],
        bars=[
            (
                round(fall[0] + k * step + 0.1 * step, 1),
                min(down(gap), down(0)),
                round(min(0.8 * step, 40), 1),
                round(max(abs(down(gap) - down(0)), 0.5), 1),
                colours[provider],
                f"{slide}: {gap:+.3f}",
            )
            for k, (gap, slide, provider) in enumerate(gaps)
        ],
        zero=down(0),
    )
    return Markup(html)


def effect_chart(effect: Effect, reading: str, y_range: tuple[float, float]) -> Markup:
    """Draw the jobs of each value of a choice, those that differ in it alone joined by a line.

    Args:
        effect: What the choice did.
        reading: What the chart shows, after the title.
        y_range: What the y axis spans at least: one for all choices of a sweep, so that they can be compared.

    Returns:
        A `<figure>` with inline SVG.
    """
    left, top, bottom = 48, 10, 44
    width, height = max(370, left + 10 + 62 * len(effect.values)), 270
    axis = ticks(*y_range)
    room = (width - left - 10) / len(effect.values)

    def place(k: int, score: float) -> tuple[float, float]:
        down = (axis[-1] - score) / (axis[-1] - axis[0]) * (height - top - bottom)
        return round(left + (k + 0.5) * room, 1), round(top + down, 1)

    jobs = [(k, job) for thread in effect.threads for k, job in thread]
    html = ENVIRONMENT.get_template("effect_chart.html").render(
        title=effect.choice,
        reading=reading,
        size=(width, height),
        left=left,
        most=max(6, int(room / 7)),
        y_ticks=[(place(0, t)[1], axis_label(t)) for t in axis],
        threads=[" ".join("{},{}".format(*place(k, job.score)) for k, job in thread) for thread in effect.threads],
        values=[
            (*place(k, middle), value, f"{middle:.3f}")
            for k, (value, middle) in enumerate(zip(effect.values, effect.medians(), strict=True))
        ],
        dots=[(*place(k, job.score), f"{job.label}: {job.score:.3f}") for k, job in jobs],
    )
    return Markup(html)
