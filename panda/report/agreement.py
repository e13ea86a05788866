"""Draw the agreement of predicted and labelled tumour areas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from markupsafe import Markup

from panda.report.charts import PALETTE, axis_label, ticks
from panda.report.page import ENVIRONMENT
from panda.report.run_folder import number
from panda.report.table import show


@dataclass(frozen=True)
class Agreement:
    """Differences of paired areas (Bland and Altman 1986, "Statistical methods for assessing agreement").

    Attributes:
        bias: Mean of predicted less labelled area, mm².
        low: Lower limit of agreement, mm²: the bias less 1.96 standard deviations of the differences.
        high: Upper limit. About 95 % of such slides are between the limits if the differences are about normal.
    """

    bias: float
    low: float
    high: float

    @classmethod
    def from_differences(cls, differences: Sequence[float]) -> Agreement | None:
        """Compute bias and limits; None for fewer than three slides, whose spread means nothing."""
        if len(differences) < 3:
            return None
        bias, spread = fmean(differences), stdev(differences)
        return cls(bias, bias - 1.96 * spread, bias + 1.96 * spread)


def agreement_chart(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw the difference of predicted and labelled tumour area against their mean, one dot for each slide.

    Args:
        rows: Slides, each with `slide_id`, `tumor_mm2`, `true_tumor_mm2` and, if known, `provider`.

    Returns:
        A `<figure>` with inline SVG; empty if fewer than three slides have both areas.
    """
    slides = []
    for row in rows:
        found, true = number(row.get("tumor_mm2")), number(row.get("true_tumor_mm2"))
        if found is not None and true is not None:
            slides.append((str(row.get("slide_id")), str(row.get("provider") or "slides"), found, true))
    agreement = Agreement.from_differences([found - true for _, _, found, true in slides])
    if agreement is None:
        return Markup("")
    left, top, right, bottom, width, height = 70, 14, 930, 300, 1100, 350
    across = ticks(0.0, max((found + true) / 2 for *_, found, true in slides))
    gaps = [found - true for *_, found, true in slides]
    up = ticks(min(*gaps, agreement.low, 0.0), max(*gaps, agreement.high, 0.0))

    def x_of(mean: float) -> float:
        return round(left + (mean - across[0]) / (across[-1] - across[0]) * (right - left), 1)

    def y_of(gap: float) -> float:
        return round(top + (up[-1] - gap) / (up[-1] - up[0]) * (bottom - top), 1)

    colours = dict(zip(sorted({provider for _, provider, *_ in slides}), PALETTE, strict=False))
    html = ENVIRONMENT.get_template("agreement_chart.html").render(
        count=len(slides),
        words=[f"{value:+.3f}" for value in (agreement.bias, agreement.low, agreement.high)],
        size=(width, height),
        frame=(left, top, right, bottom),
        x_ticks=[(x_of(t), axis_label(t)) for t in across],
        y_ticks=[(y_of(t), axis_label(t)) for t in up],
        lines=[
            (y_of(agreement.high), f"{agreement.high:+.3f}", "upper limit"),
            (y_of(agreement.bias), f"{agreement.bias:+.3f}", "mean"),
            (y_of(agreement.low), f"{agreement.low:+.3f}", "lower limit"),
        ],
        zero=y_of(0.0),
        legend=list(colours.items()) if len(colours) > 1 else [],
        dots=[
            (
                x_of((found + true) / 2),
                y_of(found - true),
                colours.get(provider, PALETTE[-1]),
                f"{name}: found {show(found, 'mm2')} mm², labelled {show(true, 'mm2')} mm²",
            )
            for name, provider, found, true in slides
        ],
    )
    return Markup(html)
