"""Frame the pictures of a slide: title, colour bar, scale bar and legend.

Everything is beside the image, so that no tissue is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from panda.inference.picture_file import Box
from panda.wsi.geometry import round_px

INK, FAINT, PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)

ColourMap = Literal["jet", "viridis"]
"""Most heatmaps of slides use `jet`; `viridis` is perceptually uniform, also for colour-blind readers."""


def _read_colours(number: int) -> NDArray[np.uint8]:
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], number)
    return np.asarray(bgr[:, 0, ::-1], np.uint8)


COLOUR_MAPS: Mapping[ColourMap, NDArray[np.uint8]] = MappingProxyType(
    {"jet": _read_colours(cv2.COLORMAP_JET), "viridis": _read_colours(cv2.COLORMAP_VIRIDIS)}
)
"""Each (256, 3) uint8 RGB: the colours of probability 0..1 in steps of 1/255."""
JET = COLOUR_MAPS["jet"]


def colorize(prob: NDArray[np.floating], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert probabilities (h, w) in [0, 1] to (h, w, 3) uint8 RGB with one of `COLOUR_MAPS`."""
    grey = cv2.convertScaleAbs(prob, alpha=255)
    return np.asarray(cv2.LUT(cv2.merge([grey] * 3), colours[None]), np.uint8)


@dataclass(frozen=True)
class Scale:
    """Level-0 px and µm per px of a picture; None for µm that are unknown."""

    level0_px: float
    um: float | None

    def fit_bar(self, width: int) -> tuple[int, str]:
        """Return length in px and label of a scale bar: round, and at most a quarter of an image's width in px."""
        per_px = self.level0_px if self.um is None else self.um
        length = round_length(per_px * width / 4)
        label = f"{length:g} px at level 0 (µm/px unknown)" if self.um is None else format_length(length)
        return max(1, round_px(length / per_px)), label


def format_length(um: float) -> str:
    """Write a length in µm, from 1 mm on in mm."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def round_length(longest: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is at most `longest` (> 0)."""
    power = 10.0 ** math.floor(math.log10(longest))
    return next(step for step in (5 * power, 2 * power, power) if step <= longest or step == power)


@dataclass(frozen=True)
class LegendEntry:
    """One entry of a legend; its swatch is a box of an RGB colour or, for an outline, a line."""

    text: str
    colour: tuple[int, int, int]
    line: bool = False


def frame_image(
    image: NDArray[np.uint8],
    *,
    title: str,
    subtitle: str,
    bar: NDArray[np.uint8],
    mark: float | None,
    scale: Scale,
    keys: Sequence[LegendEntry],
    measures: tuple[str, str] = ("tumour", "probability"),
) -> tuple[Image.Image, Box]:
    """Return an image on a white sheet with title, colour bar, scale bar and legend, and its place there.

    Args:
        image: (h, w, 3) uint8 RGB; it is not resized.
        title: Bold text above the image.
        subtitle: Grey text below the title.
        bar: (256, k, 3) uint8 colours of 0..1, drawn on the right; k columns side by side.
        mark: A value to mark on the colour bar, or None.
        scale: Scale of the image.
        keys: The legend, below the image beside the scale bar.
        measures: Title of the colour bar, in two lines.
    """
    height, width = image.shape[:2]
    em = int(np.clip(max(height, width) / 75, 13, 26))
    bold, plain, small = _load_font(round(em * 1.2), bold=True), _load_font(em), _load_font(round(em * 0.85))
    length, scale_label = scale.fit_bar(width)
    column = max(em * 12, length + em, round(plain.getlength(scale_label)) + em)
    foot_width = column + max((round(small.getlength(key.text)) + em * 4 for key in keys), default=0)
    text_width = max(round(bold.getlength(title)), round(plain.getlength(subtitle)), foot_width)
    body = max(height, em * 13)
    left, top = em, round(em * 4.4)
    sheet_width = max(left + width + em * 7, text_width + 2 * em)
    foot = top + body + em
    sheet_height = foot + max(em * 3, round(em * 1.5 * len(keys))) + em
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((left, round(em * 0.8)), title, INK, font=bold)
    draw.text((left, round(em * 2.5)), subtitle, FAINT, font=plain)
    sheet.paste(Image.fromarray(image), (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=(200, 200, 200))
    _draw_colour_bar(sheet, (left + width + em, top, min(body, em * 26)), em, bar, mark=mark, measures=measures)
    base = foot + em // 3
    draw.rectangle((left, base, left + length - 1, base + max(3, em // 4)), fill=INK)
    draw.text((left, base + round(em * 0.6)), scale_label, INK, font=plain)
    for line, key in enumerate(keys):
        y = foot + round(em * 1.5 * line)
        box = (left + column, y, left + column + em * 2, y + em)
        if key.line:
            middle = y + em // 2
            draw.line((box[0], middle, box[2], middle), fill=key.colour, width=max(3, em // 5))
        else:
            draw.rectangle(box, fill=key.colour, outline=(160, 160, 160))
        draw.text((box[2] + em // 2, y + em // 2), key.text, INK, font=small, anchor="lm")
    return sheet, (left, top, left + width, top + height)


def _draw_colour_bar(
    sheet: Image.Image,
    place: tuple[int, int, int],
    em: int,
    bar: NDArray[np.uint8],
    *,
    mark: float | None,
    measures: tuple[str, str],
) -> None:
    """Draw the colour bar with its ticks; `place` is left, top and height with the title."""
    left, top, height = place
    draw = ImageDraw.Draw(sheet)
    small = _load_font(round(em * 0.85))
    for line, text in enumerate(measures):
        draw.text((left, top + line * em), text, INK, font=small)
    top, bottom = top + round(em * 2.8), top + height - em
    columns = bar.shape[1]
    thick = max(round(em * 1.4), columns * round(em * 0.8))
    rows = np.linspace(255, 0, bottom - top).round().astype(np.uint8)
    across = np.arange(thick) * columns // thick
    sheet.paste(Image.fromarray(bar[rows][:, across]), (left, top))
    draw.rectangle((left - 1, top - 1, left + thick, bottom), outline=(160, 160, 160))

    def row(value: float) -> int:
        return bottom - 1 - round_px(value * (bottom - 1 - top))

    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = left + thick
        draw.line((at, row(value), at + em // 3, row(value)), fill=INK, width=1)
        if mark is None or abs(value - mark) > 0.12:
            draw.text((at + em // 2, row(value)), f"{value:g}", INK, font=small, anchor="lm")
    if mark is not None:
        draw.line((left - em // 3, row(mark), left + thick + em // 3, row(mark)), fill=INK, width=max(2, em // 8))
        bold = _load_font(round(em * 0.85), bold=True)
        draw.text((left + thick + em // 2, row(mark)), f"{mark:.3g}", INK, font=bold, anchor="lm")


def _load_font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu, which comes with matplotlib and has µ, ² and ≥ on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / name, size)
