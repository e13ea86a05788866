"""Figures and distributions of the slides of an audit, by provider, for its page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from markupsafe import Markup

from panda.audit.tables import OTHER
from panda.report.charts import draw_columns
from panda.report.run_folder import parse_number
from panda.report.table import Cell, Head, Table, make_cell

Rows = Mapping[str, Sequence[Mapping[str, str]]]
"""Rows of `audit.csv` by provider."""
_BINS = 12


def group_rows(rows: Sequence[Mapping[str, str]], providers: Sequence[str]) -> Rows:
    """Group the rows of `audit.csv` by provider; rows of other providers go to `OTHER`."""
    named: dict[str, list[Mapping[str, str]]] = {provider: [] for provider in providers}
    for row in rows:
        provider = row.get("provider", "")
        named.setdefault(provider if provider in named else OTHER, []).append(row)
    return named


def make_provider_table(by: Rows) -> Table:
    """Return a table of sizes, resolution and tissue of the slides of each provider."""
    rows = []
    for provider, own in by.items():
        areas, tissue = _multiply_columns(own, "width", "height"), _multiply_columns(own, "tissue_mm2")
        mpp = sorted({float(f"{value:.3g}") for value in _multiply_columns(own, "mpp_x")})
        span = f"{mpp[0]:g}" + (f" to {mpp[-1]:g}" if len(mpp) > 1 else "") if mpp else ""
        rows.append(
            [
                Cell(provider),
                make_cell(len(own), "count"),
                make_cell(len(areas), "count"),
                _make_billions_cell(median, areas),
                _make_billions_cell(max, areas),
                Cell(span, mpp[0] if mpp else None, "" if mpp else "no slide of this provider has µm/px", style="num"),
                make_cell(median(tissue) if tissue else None, "mm2", "tissue or µm/px is unknown"),
                _make_billions_cell(sum, _multiply_columns(own, "file_bytes")),
            ]
        )
    heads = (
        *(("Slides", ""), ("Read", ""), ("Level 0, median", "gigapixels"), ("Level 0, largest", "gigapixels")),
        *(("Resolution", "µm/px"), ("Tissue, median", "mm²"), ("Files", "GB")),
    )
    return Table([Head("Provider"), *(Head(name, unit, True) for name, unit in heads)], rows, sortable=False)


def make_charts(by: Rows) -> list[Markup]:
    """Return charts of grades, sizes, tissue and cancer by provider, without empty charts."""
    grades = sorted({row.get("isup_grade", "") for rows in by.values() for row in rows} & set("012345"))
    counts = [(p, [sum(row.get("isup_grade") == grade for row in rows) for grade in grades]) for p, rows in by.items()]
    charts = [
        draw_columns("ISUP grades", grades, counts, "ISUP grade in the table"),
        _make_histogram("Size of the slides", by, ("width", "height"), 1e-6, "megapixels at level 0"),
        _make_histogram("Tissue on a slide", by, ("tissue_mm2",), 1.0, "mm² of tissue"),
        _make_histogram("Cancer in masks that have cancer", by, ("cancer_mm2",), 1.0, "mm² labelled as cancer"),
    ]
    return [chart for chart in charts if chart]


def _multiply_columns(rows: Sequence[Mapping[str, str]], *columns: str) -> list[float]:
    """Return the product of the columns for each row that has all of them."""
    values = [[parse_number(row.get(column)) for column in columns] for row in rows]
    return [math.prod(value for value in row if value is not None) for row in values if None not in row]


def _make_billions_cell(statistic: Callable[[list[float]], float], values: list[float]) -> Cell:
    if not values:
        return Cell(why="no slide of this provider could be read", style="num")
    value = statistic(values) / 1e9
    return Cell(f"{value:.3g}", value, style="num")


def _make_histogram(title: str, by: Rows, columns: tuple[str, ...], factor: float, label: str) -> Markup:
    """Count values in bins whose width doubles: at most twelve, the first with all smaller values, without zeros."""
    values = {provider: _multiply_columns(rows, *columns) for provider, rows in by.items()}
    bins = {
        provider: Counter(math.floor(math.log2(value * factor)) for value in own if value > 0)
        for provider, own in values.items()
    }
    met = {exponent for counts in bins.values() for exponent in counts}
    if not met:
        return Markup("")
    first = max(min(met), max(met) - _BINS + 1)
    span = range(first, max(met) + 1)
    names = [f"{_format_power(exponent)}–{_format_power(exponent + 1)}" for exponent in span]
    if min(met) < first:
        names[0] = f"<{_format_power(first + 1)}"
    series = [
        (provider, [sum(count for e, count in counts.items() if max(e, first) == exponent) for exponent in span])
        for provider, counts in bins.items()
    ]
    return draw_columns(title, names, series, label)


def _format_power(exponent: int) -> str:
    return f"{2.0**exponent:.2g}" if exponent < 4 else f"{2**exponent}"
