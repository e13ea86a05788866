"""Charts as inline SVG: lines over a common axis, figures with their intervals, columns of counts, and pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from panda.report.axes import PALETTE, TEST, VALIDATION, Axis, draw, pick_ticks

_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One line of a chart: its points by ascending x, and its marks, each with x, y and the text of its tooltip."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    marks: Sequence[tuple[float, float, str]] = ()


@dataclass(frozen=True)
class Bar:
    """One row of a chart of figures: its value, the ends of its interval, and another figure in the same row."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    other: float | None = None
    href: str = ""


def draw_lines(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
    whole_x: bool = False,
    size: tuple[int, int] = (540, 270),
) -> Markup:
    """Draw lines over a common axis; nothing if no line has a point.

    Args:
        title: Title above the chart.
        lines: The lines, the first on top. Lines without a point are left out, and lines with the same name share an
            entry in the legend.
        x_label: Label below the axis.
        y_label: Label beside the axis.
        y_range: Least range of the y axis; None for the range of the data.
        mark: X and text of a vertical dashed line.
        whole_x: Whether only whole numbers are labelled on the x axis.
        size: Width and height, px.
    """
    lines = [line for line in lines if line.xs]
    if not lines:
        return Markup("")
    frame = (64 if y_label else 48, 12, size[0] - 14, size[1] - 42)
    x_values = [x for line in lines for x in line.xs]
    y_values = [y for line in lines for y in line.ys] + list(y_range or ())
    y_ticks = pick_ticks(min(y_values), max(y_values))
    x_low, x_high = min(x_values), max(x_values)
    end = pick_ticks(x_low, x_high, 6)[-1]
    # Thresholds end at 0.999: the axis ends at 1.
    x_high = end if end - x_high < 0.01 * (x_high - x_low) else x_high
    x_ticks = [t for t in pick_ticks(x_low, x_high, 6) if x_low <= t <= x_high and (not whole_x or t == int(t))] or [
        x_low
    ]
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    across, up = Axis(x_low, x_high, frame[0], frame[2]), Axis.fit(y_ticks, frame[3], frame[1])
    drawn = []
    for line in reversed(lines):
        step = math.ceil(len(line.xs) / _POINTS)
        points = [
            (across.place(x), up.place(y), f"{line.name}: {y:.4g} at {x_label} {x:g}")
            for x, y in list(zip(line.xs, line.ys, strict=True))[::step]
        ]
        marks = [(across.place(x), up.place(y), text) for x, y, text in line.marks]
        path = " ".join(f"{x},{y}" for x, y, _ in points)
        drawn.append((line.colour, path, points if len(points) <= 60 else [], marks))
    return draw(
        "line_chart.html",
        title,
        size,
        frame,
        drawn=drawn,
        zero=frame[3],
        legend=[(name, colour, "") for name, colour in {line.name: line.colour for line in lines}.items()],
        x_label=x_label,
        y_label=y_label,
        y_ticks=up.mark(y_ticks),
        x_ticks=across.mark(x_ticks),
        mark=mark and (across.place(min(max(mark[0], x_low), x_high)), mark[1]),
    )


def draw_bars(title: str, bars: Sequence[Bar], names: tuple[str, str]) -> Markup:
    """Draw figures between 0 and 1 (or from −1, as κ may be) as dots with their intervals, one a row from the top.

    `names` are the names of `value` and `other` in the legend. Nothing is drawn if there is no row.
    """
    if not bars:
        return Markup("")
    values = [v for bar in bars for v in (bar.value, bar.low, bar.high, bar.other) if v is not None]
    marks = pick_ticks(min(0.0, *values), max(1.0, *values))
    room = min(420, 24 + 8.5 * max(len(bar.name) for bar in bars))
    row, width, top = 26, 1100, 8
    bottom = top + row * len(bars)
    axis = Axis.fit(marks, room, width - 70)
    return draw(
        "bar_chart.html",
        title,
        (width, bottom + 26),
        (axis.start, top, axis.end, bottom),
        names=names,
        legend=[(names[0], TEST, "dot"), (names[1], VALIDATION, "dot ring")][: 1 + bool(names[1])],
        row=row,
        x_ticks=axis.mark(marks),
        bars=[
            (bar, *(None if v is None else axis.place(v) for v in (bar.value, bar.low, bar.high, bar.other)))
            for bar in bars
        ],
        origin=axis.place(0.0),
    )


def draw_columns(
    title: str, labels: Sequence[str], series: Sequence[tuple[str, Sequence[int]]], x_label: str
) -> Markup:
    """Draw counts of slides as columns side by side; nothing if all counts are zero.

    Args:
        title: Title above the chart.
        labels: Labels below the columns, one for each class.
        series: Name of each series and its count in each class. A series without a count is left out, and the others
            keep their colours.
        x_label: Label below the axis.
    """
    colours = dict(zip((name for name, _ in series), itertools.cycle(PALETTE), strict=False))
    series = [(name, counts) for name, counts in series if any(counts)]
    highest = max((count for _, counts in series for count in counts), default=0)
    if not highest:
        return Markup("")
    size, frame = (540, 270), (64, 12, 532, 228)
    y_ticks = [t for t in pick_ticks(0, highest, 4) if t == int(t)]
    up = Axis(0, y_ticks[-1], frame[3], frame[1])
    class_width = (frame[2] - frame[0]) / len(labels)
    width = min(0.78 * class_width / len(series), 46)
    middles = [frame[0] + (place + 0.5) * class_width for place in range(len(labels))]
    columns = [
        (
            round(middle + (rank - len(series) / 2) * width, 1),
            up.place(count),
            round(width * 0.94, 1),
            round(frame[3] - up.place(count), 1),
            colours[name],
            f"{name}, {label}: {count:,}",
        )
        for rank, (name, counts) in enumerate(series)
        for middle, label, count in zip(middles, labels, counts, strict=True)
    ]
    return draw(
        "column_chart.html",
        title,
        size,
        frame,
        legend=[(name, colours[name], "dot") for name, _ in series],
        zero=frame[3],
        y_ticks=up.mark(y_ticks, "{:,.0f}".format),
        x_ticks=[(round(middle, 1), label) for middle, label in zip(middles, labels, strict=True)],
        x_label=x_label,
        y_label="slides",
        columns=columns,
    )


def draw_pairs(
    title: str, slides: Sequence[tuple[str, str, float, float]], names: tuple[str, str], colours: Mapping[str, str]
) -> Markup:
    """Draw a figure between 0 and 1 of the same slides in two runs: against each other, and its differences sorted.

    `slides` are slide, provider and the figure in either run. Nothing is drawn if there is no slide.
    """
    if not slides:
        return Markup("")
    box, frame = (64, 10, 404, 350), (500, 10, 1090, 350)
    gaps = sorted(((b - a, slide, provider) for slide, provider, a, b in slides), reverse=True)
    levels = pick_ticks(min(0.0, gaps[-1][0]), max(0.0, gaps[0][0]))
    across, up, fall = Axis(0, 1, box[0], box[2]), Axis(0, 1, box[3], box[1]), Axis.fit(levels, frame[3], frame[1])
    step, zero = (frame[2] - frame[0]) / len(gaps), fall.place(0)
    return draw(
        "paired_chart.html",
        title,
        (1100, 400),
        frame,
        names=names,
        legend=[(name, colour, "dot") for name, colour in colours.items()],
        box=box,
        box_ticks=(across.mark(pick_ticks(0, 1)), up.mark(pick_ticks(0, 1))),
        dots=[
            (across.place(a), up.place(b), colours[provider], f"{slide}: {names[0]} {a:.3f}, {names[1]} {b:.3f}")
            for slide, provider, a, b in slides
        ],
        y_ticks=fall.mark(levels, lambda t: f"{t:+.4g}" if t else "0"),
        columns=[
            (
                round(frame[0] + (k + 0.1) * step, 1),
                min(fall.place(gap), zero),
                round(min(0.8 * step, 40), 1),
                round(max(abs(fall.place(gap) - zero), 0.5), 1),
                colours[provider],
                f"{slide}: {gap:+.3f}",
            )
            for k, (gap, slide, provider) in enumerate(gaps)
        ],
        zero=zero,
        x_label=f"slides; Dice of {names[1]} less that of {names[0]}",
    )
