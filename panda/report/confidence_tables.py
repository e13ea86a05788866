"""The tables and charts of the confidence of grades: reliability diagram and risk-coverage curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from panda.report.axes import GREY, PALETTE, TEST, VALIDATION
from panda.report.charts import Line, draw_lines
from panda.report.run_folder import parse_number
from panda.tables import read_output_table, write_table
from panda.tasks.grade_calibration import measure_grade_reliability, trace_risk

RELIABILITY_TABLE, RISK_TABLE = "calibration.csv", "risk_coverage.csv"
_SPLITS = (("validation", VALIDATION, PALETTE[4]), ("test", TEST, PALETTE[3]))
"""Splits of the tables, with the colours of calibrated and uncalibrated lines."""

Confidences = Mapping[tuple[str, bool], tuple[NDArray[np.float64], NDArray[np.bool_]]]
"""Split, and whether the temperature was used, to confidence and correctness of its slides."""


def write_confidence_tables(confidences: Confidences, folder: Path) -> None:
    """Write the reliability of confidences, and the risk at each coverage: `calibration.csv`, `risk_coverage.csv`.

    Reliability has a row for each split, scaled (1: at the temperature) and bin: its slides, low, high (confidences at
    its ends), confidence (their mean), accuracy. Risk has a row for each split, scaled and confidence: the slides with
    at least that confidence, coverage (their share), risk (share of wrong classes among them).
    """
    bins, risks = [], []
    for (split, scaled), slides in confidences.items():
        which = {"split": split, "scaled": int(scaled)}
        found = measure_grade_reliability(*slides)
        columns = ("slides", "low", "high", "confidence", "accuracy")
        each = zip(*(getattr(found, name).tolist() for name in columns), strict=True)
        bins += [which | dict(zip(columns, values, strict=True)) for values in each]
        curve = trace_risk(*slides)
        for confidence, count, risk in zip(
            curve.confidence.tolist(), curve.slides.tolist(), curve.risk.tolist(), strict=True
        ):
            coverage = count / int(curve.slides[-1])
            risks.append(which | {"confidence": confidence, "slides": count, "coverage": coverage, "risk": risk})
    write_table(folder / RELIABILITY_TABLE, bins)
    write_table(folder / RISK_TABLE, risks)


def draw_confidence(folder: Path, abstain_below: float | None) -> list[Markup]:
    """Draw reliability diagram and risk-coverage curve from the tables of a run; nothing without them.

    With a least confidence, the last slides that are graded are marked on each curve.
    """
    bins, risks = (read_output_table(folder / name) for name in (RELIABILITY_TABLE, RISK_TABLE))
    scaled = max((row.get("scaled", "") for row in risks), default="0")
    reliability, curves = [], []
    for split, colour, raw in _SPLITS:
        for which, shade in (("1", colour), ("0", raw)):
            points = _collect(bins, split, which, "confidence", "accuracy")
            name = split + ", at the temperature" * (which == "1")
            reliability.append(Line(name, [x for x, _ in points], [y for _, y in points], shade))
        steps = _collect(risks, split, scaled, "confidence", "coverage", "risk")
        graded = [step for step in steps if abstain_below is not None and step[0] >= abstain_below]
        marks = [
            (coverage, risk, f"{split}: {coverage:.0%} graded from {abstain_below:.3g}, {risk:.0%} of them wrong")
            for _, coverage, risk in graded[-1:]
        ]
        curves.append(Line(split, [step[1] for step in steps], [step[2] for step in steps], colour, marks))
    if not risks:
        return []
    reliability.append(Line("perfect calibration", (0.0, 1.0), (0.0, 1.0), GREY))
    return [
        draw_lines(
            "Accuracy by confidence", reliability, "confidence", y_label="share of right classes", y_range=(0.0, 1.0)
        ),
        draw_lines(
            "Wrong classes among the most confident",
            curves,
            "share of slides graded",
            y_label="share of wrong classes",
            y_range=(0.0, 0.1),
        ),
    ]


def _collect(rows: Sequence[Mapping[str, str]], split: str, scaled: str, *columns: str) -> list[list[float]]:
    """Return the numbers of the rows of a split that have all of these columns."""
    chosen = [row for row in rows if (row.get("split"), row.get("scaled")) == (split, scaled)]
    points = [[value for column in columns if (value := parse_number(row.get(column))) is not None] for row in chosen]
    return [point for point in points if len(point) == len(columns)]
