"""Draw patches as rows of image, prediction, overlay, ground truth and heatmap; and the most attended tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from panda.files import whole_path
from panda.inference.grade import Grade
from panda.inference.legends import JET, colorize, round_length
from panda.inference.panel_patches import PanelRow

INK = "#1c2030"
MUTED = "#5d6474"
PAPER = "#f4f3f0"
MASK = "#3b2f7d"
# Distinct with any color vision, and unlike the colors of haematoxylin and eosin.
TRUE_POSITIVE = "#00a35a"
FALSE_POSITIVE = "#ffd000"
FALSE_NEGATIVE = "#0a4dff"

CELL = 3.3  # inches a picture is wide
GAP = 0.14
TITLE = 0.52  # inches above each row
DPI = 150
COLUMNS = ("Image", "Predicted mask", "Overlay", "Ground truth", "Heatmap")


def dice_text(predicted: NDArray[np.bool_], truth: NDArray[np.bool_] | None) -> str:
    """Write the Dice of one patch, or why it has none.

    Args:
        predicted: (h, w) bool, of tissue only.
        truth: (h, w) bool, of tissue only, or None without a label.

    Returns:
        Such as `Dice 0.83`; a patch that has no labelled cancer has no Dice, and the text says so.
    """
    if truth is None:
        return "Dice unknown: no ground truth"
    if not truth.any():
        return f"no cancer labelled, so no Dice; {predicted.mean():.1%} of the patch called tumour"
    return f"Dice {2 * int((predicted & truth).sum()) / (int(predicted.sum()) + int(truth.sum())):.2f}"


def _blend(image: NDArray[np.uint8], regions: Sequence[tuple[NDArray[np.bool_], str]]) -> NDArray[np.uint8]:
    """Tint each region of an RGB image and outline it in the full color.

    The outline is inside the region, because outside it would make a thin error look broad.
    """
    out = image.copy()
    line = max(1, round(max(image.shape[:2]) / 250))
    kernel = np.ones((2 * line + 1, 2 * line + 1), np.uint8)
    for mask, colour in regions:
        rgb = np.asarray(_rgb(colour), np.float32)
        weight = 0.45 if colour == TRUE_POSITIVE else 0.6
        out[mask] = ((1 - weight) * image[mask].astype(np.float32) + weight * rgb).astype(np.uint8)
        inner = cv2.erode(mask.astype(np.uint8), kernel, borderValue=1).astype(bool)
        out[mask & ~inner] = rgb.astype(np.uint8)
    return out


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _regions(predicted: NDArray[np.bool_], truth: NDArray[np.bool_] | None) -> list[tuple[NDArray[np.bool_], str]]:
    if truth is None:
        return [(predicted, TRUE_POSITIVE)]
    return [
        (predicted & truth, TRUE_POSITIVE),
        (predicted & ~truth, FALSE_POSITIVE),
        (~predicted & truth, FALSE_NEGATIVE),
    ]


def _hide_ticks(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#b9bcc4")
        spine.set_linewidth(0.8)


def _mask_picture(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.array([_rgb(PAPER), _rgb(MASK)], np.uint8)[mask.astype(np.intp)]


def _scale_bar(axes: Axes, width: int, height: int, um_per_px: float | None) -> None:
    if um_per_px is None:
        text, bar = "µm/px unknown", 0.0
    else:
        length = round_length(0.3 * width * um_per_px)
        text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
        bar = length / um_per_px
    box_width = max(bar, (0.27 if bar else 0.45) * width) + 0.06 * width
    left, base = 0.03 * width - 0.5, 0.97 * height - 0.5
    tall = 0.115 * width if bar else 0.085 * width
    axes.add_patch(Rectangle((left, base - tall), box_width, tall, facecolor="white", alpha=0.88, linewidth=0))
    middle = left + box_width / 2
    if bar:
        axes.add_patch(
            Rectangle((middle - bar / 2, base - 0.035 * width), bar, 0.018 * width, facecolor=INK, linewidth=0)
        )
    axes.text(middle, base - tall + 0.012 * width, text, ha="center", va="top", fontsize=11.5, color=INK, weight="bold")


def _check(rows: Sequence[PanelRow]) -> None:
    if not rows:
        raise ValueError("draw_panels needs at least one row")
    for row in rows:
        shapes = [a.shape for a in (row.probability, row.tissue, row.truth) if a is not None]
        if row.image.ndim != 3 or any(shape != row.image.shape[:2] for shape in shapes):
            raise ValueError(
                f"panel row {row.title!r}: image {row.image.shape}, probability, tissue and truth {shapes} do not "
                "match; give (h, w, 3) and (h, w)"
            )


def _heatmap(figure: Figure, axes: Axes, box: tuple[float, float, float, float], threshold: float) -> None:
    """Draw the colour bar of one row, in `box` (figure fractions), with the threshold on it."""
    bar_axes = figure.add_axes(box)
    mappable = ScalarMappable(Normalize(0.0, 1.0), ListedColormap(JET / 255.0))
    bar = figure.colorbar(mappable, cax=bar_axes)
    bar.set_ticks([0.0, 0.25, 0.5, 0.75, 1.0], labels=["0", "0.25", "0.5", "0.75", "1"])
    bar_axes.tick_params(labelsize=11, length=3, colors=INK)
    bar_axes.axhline(threshold, color="white", linewidth=4)
    bar_axes.axhline(threshold, color="black", linewidth=2)
    bar_axes.set_ylabel("probability of tumour", fontsize=11.5, color=INK)


def draw_panels(
    rows: Sequence[PanelRow], threshold: float, path: Path, *, heading: str = "", counted: str = "tissue"
) -> Path:
    """Draw patches as rows of five: image, predicted mask, overlay, ground truth, heatmap.

    The overlay shows true positives, false positives and false negatives in tissue if there is a label, otherwise the
    prediction. The black line on the colour bar is the threshold.

    Args:
        rows: The patches, from top to bottom.
        threshold: A pixel is predicted tumour if its probability is at least this.
        path: The PNG to write, whole or not at all.
        heading: A line above all.
        counted: Which pixels the rows count, for the legend.

    Returns:
        `path`.

    Raises:
        ValueError: If there is no row, or the arrays of a row differ in size.
    """
    _check(rows)
    heights = [CELL * max(row.image.shape[0] / row.image.shape[1], 0.35) for row in rows]
    left, right, top, bottom = 0.2, 1.15, 1.1 if heading else 0.55, 0.7
    width = left + 5 * CELL + 4 * GAP + right
    height = top + sum(heights) + len(rows) * (TITLE + GAP) + bottom
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    if heading:
        figure.text(left / width, 1 - 0.36 / height, heading, va="center", fontsize=20, color=INK, parse_math=False)
    for index, name in enumerate(COLUMNS):
        x = left + index * (CELL + GAP) + CELL / 2
        figure.text(
            x / width, 1 - (top - 0.22) / height, name, ha="center", va="center", fontsize=17, weight="bold", color=INK
        )
    y = height - top
    for row, cell_height in zip(rows, heights, strict=True):
        h, w = row.image.shape[:2]
        predicted = row.predict(threshold)
        truth = None if row.truth is None else row.truth & row.tissue
        figure.text(
            left / width,
            (y - TITLE + 0.13) / height,
            f"{row.title}   ·   {dice_text(predicted, truth)}",
            fontsize=14,
            color=INK,
            va="bottom",
            parse_math=False,
        )
        y -= TITLE + cell_height
        for index, name in enumerate(COLUMNS):
            x = left + index * (CELL + GAP)
            axes = figure.add_axes((x / width, y / height, CELL / width, cell_height / height))
            _hide_ticks(axes)
            if name == "Image":
                axes.imshow(row.image)
                _scale_bar(axes, w, h, row.um_per_px)
            elif name == "Predicted mask":
                axes.imshow(_mask_picture(predicted), interpolation="nearest")
            elif name == "Overlay":
                axes.imshow(_blend(row.image, _regions(predicted, truth)))
            elif name == "Ground truth" and row.truth is not None:
                axes.imshow(_mask_picture(row.truth), interpolation="nearest")
            elif name == "Ground truth":
                axes.set_facecolor("#f1f1f1")
                axes.text(
                    0.5, 0.5, "no label", ha="center", va="center", fontsize=15, color=MUTED, transform=axes.transAxes
                )
            else:
                axes.imshow(colorize(row.probability, JET))
                box = ((x + CELL + 0.12) / width, y / height, 0.17 / width, cell_height / height)
                _heatmap(figure, axes, box, threshold)
        y -= GAP
    _legend(figure, rows, threshold, width, counted)
    with whole_path(path) as partial:
        figure.savefig(partial, format="png")
    return path


def _legend(figure: Figure, rows: Sequence[PanelRow], threshold: float, width: float, counted: str) -> None:
    known = any(row.truth is not None for row in rows)
    handles = [Patch(facecolor=MASK, label=f"tumour (predicted: {counted} with p ≥ {threshold:.3g})")]
    unlabelled = any(row.truth is None for row in rows)
    if known:
        handles += [
            Patch(facecolor=TRUE_POSITIVE, label="found (TP)" + ", or predicted without label" * unlabelled),
            Patch(facecolor=FALSE_POSITIVE, label="false alarm (FP)"),
            Patch(facecolor=FALSE_NEGATIVE, label="missed (FN)"),
        ]
    else:
        handles.append(Patch(facecolor=TRUE_POSITIVE, label="predicted; no label to compare with"))
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.1 / width, 0.0),
        ncols=len(handles),
        frameon=False,
        fontsize=13.5,
        handlelength=1.2,
        columnspacing=2.0,
        labelcolor=INK,
    )


def attention_tiles(grade: Grade | None, path: Path) -> None:
    """Draw the tiles of a slide that the grading network attended to most, the most attended first.

    Args:
        grade: Grade of the slide; None removes an earlier picture.
        path: The PNG to write, whole or not at all.
    """
    if grade is None:
        path.unlink(missing_ok=True)
        return
    count, coords = len(grade.coords), grade.coords
    total = float(grade.attention.sum())
    shares = grade.attention / total if total > 0 else np.full(count, 1.0 / count)
    order = np.argsort(-grade.attention, kind="stable")[: len(grade.shown)]
    columns = min(6, len(order))
    lines = math.ceil(len(order) / columns)
    cell, label, head, side = 2.6, 1.15, 0.75, 0.2
    width = max(2 * side + columns * cell + (columns - 1) * GAP, 11.0)
    height = head + lines * (cell + label) + 0.1
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        side / width,
        1 - 0.4 / height,
        f"The {len(order)} most attended of {count} tiles hold {shares[order].sum():.0%} of the attention "
        f"(an even share would be {1 / count:.1%} each)",
        fontsize=15,
        color=INK,
        va="center",
    )
    for rank, index in enumerate(order):
        x = side + (rank % columns) * (cell + GAP)
        y = height - head - (rank // columns) * (cell + label) - cell
        axes = figure.add_axes((x / width, y / height, cell / width, cell / height))
        _hide_ticks(axes)
        axes.imshow(grade.shown[rank])
        bar = figure.add_axes((x / width, (y - 0.15) / height, cell / width, 0.09 / height))
        bar.set_xlim(0, 1)
        bar.set_ylim(0, 1)
        bar.axis("off")
        bar.add_patch(Rectangle((0, 0), 1, 1, facecolor="#e6e7eb"))
        bar.add_patch(Rectangle((0, 0), float(shares[index] / shares[order[0]]), 1, facecolor=MASK))
        figure.text(
            x / width,
            (y - 0.24) / height,
            f"{rank + 1}   {shares[index]:.1%}",
            fontsize=15,
            weight="bold",
            va="top",
            color=INK,
        )
        figure.text(
            x / width,
            (y - 0.52) / height,
            f"x {int(coords[index, 0])}, y {int(coords[index, 1])}\ncontribution {grade.contributions[index]:+.2f}",
            fontsize=11.5,
            color=MUTED,
            va="top",
        )
    with whole_path(path) as partial:
        figure.savefig(partial, format="png")
