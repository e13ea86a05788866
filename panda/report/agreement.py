"""Draw the agreement of predicted and labelled tumour areas."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from statistics import fmean, stdev
from typing import Any, TypeVar

from markupsafe import Markup

from panda.report.axes import PALETTE, Axis, draw, pick_ticks
from panda.report.run_folder import parse_number
from panda.report.table import format_value

R = TypeVar("R", bound=Mapping[str, Any])

MOST_SHOWN = 2_000
"""Slides of a table that a page shows one by one."""


def take_sample(rows: Iterable[R]) -> list[R]:
    """Return the rows of a table in their order; of a long table a random sample that is the same each time.

    The sample has the slides whose ids have the smallest hashes.
    """

    def find_hash(numbered: tuple[int, R]) -> bytes:
        return hashlib.sha256(str(numbered[1].get("slide_id")).encode("utf-8", "surrogatepass")).digest()

    return [row for _, row in sorted(heapq.nsmallest(MOST_SHOWN, enumerate(rows), find_hash), key=itemgetter(0))]


def measure_agreement(gaps: Sequence[float]) -> tuple[float, float]:
    """Return the mean of differences, and how far the limits of agreement are from it; of two differences or more."""
    return fmean(gaps), 1.96 * stdev(gaps)


def draw_agreement(rows: Iterable[Mapping[str, Any]]) -> Markup:
    """Draw the difference of predicted and labelled tumour area against their mean, one dot for each slide.

    Lines mark the mean difference and the limits of agreement (Bland and Altman 1986, "Statistical methods for
    assessing agreement"). About 95 % of such slides are between the limits if the differences are about normal. Rows
    have `slide_id`, `tumor_mm2`, `true_tumor_mm2` and, if known, `provider`. The chart is empty if fewer than three
    have both areas, because their spread means nothing. Of a long table the
    dots are a sample, and the lines are of all slides.
    """
    gaps = array("d")

    def find_areas() -> Iterator[dict[str, Any]]:
        for row in rows:
            found, true = parse_number(row.get("tumor_mm2")), parse_number(row.get("true_tumor_mm2"))
            if found is not None and true is not None:
                gaps.append(found - true)
                yield {"slide_id": row.get("slide_id"), "provider": row.get("provider"), "areas": (found, true)}

    slides = [
        (str(row["slide_id"]), str(row["provider"] or "slides"), *row["areas"]) for row in take_sample(find_areas())
    ]
    if len(slides) < 3:
        return Markup("")
    bias, limit = measure_agreement(gaps)
    shown = [found - true for *_, found, true in slides]
    means = pick_ticks(0.0, max((found + true) / 2 for *_, found, true in slides))
    levels = pick_ticks(min(*shown, bias - limit, 0.0), max(*shown, bias + limit, 0.0))
    frame = (70, 14, 930, 300)
    across, up = Axis.fit(means, frame[0], frame[2]), Axis.fit(levels, frame[3], frame[1])
    colours = dict(zip(sorted({provider for _, provider, *_ in slides}), PALETTE, strict=False))
    lines = ((bias + limit, "upper limit", "6 4"), (bias, "mean", ""), (bias - limit, "lower limit", "6 4"))
    return draw(
        "agreement_chart.html",
        "Tumour area, found less labelled",
        (1100, 350),
        frame,
        words=[f"{value:+.3f}" for value in (bias, bias - limit, bias + limit)],
        x_ticks=across.mark(means),
        y_ticks=up.mark(levels),
        x_label="mean of found and labelled, mm²",
        lines=[(up.place(value), f"{name} {value:+.3f}", dashes) for value, name, dashes in lines],
        zero=up.place(0.0),
        legend=[(name, colour, "dot") for name, colour in colours.items()] if len(colours) > 1 else [],
        dots=[
            (
                across.place((found + true) / 2),
                up.place(found - true),
                colours.get(provider, PALETTE[-1]),
                f"{name}: found {format_value(found, 'mm2')} mm², labelled {format_value(true, 'mm2')} mm²",
            )
            for name, provider, found, true in slides
        ],
    )
