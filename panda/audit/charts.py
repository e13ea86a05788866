"""What the slides of an audit are, by provider: the figures and distributions of its page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from markupsafe import Markup

from panda.audit.summary import OTHER
from panda.report.column_chart import column_chart
from panda.report.run_folder import natural_key, number
from panda.report.table import Cell, Head, Table, cell

Rows = Mapping[str, Sequence[Mapping[str, str]]]
"""Rows of `audit.csv` by provider."""
_BINS = 12


def rows_by_provider(rows: Sequence[Mapping[str, str]], providers: Sequence[str]) -> Rows:
    """Sort the rows of `audit.csv` by provider; those of a provider that is not among them go to `OTHER`."""
    named: dict[str, list[Mapping[str, str]]] = {provider: [] for provider in providers}
    for row in rows:
        provider = row.get("provider", "")
        named.setdefault(provider if provider in named else OTHER, []).append(row)
    return named


def provider_table(by: Rows) -> Table:
    """Sizes, resolution and tissue of the slides of each provider."""
    why = "no slide of it could be read"
    rows = []
    for provider, own in by.items():
        areas, tissue, files = (
            _products(own, *columns) for columns in (("width", "height"), ("tissue_mm2",), ("file_bytes",))
        )
        mpp = sorted({float(f"{value:.3g}") for value in _products(own, "mpp_x")})
        span = f"{mpp[0]:g}" + (f" to {mpp[-1]:g}" if len(mpp) > 1 else "") if mpp else ""
        rows.append(
            [
                Cell(provider),
                cell(len(own), "count"),
                cell(len(areas), "count"),
                _rounded(median(areas) / 1e9 if areas else None, why),
                _rounded(max(areas) / 1e9 if areas else None, why),
                Cell(span, mpp[0] if mpp else None, "" if mpp else "no slide of it states µm/px", style="num"),
                cell(median(tissue) if tissue else None, "mm2", "tissue or µm/px is unknown"),
                _rounded(sum(files) / 1e9 if files else None, why),
            ]
        )
    heads = (
        *(("Slides", ""), ("Read", ""), ("Level 0, median", "gigapixels"), ("Level 0, largest", "gigapixels")),
        *(("Resolution", "µm/px"), ("Tissue, median", "mm²"), ("Files", "GB")),
    )
    return Table([Head("Provider"), *(Head(name, unit, True) for name, unit in heads)], rows, sortable=False)


def distributions(by: Rows) -> list[Markup]:
    """Charts of grades, sizes, tissue and cancer by provider; those without a figure are left out."""
    grades = sorted(
        {row.get("isup_grade", "") for rows in by.values() for row in rows} & set("012345"), key=natural_key
    )
    counts = [(p, [sum(row.get("isup_grade") == grade for row in rows) for grade in grades]) for p, rows in by.items()]
    charts = [
        column_chart("ISUP grades", grades, counts, "ISUP grade, as the table gives it"),
        _histogram("Size of the slides", by, ("width", "height"), 1e-6, "megapixels at level 0"),
        _histogram("Tissue on a slide", by, ("tissue_mm2",), 1.0, "mm² of tissue"),
        _histogram("Cancer in a mask, where there is any", by, ("cancer_mm2",), 1.0, "mm² labelled as cancer"),
    ]
    return [chart for chart in charts if chart]


def _products(rows: Sequence[Mapping[str, str]], *columns: str) -> list[float]:
    """Products of columns, of the rows that have all of them."""
    values = [[number(row.get(column)) for column in columns] for row in rows]
    return [math.prod(value for value in row if value is not None) for row in values if None not in row]


def _rounded(value: float | None, why: str) -> Cell:
    return Cell("" if value is None else f"{value:.3g}", value, why if value is None else "", style="num")


def _histogram(title: str, by: Rows, columns: tuple[str, ...], factor: float, label: str) -> Markup:
    """Count values in bins that double; the first of at most twelve takes all that is smaller, zeros are left out."""
    bins = {
        provider: Counter(math.floor(math.log2(value * factor)) for value in _products(rows, *columns) if value > 0)
        for provider, rows in by.items()
    }
    met = {exponent for counts in bins.values() for exponent in counts}
    if not met:
        return Markup("")
    first = max(min(met), max(met) - _BINS + 1)
    span = range(first, max(met) + 1)
    names = [f"{_power(exponent)}–{_power(exponent + 1)}" for exponent in span]
    if min(met) < first:
        names[0] = f"<{_power(first + 1)}"
    series = [
        (provider, [sum(count for e, count in counts.items() if max(e, first) == exponent) for exponent in span])
        for provider, counts in bins.items()
    ]
    return column_chart(title, names, series, label)


def _power(exponent: int) -> str:
    return f"{2.0**exponent:.2g}" if exponent < 4 else f"{2**exponent}"
