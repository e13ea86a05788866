"""Lay out confusion matrices: one row for each true class, one column for each predicted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from panda.report.table import format_value


@dataclass(frozen=True)
class ConfusionCell:
    """A cell: its text, its share of the row, and whether it counts correct predictions."""

    text: str
    share: float
    correct: bool


@dataclass(frozen=True)
class ConfusionTable:
    """A confusion matrix with the names of its rows and columns.

    Attributes:
        corner: Names of the rows and columns, in the corner.
        columns: Predicted classes.
        rows: True classes, each with its cells.
    """

    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[ConfusionCell]]]


def lay_out_confusion(
    values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], corner: str, kind: str = "count"
) -> ConfusionTable:
    """Lay out a matrix.

    Args:
        values: Counts or areas, a row for each true class.
        rows: Names of the rows. A cell is correct if its row and column have one name.
        columns: Names of the columns.
        corner: What rows and columns are.
        kind: Format of the values, see `format_value`.
    """
    table = []
    for name, row in zip(rows, values, strict=True):
        total = sum(row)
        cells = [
            ConfusionCell(format_value(value, kind), value / total if total else 0.0, name == column)
            for value, column in zip(row, columns, strict=True)
        ]
        table.append((name, cells))
    return ConfusionTable(corner, columns, table)
