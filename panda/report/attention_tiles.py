"""Draw the tiles that the grading network attended to most."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.patches import Rectangle

from panda.inference.grade import Grade, GradeRecord
from panda.report.sheet import MASK, Sheet

_COLUMNS = 6
_CELL, _GAP, _LABEL, _HEAD, _SIDE = 2.6, 0.14, 1.15, 0.75, 0.2  # inches


def draw_attention_tiles(grade: Grade | None, path: Path) -> None:
    """Draw the tiles of a slide with the most attention, in order; a slide without a grade loses an earlier picture."""
    if grade is None:
        path.unlink(missing_ok=True)
        return
    tiles, attention = grade.record.tiles, grade.record.attention
    count, total = len(tiles), float(attention.sum())
    shares = attention / total if total > 0 else np.full(count, 1.0 / count)
    order = np.argsort(-attention, kind="stable")[: len(grade.shown)]
    columns = min(_COLUMNS, len(order))
    width = max(2 * _SIDE + columns * _CELL + (columns - 1) * _GAP, 11.0)
    sheet = Sheet(width, _HEAD + math.ceil(len(order) / columns) * (_CELL + _LABEL) + 0.1)
    summary = f"The {len(order)} most attended of {count} tiles hold {shares[order].sum():.0%} of the attention"
    sheet.write(_SIDE, 0.4, f"{summary} (an even share would be {1 / count:.1%} each)", fontsize=15, va="center")
    for rank, index in enumerate(order):
        x = _SIDE + (rank % columns) * (_CELL + _GAP)
        y = _HEAD + (rank // columns) * (_CELL + _LABEL)
        sheet.add_picture(x, y, _CELL, _CELL).imshow(grade.shown[rank])
        bar = sheet.add_axes(x, y + _CELL + 0.06, _CELL, 0.09)
        bar.axis("off")
        bar.add_patch(Rectangle((0, 0), 1, 1, facecolor="#e6e7eb"))
        bar.add_patch(Rectangle((0, 0), float(shares[index] / shares[order[0]]), 1, facecolor=MASK))
        sheet.write(x, y + _CELL + 0.24, f"{rank + 1}   {shares[index]:.1%}", fontsize=15, weight="bold", va="top")
        sheet.write(x, y + _CELL + 0.52, _describe(grade.record, int(index)), fontsize=11.5, color="#5d6474", va="top")
    sheet.save(path)


def _describe(record: GradeRecord, index: int) -> str:
    tile, group = record.tiles[index], record.left_out
    exact = f"contribution {tile.contribution:+.2f}"
    approximate = f"contribution ≈ {tile.contribution:+.2f}, by occlusion\nof groups of {group} tiles"
    return f"x {tile.x}, y {tile.y}\n{exact if group == 1 else approximate}"
