"""Write threshold curve and reliability diagram, each as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from panda.report.sheet import SERIES, save_figure
from panda.tables import write_table
from panda.tasks.calibration import RELIABILITY_BINS, Reliability, measure_reliability
from panda.tasks.metrics import compute_curve, pool_histograms
from panda.tasks.threshold import CRITERIA, Histograms, ThresholdChoice, score_by_criterion

_LINES = {
    "dice_pooled": ("Dice, all pixels", "#0b3c8c", "-", 3.0),
    "dice_mean_slide": ("Dice, mean of slides with cancer", "#3f9bd8", "--", 2.5),
    "precision": ("Precision", "#c8511b", "-", 1.8),
    "recall": ("Recall", "#2a7f3f", "-", 1.8),
}
"""Lines that are always drawn; another criterion of the choice is drawn beside them."""
_BAND = "#e9d9a6"


def write_threshold_curve(
    hists: Histograms, choice: ThresholdChoice, folder: Path, providers: Mapping[str, str] | None = None
) -> None:
    """Write the scores at every threshold as a table and as a picture: `threshold_curve.csv` and `.png`.

    The table has a row for each threshold: threshold; every criterion (one that takes a cost ratio only if the choice
    has one); iou, precision and recall; tp, fp and fn (pixels over all slides); and the choice's criterion for each
    provider with its own threshold. A score that is 0 / 0 is empty. Either file is whole or absent.

    Args:
        hists: Slide to (2, BINS).
        choice: Is marked in the picture, with its interval as a band and the providers' own thresholds.
        folder: Folder of both files; it is made.
        providers: Slide to provider; needed if the choice has thresholds by provider.
    """
    total = compute_curve(pool_histograms(hists))
    columns: dict[str, NDArray[Any]] = {
        "threshold": total.thresholds,
        **{
            name: score_by_criterion(hists, name, choice.cost_ratio)
            for name, rule in CRITERIA.items()
            if rule.equal_to is None and not (rule.takes_cost_ratio and choice.cost_ratio is None)
        },
        **{name: getattr(total, name) for name in ("iou", "precision", "recall", "tp", "fp", "fn")},
    }
    for provider in choice.by_provider:
        assert providers is not None  # they gave the thresholds
        own = {slide: hist for slide, hist in hists.items() if providers[slide] == provider}
        columns[f"{choice.criterion}_{provider}"] = score_by_criterion(own, choice.criterion, choice.cost_ratio)
    rows = zip(*(map(_drop_nan, column.tolist()) for column in columns.values()), strict=True)
    write_table(folder / "threshold_curve.csv", rows, list(columns))
    save_figure(_draw_threshold_picture(columns, choice), folder / "threshold_curve.png")


def _draw_threshold_picture(columns: Mapping[str, NDArray[Any]], choice: ThresholdChoice) -> Figure:
    figure = Figure(figsize=(9, 6.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    criterion = CRITERIA.get(choice.criterion)
    lines = dict(_LINES)
    if criterion and criterion.equal_to is None and choice.criterion not in lines:
        label = f"{criterion.label} (the lowest is best)" if criterion.lowest_is_best else criterion.label
        lines[choice.criterion] = (label, "#5b4b9a", "-.", 2.2)
    if columns["tp"][0]:
        for key, (label, colour, style, width) in lines.items():
            axes.plot(columns["threshold"], columns[key], style, color=colour, linewidth=width, label=label)
    else:
        axes.text(0.5, 0.5, "No cancer pixel: nothing to score", fontsize=15, ha="center", backgroundcolor="white")
    if choice.interval is not None:
        label = "its 95 % interval" + (" (all providers)" if choice.by_provider else "")
        axes.axvspan(*choice.interval, color=_BAND, alpha=0.6, linewidth=0, zorder=0, label=label)
    axes.axvline(choice.value, color="black", linewidth=1.5, linestyle=":")
    for (provider, own), colour in zip(choice.by_provider.items(), SERIES[1:], strict=False):
        axes.axvline(own.value, color=colour, linewidth=2, linestyle=(0, (1, 1)), label=f"{provider}: {own.value:.3f}")
    if criterion is None or choice.score is None:
        title = f"Threshold {choice.value:.3f}, {choice.criterion}\n{choice.chosen_on}"
    else:
        title = f"Threshold {choice.value:.3f}: {criterion.label} {choice.score:.3f}\n{choice.chosen_on}"
        axes.plot([choice.value], [choice.score], "o", color="black", markersize=9, label="chosen threshold")
    axes.set_title(title, fontsize=14, loc="left", wrap=True)
    _style_axes(axes, "Threshold on the probability of cancer", "Score", size=15)
    _add_legend(figure, columns=3)
    return figure


def _style_axes(axes: Axes, x_label: str, y_label: str, *, size: int) -> None:
    """Label both axes from 0 to 1, in a font of a size in points."""
    axes.set_xlabel(x_label, fontsize=size)
    axes.set_ylabel(y_label, fontsize=size)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelsize=size - 2)
    axes.grid(alpha=0.25)


def _add_legend(figure: Figure, *, columns: int) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=12, frameon=False)


def write_calibration(hists: Mapping[str, NDArray[np.int64]], temperature: float | None, folder: Path) -> None:
    """Write the reliability of the probabilities, as they are and at a temperature: `calibration.csv` and `.png`.

    The table has a row for each split and bin: split, scaled (1: at the temperature), low, high (ends of the bin),
    pixels, probability (their mean), cancer (their share of cancer). The last two are empty without pixels.

    Args:
        hists: Split (validation, test) to its pooled (2, BINS).
        temperature: T, or None for no scaled rows.
        folder: Folder of the table and the picture, which has a panel a split; it is made.
    """
    drawn = {
        (split, scaled): measure_reliability(hist, temperature if scaled and temperature else 1.0)
        for split, hist in hists.items()
        for scaled in ((False, True) if temperature else (False,))
    }
    rows = [
        {
            "split": split,
            "scaled": int(scaled),
            "low": k / RELIABILITY_BINS,
            "high": (k + 1) / RELIABILITY_BINS,
            "pixels": int(found.pixels[k]),
            "probability": _drop_nan(float(found.probability[k])),
            "cancer": _drop_nan(float(found.cancer[k])),
        }
        for (split, scaled), found in drawn.items()
        for k in range(RELIABILITY_BINS)
    ]
    write_table(folder / "calibration.csv", rows)
    save_figure(_draw_calibration_picture(drawn, list(hists), temperature), folder / "calibration.png")


def _drop_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _draw_calibration_picture(
    drawn: Mapping[tuple[str, bool], Reliability], splits: list[str], temperature: float | None
) -> Figure:
    figure = Figure(figsize=(6.2 * len(splits), 6.6), dpi=120, layout="constrained")
    for place, split in enumerate(splits, start=1):
        axes = figure.add_subplot(1, len(splits), place)
        axes.plot([0, 1], [0, 1], color="#9298a6", linewidth=1.2, label="perfect calibration")
        plain = drawn[split, False]
        share = plain.pixels / max(1, plain.pixels.sum())
        middles = (np.arange(RELIABILITY_BINS) + 0.5) / RELIABILITY_BINS
        axes.bar(middles, share, 0.9 / RELIABILITY_BINS, color="#d5d8df", zorder=0, label="share of the pixels")
        for scaled, label, colour, style in (
            (False, "uncalibrated", "#0b3c8c", "o-"),
            (True, f"at temperature {temperature:.2f}" if temperature else "", "#c8511b", "s--"),
        ):
            found = drawn.get((split, scaled))
            if found is not None:
                axes.plot(
                    found.probability, found.cancer, style, color=colour, linewidth=2, markersize=5,
                    label=label, clip_on=False,
                )  # fmt: skip
        ends = f"ECE {plain.ece:.3f}" if plain.pixels.any() else "no pixels"
        if (after := drawn.get((split, True))) is not None and after.pixels.any():
            ends += f", {after.ece:.3f} at the temperature"
        axes.set_title(f"{split.capitalize()}: {ends}", fontsize=14, loc="left")
        axes.set_aspect("equal")
        _style_axes(axes, "Probability of cancer", "Share of pixels that are cancer", size=14)
    _add_legend(figure, columns=2 * len(splits))
    return figure
