"""Pool the folds of a cross-validation: `python -m panda.report.folds runs/…/0 runs/…/1 …`.

Each slide was tested once, at the threshold of its fold. The figures are computed over all slides together, with
intervals over groups, because five figures of two slides each say less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panda.choices import name_tool
from panda.errors import ManifestError, PandaError
from panda.report.paired import list_figures, read_slide_rows, read_value
from panda.report.tested_run import check_comparable, read_tested
from panda.tasks.bootstrap import bootstrap_interval, explain_no_interval


@dataclass(frozen=True)
class Figure:
    """A figure over the slides that have it, with a bootstrap 95 % interval if they are of enough groups."""

    name: str
    slides: int
    groups: int
    value: float
    interval: tuple[float, float] | None


def compute_figures(rows: Sequence[Mapping[str, str]], scoring: str) -> list[Figure]:
    """Compute each of `panda.report.paired.list_figures` that a slide has over the rows of `test_slides.csv`."""
    found = (compute_figure(rows, scoring, name) for name in list_figures(rows, scoring))
    return [figure for figure in found if figure is not None]


def compute_figure(rows: Sequence[Mapping[str, str]], scoring: str, name: str) -> Figure | None:
    """Compute one figure over rows of slides; None if no slide has it, or it is not in `list_figures`."""
    figures = list_figures(rows, scoring)
    if name not in figures:
        return None
    columns, statistic = figures[name]
    values = np.array([[read_value(row, column) for column in columns] for row in rows]).reshape(-1, len(columns))
    has_it = np.isfinite(values).all(axis=1)
    if not has_it.any():
        return None
    groups = np.array([row.get("group") or row["slide_id"] for row in rows])[has_it]
    ends = bootstrap_interval(values[has_it], groups, seed=0, statistic=statistic)
    interval = None if np.isnan(ends).any() else ends
    return Figure(name, int(has_it.sum()), len(set(groups.tolist())), float(statistic(values[has_it])), interval)


def read_folds(folders: Sequence[Path]) -> tuple[list[dict[str, str]], str]:
    """Read the rows of the test slides of finished runs, one for each fold, and their scoring.

    Raises:
        ManifestError: If a folder holds no finished run, a slide was tested in two of them, or their tasks, targets or
            resolutions differ.
    """
    summaries = [read_tested(folder) for folder in folders]
    for folder, summary in zip(folders[1:], summaries[1:], strict=True):
        check_comparable((folders[0], folder), (summaries[0], summary))
    rows: list[dict[str, str]] = []
    tested: dict[str, Path] = {}
    for folder in folders:
        for row in read_slide_rows(folder / "test_slides.csv", summaries[0].scoring):
            slide_id = row["slide_id"]
            if slide_id in tested:
                raise ManifestError(
                    f"{slide_id} was tested in {tested[slide_id]} and in {folder}: give runs of data.split=kfold that "
                    "differ only in data.fold"
                )
            tested[slide_id] = folder
            rows.append(row)
    return rows, summaries[0].scoring


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=name_tool("panda.report.folds"), description="Pool the test slides of the folds of a cross-validation."
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, one for each fold")
    try:
        runs = parser.parse_args().runs
        rows, scoring = read_folds(runs)
    except PandaError as error:
        sys.exit(f"error: {error}")
    print(f"{len(rows)} slides of {len(runs)} runs, each tested once")
    for figure in compute_figures(rows, scoring):
        ends = explain_no_interval(figure.groups) or "no interval"
        if figure.interval is not None:
            ends = "[{:.3f}, {:.3f}]".format(*figure.interval)
        print(f"{figure.name:22} {figure.value:.3f}  {ends}  {figure.slides} slides, {figure.groups} groups")


if __name__ == "__main__":
    main()
