"""Counts as columns in inline SVG."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from markupsafe import Markup

from panda.report.charts import PALETTE, ticks
from panda.report.page import ENVIRONMENT


def column_chart(
    title: str,
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[int]]],
    x_label: str,
    *,
    size: tuple[int, int] = (540, 270),
) -> Markup:
    """Draw counts as columns side by side.

    Args:
        title: Above the chart.
        labels: Below the columns, one a class.
        series: Name and counts, one a class, of each series; those without a count are left out, and
            the others keep their colours.
        x_label: Below the axis.
        size: Width and height in px.

    Returns:
        A `<figure>` with inline SVG; empty if nothing was counted.
    """
    colours = dict(zip((name for name, _ in series), itertools.cycle(PALETTE), strict=False))
    series = [(name, counts) for name, counts in series if any(counts)]
    highest = max((count for _, counts in series for count in counts), default=0)
    if not highest:
        return Markup("")
    (width, height), left, right, top, bottom = size, 52, 8, 12, 42
    y_ticks = [t for t in ticks(0, highest, 4) if t == int(t)]
    class_width = (width - left - right) / len(labels)
    column = min(0.78 * class_width / len(series), 46)

    def down(count: float) -> float:
        return round(height - bottom - count / y_ticks[-1] * (height - top - bottom), 1)

    columns = [
        (
            round(left + (place + 0.5) * class_width + (number - len(series) / 2) * column, 1),
            down(count),
            round(column * 0.94, 1),
            round(down(0) - down(count), 1),
            colours[name],
            f"{name}, {label}: {count:,}",
        )
        for number, (name, counts) in enumerate(series)
        for place, (label, count) in enumerate(zip(labels, counts, strict=True))
    ]
    html = ENVIRONMENT.get_template("column_chart.html").render(
        title=title,
        legend=[(name, colours[name]) for name, _ in series],
        size=size,
        frame=(left, top, width - right, height - bottom),
        y_ticks=[(down(t), f"{t:,.0f}") for t in y_ticks],
        x_ticks=[(round(left + (place + 0.5) * class_width, 1), label) for place, label in enumerate(labels)],
        x_label=x_label,
        columns=columns,
    )
    return Markup(html)
