"""A run's figures in two lines: `python -m panda.report.headline runs/segmentation/demo …`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from panda.errors import ManifestError

FIGURES = {
    "segmentation": (
        ("dice", "Dice"),
        ("dice_mean_slide", "mean Dice of slides with cancer"),
        ("all_tissue_dice", "Dice if all tissue were called cancer"),
    ),
    "grading": (("qwk", "quadratic kappa"), ("accuracy", "accuracy"), ("auroc", "AUROC for cancer")),
}


def headline(summary: Mapping[str, Any]) -> str:
    """The figures of the test slides, or of validation where there are none.

    Args:
        summary: The content of a run's `summary.json`.
    """
    split = "test" if summary.get("test") else "val"
    scores = summary[split]
    named = [f"{name} {_shown(scores[key])}" for key, name in FIGURES[summary["task"]] if key in scores]
    slides = f" on {scores['slides']} slides" if "slides" in scores else ""
    at = f" at threshold {summary['threshold']:.3f}" if summary["task"] == "segmentation" else ""
    return f"{summary['task']} ({split}{slides}{at}): {', '.join(named)}"


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def main(folders: Sequence[str]) -> None:
    """Print headline and report of each run folder.

    Raises:
        ManifestError: If a folder holds no finished run.
    """
    for folder in folders:
        path = Path(folder) / "summary.json"
        if not path.is_file():
            raise ManifestError(f"{path} does not exist: {folder} holds no finished run")
        print(f"{headline(json.loads(path.read_text()))}\n  {Path(folder) / 'report.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
