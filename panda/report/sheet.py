"""A picture that is laid out in inches from its top-left corner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from panda.files import write_beside

INK = "#1c2030"
MASK = "#3b2f7d"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b4b9a", "#444444")
"""Colours of Okabe and Ito (2008), distinct with any colour vision, without the yellow, which is too pale on white."""

_DPI = 150


class Sheet:
    """A white picture of a width and height in inches, with text and axes at given places."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def write(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write a text, `y` inches below the top. `$` is no formula in it."""
        self.figure.text(x / self.width, 1 - y / self.height, text, **{"color": INK, "parse_math": False, **style})

    def add_axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes, with their top-left corner `y` inches below the top."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def add_picture(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes without ticks, with a thin grey frame."""
        axes = self.add_axes(x, y, width, height)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color="#b9bcc4", linewidth=0.8)
        return axes

    def save(self, path: Path) -> Path:
        """Write the picture as PNG, whole or not at all."""
        save_figure(self.figure, path)
        return path


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with write_beside(path) as partial:
        figure.savefig(partial, format="png")
