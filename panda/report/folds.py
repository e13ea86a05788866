"""The folds of a cross-validation as one figure: `python -m panda.report.folds runs/…/0 runs/…/1 …`.

Each slide was tested once, at the threshold of its fold. The figures are of all of them together, with intervals over
groups: five figures of two slides each say less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panda.errors import ManifestError, PandaError
from panda.files import read_output_table
from panda.report.compare import check_alike, read_tested
from panda.report.paired import FIGURES, value_of
from panda.tasks.bootstrap import RESAMPLES, bootstrap_interval


@dataclass(frozen=True)
class Figure:
    """A figure over slides.

    Attributes:
        name: Its key.
        slides: How many bear on it.
        groups: Of how many groups.
        value: The figure.
        interval: 95 %, bootstrap over groups; None with fewer than two of them.
    """

    name: str
    slides: int
    groups: int
    value: float
    interval: tuple[float, float] | None


def figures(rows: Sequence[Mapping[str, str]], task: str, seed: int = 0) -> list[Figure]:
    """Give the figures over rows of `test_slides.csv`.

    Args:
        rows: One a slide.
        task: `segmentation` or `grading`.
        seed: Of the bootstrap.

    Returns:
        Those of `panda.report.paired.FIGURES`; one that no slide bears on is left out.
    """
    names = np.array([row.get("group") or row["slide_id"] for row in rows])
    found = []
    for name, columns, statistic in FIGURES[task]:
        values = np.array([[value_of(row, column) for column in columns] for row in rows]).reshape(-1, len(columns))
        bears = np.isfinite(values).all(axis=1)
        if not bears.any():
            continue
        groups = names[bears]
        ends = bootstrap_interval(values[bears], groups, seed=seed, statistic=statistic, n=RESAMPLES)
        interval = None if np.isnan(ends).any() else ends
        value = statistic(values[bears])
        found.append(Figure(name, int(bears.sum()), len(set(groups.tolist())), value, interval))
    return found


def rows_of(folders: Sequence[Path]) -> tuple[list[dict[str, str]], str]:
    """Read the test slides of runs whose test slides are apart.

    Args:
        folders: Of finished runs, one a fold.

    Returns:
        The rows of all, and the task.

    Raises:
        ManifestError: A folder holds no finished run, a slide was tested in two of them, or their tasks, targets or
            resolutions differ.
    """
    summaries = [read_tested(folder) for folder in folders]
    for folder, summary in zip(folders[1:], summaries[1:], strict=True):
        check_alike((folders[0], folder), (summaries[0], summary))
    rows: list[dict[str, str]] = []
    tested: dict[str, Path] = {}
    for folder in folders:
        for row in read_output_table(folder / "test_slides.csv"):
            slide_id = row["slide_id"]
            if slide_id in tested:
                raise ManifestError(
                    f"{slide_id} was tested in {tested[slide_id]} and in {folder}: give runs of data.split=kfold that "
                    "differ in data.fold alone"
                )
            tested[slide_id] = folder
            rows.append(row)
    return rows, summaries[0].task


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m panda.report.folds", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, one a fold")
    try:
        runs = parser.parse_args().runs
        rows, task = rows_of(runs)
    except PandaError as error:
        sys.exit(f"error: {error}")
    print(f"{len(rows)} slides of {len(runs)} runs, each tested once")
    for figure in figures(rows, task):
        ends = "no interval: one group" if figure.interval is None else "[{:.3f}, {:.3f}]".format(*figure.interval)
        print(f"{figure.name:22} {figure.value:.3f}  {ends}  {figure.slides} slides, {figure.groups} groups")


if __name__ == "__main__":
    main()
