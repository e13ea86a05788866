"""Draw patches as rows of image, prediction, overlay, ground truth and heatmap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from panda.inference.class_colours import find_class_colour
from panda.inference.legends import JET, colorize, format_length, round_length
from panda.inference.panel_patches import PanelRow
from panda.report.sheet import INK, MASK, Sheet
from panda.wsi.classes import ANY_CANCER, ClassSet

_PAPER = "#f4f3f0"
# Distinct with any colour vision, and unlike the colours of haematoxylin and eosin.
_TRUE_POSITIVE = "#00a35a"
_FALSE_POSITIVE = "#ffd000"
_FALSE_NEGATIVE = "#0a4dff"

_CELL, _GAP, _TITLE, _LEFT = 3.3, 0.14, 0.52, 0.2  # inches; the title is above each row
_COLUMNS = ("Image", "Predicted mask", "Overlay", "Ground truth", "Heatmap")

Mask = NDArray[np.bool_]


def describe_dice(predicted: Mask, truth: Mask | None) -> str:
    """Write the Dice of (h, w) masks of one patch, of tissue only, or why it has none; None is no label."""
    if truth is None:
        return "Dice unknown: no ground truth"
    if not truth.any():
        return f"no cancer labelled, so no Dice; {predicted.mean():.1%} of the patch called tumour"
    return f"Dice {2 * int((predicted & truth).sum()) / (int(predicted.sum()) + int(truth.sum())):.2f}"


def _blend(image: NDArray[np.uint8], predicted: Mask, truth: Mask | None) -> NDArray[np.uint8]:
    """Tint the right and wrong regions of an RGB image, or the prediction without a label, and outline each.

    The outline is inside the region, because outside it would make a thin error look broad.
    """
    right = predicted if truth is None else predicted & truth
    wrong = [] if truth is None else [(predicted & ~truth, _FALSE_POSITIVE), (~predicted & truth, _FALSE_NEGATIVE)]
    out = image.copy()
    line = max(1, round(max(image.shape[:2]) / 250))
    kernel = np.ones((2 * line + 1, 2 * line + 1), np.uint8)
    for mask, colour in [(right, _TRUE_POSITIVE), *wrong]:
        rgb = _make_rgb(colour).astype(np.float32)
        weight = 0.45 if colour == _TRUE_POSITIVE else 0.6
        out[mask] = ((1 - weight) * image[mask].astype(np.float32) + weight * rgb).astype(np.uint8)
        inner = cv2.erode(mask.astype(np.uint8), kernel, borderValue=1).astype(bool)
        out[mask & ~inner] = rgb.astype(np.uint8)
    return out


def _make_rgb(colour: str) -> NDArray[np.uint8]:
    return np.round(np.multiply(to_rgb(colour), 255)).astype(np.uint8)


def _draw_mask(axes: Axes, mask: Mask | NDArray[np.uint8], classes: ClassSet) -> None:
    """Draw a mask of cancer, or the target of several classes."""
    colours = np.full((256, 3), _make_rgb(_PAPER))
    for target, colour in _list_colours(classes).items():
        colours[target] = colour
    axes.imshow(colours[mask.astype(np.intp)], interpolation="nearest")


def _list_colours(classes: ClassSet) -> dict[int, NDArray[np.uint8]]:
    """Return the RGB of each target that is cancer."""
    if classes.is_binary:
        return {1: _make_rgb(MASK)}
    found = [np.array(find_class_colour(classes.patterns[name]), np.uint8) for name in classes.cancer_names]
    return dict(enumerate(found, 1)) | {ANY_CANCER: _make_rgb(MASK)}


def _draw_scale_bar(axes: Axes, width: int, height: int, um_per_px: float | None) -> None:
    if um_per_px is None:
        text, bar = "µm/px unknown", 0.0
    else:
        length = round_length(0.3 * width * um_per_px)
        text, bar = format_length(length), length / um_per_px
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
        shapes = [
            a.shape[-2:] for a in (row.probability, row.tissue, row.truth, row.by_class, row.labels) if a is not None
        ]
        if row.image.ndim != 3 or any(shape != row.image.shape[:2] for shape in shapes):
            raise ValueError(
                f"panel row {row.title!r}: image {row.image.shape}, probability, tissue and truth {shapes} do not "
                "match; give (h, w, 3) and (h, w)"
            )


def draw_panels(
    rows: Sequence[PanelRow], threshold: float, path: Path, *, heading: str = "", counted: str = "tissue"
) -> Path:
    """Draw patches as rows of five: image, predicted mask, overlay, ground truth, heatmap.

    The overlay shows true positives, false positives and false negatives in tissue if there is a label, otherwise the
    prediction. The black line on the colour bar is the threshold. With several classes of cancer the masks have a
    colour for each, and the overlay and the heatmap are of all of them together.

    Args:
        rows: The patches, from top to bottom.
        threshold: A pixel is predicted tumour if its probability is at least this.
        path: The PNG to write, whole or not at all.
        heading: A line above all.
        counted: Name of the pixels that the rows count, for the legend.

    Returns:
        `path`.

    Raises:
        ValueError: If there is no row, or the arrays of a row differ in size.
    """
    _check(rows)
    heights = [_CELL * max(row.image.shape[0] / row.image.shape[1], 0.35) for row in rows]
    y = 1.1 if heading else 0.55
    width = _LEFT + 5 * _CELL + 4 * _GAP + 1.15
    sheet = Sheet(width, y + sum(heights) + len(rows) * (_TITLE + _GAP) + 0.7)
    if heading:
        sheet.write(_LEFT, 0.36, heading, va="center", fontsize=20)
    for index, name in enumerate(_COLUMNS):
        middle = _LEFT + index * (_CELL + _GAP) + _CELL / 2
        sheet.write(middle, y - 0.22, name, ha="center", va="center", fontsize=17, weight="bold")
    for row, height in zip(rows, heights, strict=True):
        _draw_row(sheet, row, y, height, threshold)
        y += _TITLE + height + _GAP
    _draw_legend(sheet, rows, f"tumour (predicted: {counted} with p ≥ {threshold:.3g})")
    return sheet.save(path)


def _draw_row(sheet: Sheet, row: PanelRow, y: float, height: float, threshold: float) -> None:
    """Draw a row and its title `y` inches below the top of the sheet, with pictures `height` inches high."""
    predicted = row.predict(threshold)
    truth = None if row.truth is None else row.truth & row.tissue
    title = f"{row.title}   ·   {describe_dice(predicted, truth)}"
    sheet.write(_LEFT, y + _TITLE - 0.13, title, fontsize=14, va="bottom")
    y += _TITLE
    image, mask, overlay, label, heatmap = (
        sheet.add_picture(_LEFT + index * (_CELL + _GAP), y, _CELL, height) for index in range(len(_COLUMNS))
    )
    image.imshow(row.image)
    _draw_scale_bar(image, row.image.shape[1], row.image.shape[0], row.um_per_px)
    _draw_mask(mask, row.predict_classes(threshold), row.classes)
    overlay.imshow(_blend(row.image, predicted, truth))
    if row.truth is None:
        label.set_facecolor("#f1f1f1")
        place = label.transAxes
        label.text(0.5, 0.5, "no label", ha="center", va="center", fontsize=15, color="#5d6474", transform=place)
    else:
        _draw_mask(label, row.truth if row.labels is None else row.labels, row.classes)
    heatmap.imshow(colorize(row.probability, JET))
    bar = sheet.add_axes(sheet.width - 1.15 + 0.12, y, 0.17, height)
    levels = sheet.figure.colorbar(ScalarMappable(Normalize(0.0, 1.0), ListedColormap(JET / 255.0)), cax=bar)
    levels.set_ticks([0.0, 0.25, 0.5, 0.75, 1.0], labels=["0", "0.25", "0.5", "0.75", "1"])
    bar.tick_params(labelsize=11, length=3, colors=INK)
    bar.axhline(threshold, color="white", linewidth=4)
    bar.axhline(threshold, color="black", linewidth=2)
    bar.set_ylabel("probability of tumour", fontsize=11.5, color=INK)


def _draw_legend(sheet: Sheet, rows: Sequence[PanelRow], predicted: str) -> None:
    classes = rows[0].classes
    handles = [Patch(facecolor=MASK, label=predicted)]
    if not classes.is_binary:
        names = {**dict(enumerate(classes.names)), ANY_CANCER: "cancer of unknown class (label)"}
        handles = [
            Patch(facecolor=tuple(colour / 255), label=names[target])
            for target, colour in _list_colours(classes).items()
        ]
        handles[0].set_label(f"{predicted}: {handles[0].get_label()}")
    unlabelled = any(row.truth is None for row in rows)
    if any(row.truth is not None for row in rows):
        handles += [
            Patch(facecolor=_TRUE_POSITIVE, label="found (TP)" + ", or predicted without label" * unlabelled),
            Patch(facecolor=_FALSE_POSITIVE, label="false alarm (FP)"),
            Patch(facecolor=_FALSE_NEGATIVE, label="missed (FN)"),
        ]
    else:
        handles.append(Patch(facecolor=_TRUE_POSITIVE, label="predicted; no label to compare with"))
    sheet.figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.1 / sheet.width, 0.0),
        ncols=len(handles),
        frameon=False,
        fontsize=13.5,
        handlelength=1.2,
        columnspacing=2.0,
        labelcolor=INK,
    )
