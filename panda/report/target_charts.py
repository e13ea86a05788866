"""Charts of the predictions of a run whose target is a number or a survival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from panda.data.targets import TargetSpec
from panda.report.axes import PALETTE, Axis, draw, pick_ticks
from panda.report.charts import Line, draw_lines
from panda.report.run_folder import parse_number

Row = Mapping[str, str]


def draw_predictions(rows: Sequence[Row], target: TargetSpec) -> Markup:
    """Draw the slides of `test_slides.csv` or `val_slides.csv`; nothing for classes, or with fewer than two slides."""
    columns = {"regression": ("label", "predicted"), "survival": ("time", "event", "predicted")}.get(target.kind, ())
    numbers = [[parse_number(row.get(column)) for column in columns] for row in rows]
    known = [(row, values) for row, values in zip(rows, numbers, strict=True) if columns and None not in values]
    if len(known) < 2:
        return Markup("")
    values = np.array([values for _, values in known], dtype=np.float64)
    if target.kind == "regression":
        return _draw_scatter([row for row, _ in known], values, target.name)
    time, event, risk = values.T
    return _draw_survival(time, event, risk, target.columns[0])


def _draw_scatter(rows: Sequence[Row], values: np.ndarray, name: str) -> Markup:
    """Draw predicted against given numbers, (N, 2), with the line on which they are equal."""
    ticks = pick_ticks(float(values.min()), float(values.max()))
    frame = (70, 14, 470, 414)
    across, up = Axis.fit(ticks, frame[0], frame[2]), Axis.fit(ticks, frame[3], frame[1])
    providers = sorted({row.get("provider") or "slides" for row in rows})
    colours = {provider: PALETTE[k % len(PALETTE)] for k, provider in enumerate(providers)}
    return draw(
        "scatter_chart.html",
        f"{name}, predicted and given",
        (500, 464),
        frame,
        x_ticks=across.mark(ticks),
        y_ticks=up.mark(ticks),
        x_label=f"given {name}",
        y_label=f"predicted {name}",
        legend=[(provider, colour, "dot") for provider, colour in colours.items()] if len(colours) > 1 else [],
        dots=[
            (
                across.place(given),
                up.place(predicted),
                colours[row.get("provider") or "slides"],
                f"{row.get('slide_id')}: given {given:.4g}, predicted {predicted:.4g}",
            )
            for row, (given, predicted) in zip(rows, values.tolist(), strict=True)
        ],
    )


def _draw_survival(time: np.ndarray, event: np.ndarray, risk: np.ndarray, name: str) -> Markup:
    """Draw Kaplan-Meier curves of the slides above the median of the predicted risk, and of the others."""
    higher = risk > np.median(risk)
    if not higher.any():
        return Markup("")
    lines = []
    for chosen, word, colour in ((higher, "higher", PALETTE[1]), (~higher, "lower", PALETTE[0])):
        xs, ys = compute_kaplan_meier(time[chosen], event[chosen])
        count = int(chosen.sum())
        lines.append(Line(f"{word} risk, {count} slide{'s' * (count != 1)}", xs, ys, colour))
    title = "Slides without an event (Kaplan and Meier), above the median of the predicted risk and below"
    return draw_lines(title, lines, name, y_range=(0.0, 1.0), size=(760, 320))


def compute_kaplan_meier(time: np.ndarray, event: np.ndarray) -> tuple[list[float], list[float]]:
    """Compute the corners of the curve of Kaplan and Meier (1958): times from 0, and the share without an event."""
    xs, ys, share = [0.0], [1.0], 1.0
    for moment in np.unique(time[event == 1]).tolist():
        before = share
        share *= 1 - float(((time == moment) & (event == 1)).sum() / (time >= moment).sum())
        xs += [moment, moment]
        ys += [before, share]
    return [*xs, float(time.max())], [*ys, share]
