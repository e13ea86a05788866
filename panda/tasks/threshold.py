"""The probability above which a pixel is called cancer: how it is chosen, kept and shown."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from panda.errors import ConfigError
from panda.files import whole_path, write_table
from panda.tasks.metrics import BINS, curve, mean_slide_dice, pooled

Criterion = Literal["dice_pooled", "dice_mean_slide"]
DEFAULT_THRESHOLD = 0.5
"""What is taken where there is nothing to choose by."""


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and where it comes from.

    Attributes:
        value: A pixel is cancer where its probability is at least this.
        criterion: What was greatest there: "dice_pooled" or "dice_mean_slide"; "default" where nothing was
            searched.
        score: The criterion's value there; nan where nothing was searched.
        chosen_on: The slides it was chosen on, in words; for "default", why there was no search.
        date: ISO 8601, UTC, of the choice.
    """

    value: float
    criterion: str
    score: float
    chosen_on: str
    date: str

    @classmethod
    def given(cls, value: float) -> Self:
        """A threshold that the user set beforehand: nothing was searched."""
        return cls(value, "given", math.nan, "no slides: it was given beforehand", _now())

    def plain(self) -> dict[str, str | float | None]:
        """Give strings, numbers and None only: fit for a checkpoint or JSON."""
        plain = asdict(self)
        plain["score"] = None if math.isnan(self.score) else self.score
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild what `plain` gave.

        Args:
            plain: Its keys and values.

        Returns:
            The choice.

        Raises:
            KeyError: A key is missing.
        """
        score = plain["score"]
        return cls(
            value=float(plain["value"]),
            criterion=str(plain["criterion"]),
            score=math.nan if score is None else float(score),
            chosen_on=str(plain["chosen_on"]),
            date=str(plain["date"]),
        )


def search_threshold(
    slide_histograms: Mapping[str, ArrayLike | Tensor],
    criterion: Criterion = "dice_pooled",
    chosen_on: str = "validation",
) -> ThresholdChoice:
    """Choose the threshold with the highest Dice among 0, 0.001, … 0.999.

    Of thresholds that are equally good the middle one of the longest unbroken run is taken (of runs as long
    the lowest): it is farthest from where the score falls.

    Args:
        slide_histograms: Slide to (2, BINS), of validation slides only.
        criterion: "dice_pooled": over the pixels of all slides together, so that large tumours weigh most and
            false positives on benign slides count. "dice_mean_slide": the mean over slides with cancer, each
            weighing the same; slides without have no Dice and no say.
        chosen_on: The slides, in words.

    Returns:
        The choice; where no slide has a cancer pixel, 0.5 by the criterion "default", with the reason.

    Raises:
        ConfigError: Another criterion.
    """
    if criterion not in get_args(Criterion):
        raise ConfigError(f"criterion={criterion}: must be one of {', '.join(get_args(Criterion))}")
    date = _now()
    total = pooled(slide_histograms)
    if not total[0].any():
        why = f"not searched: no cancer pixel among the {len(slide_histograms)} slides of {chosen_on}"
        return ThresholdChoice(DEFAULT_THRESHOLD, "default", math.nan, why, date)
    scores = curve(*total).dice if criterion == "dice_pooled" else mean_slide_dice(slide_histograms)
    k = _middle_of_best(scores)
    return ThresholdChoice(k / BINS, criterion, float(scores[k]), chosen_on, date)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _middle_of_best(scores: NDArray[np.float64]) -> int:
    best = np.flatnonzero(scores == np.nanmax(scores))
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[(len(longest) - 1) // 2])


def write_threshold_curve(
    hists: Mapping[str, ArrayLike | Tensor], choice: ThresholdChoice, csv_path: Path, png_path: Path
) -> None:
    """Write the scores at every threshold as a table and as a picture.

    The table has a row a threshold: threshold, dice_pooled, dice_mean_slide, iou, precision, recall,
    tp, fp, fn (pixels over all slides); a score that is 0 / 0 is empty. Either file is whole or absent.

    Args:
        hists: Slide to (2, BINS).
        choice: Marked in the picture.
        csv_path: The table; folders are made.
        png_path: The picture.
    """
    total = curve(*pooled(hists))
    per_slide = mean_slide_dice(hists)
    columns: dict[str, NDArray[Any]] = {
        "threshold": total.thresholds,
        "dice_pooled": total.dice,
        "dice_mean_slide": per_slide,
        "iou": total.iou,
        "precision": total.precision,
        "recall": total.recall,
        "tp": total.tp,
        "fp": total.fp,
        "fn": total.fn,
    }

    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    named = (dict(zip(columns, row, strict=True)) for row in rows)
    write_table(csv_path, [{key: None if math.isnan(value) else value for key, value in row.items()} for row in named])
    figure = _picture(columns, choice)
    with whole_path(png_path) as partial:
        figure.savefig(partial, format="png")


def _picture(columns: Mapping[str, NDArray[Any]], choice: ThresholdChoice) -> Figure:
    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    lines = (
        ("dice_pooled", "Dice, all pixels", "#0b3c8c", "-", 3.0),
        ("dice_mean_slide", "Dice, mean of slides with cancer", "#3f9bd8", "--", 2.5),
        ("precision", "Precision", "#c8511b", "-", 1.8),
        ("recall", "Recall", "#2a7f3f", "-", 1.8),
    )
    if columns["tp"][0]:
        for key, label, colour, style, width in lines:
            axes.plot(columns["threshold"], columns[key], style, color=colour, linewidth=width, label=label)
    else:
        axes.text(0.5, 0.5, "No cancer pixel: nothing to score", fontsize=15, ha="center", backgroundcolor="white")
    axes.axvline(choice.value, color="black", linewidth=1.5, linestyle=":")
    if choice.criterion in ("default", "given"):
        title = f"Threshold {choice.value:.3f}, {choice.criterion}\n{choice.chosen_on}"
    else:
        what = {"dice_pooled": "pooled Dice", "dice_mean_slide": "mean slide Dice"}[choice.criterion]
        title = f"Threshold {choice.value:.3f}: {what} {choice.score:.3f}, chosen on {choice.chosen_on}"
        axes.plot([choice.value], [choice.score], "o", color="black", markersize=9, label="chosen threshold")
    axes.set_title(title, fontsize=15, loc="left", wrap=True)
    axes.set_xlabel("Threshold on the probability of cancer", fontsize=15)
    axes.set_ylabel("Score", fontsize=15)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelsize=13)
    axes.grid(alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=12, frameon=False)
    return figure
