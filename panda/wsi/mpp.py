"""µm per level-0 px of a slide: what the file states, whether it is plausible, and what is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import tifffile

MPP_MIN, MPP_MAX = 0.05, 20.0
"""Smallest and largest µm per level-0 px of a slide scanner; a value outside is a mistake in the file."""

MppSource = Literal["openslide", "tiff tags", "override"]
Mpp = tuple[float, float]
"""µm per px along x and y."""

_UNIT_UM = {2: 25_400.0, 3: 10_000.0}  # ResolutionUnit inch, centimetre (TIFF 6.0, section 8)


def find_mpp(
    path: Path, stated: Mpp | None, note: str, override: float | None
) -> tuple[Mpp | None, MppSource | None, str, Mpp | None]:
    """Decide µm per level-0 px from OpenSlide, else the TIFF resolution tags, else the override.

    A value outside 0.05..20 is refused. The tags are not read instead of it: a file that states an impossible
    value in one place is not trusted in another.

    Args:
        path: The slide. Its tags are read if OpenSlide states nothing.
        stated: µm/px that OpenSlide states, or None.
        note: Why OpenSlide states nothing.
        override: µm/px that the user gives, already checked, or None.

    Returns:
        µm/px or None, its source or None, the sentence that explains both, and the value in the file, even if
        it is impossible.
    """
    source: MppSource = "openslide"
    said = "OpenSlide says"
    if stated is None:
        source, said = "tiff tags", "its TIFF resolution tags say"
        stated, tags_note = tag_mpp(path)
        note = f"{note} and {tags_note}"
    if stated is not None:
        note = f"{said} {stated[0]:.4g} x {stated[1]:.4g} µm/px"
        if is_plausible(*stated):
            return stated, source, note, stated
        note += f", outside {MPP_MIN}..{MPP_MAX:g}"
    if override is not None:
        used = float(override), float(override)
        return used, "override", f"mpp_override, {override:g} x {override:g} µm/px ({note})", stated
    return None, None, f"{note}: give data.mpp_override (infer.py: mpp_override)", stated


def tag_mpp(path: Path) -> tuple[Mpp | None, str]:
    """Read µm per px of a TIFF's first page from XResolution, YResolution and ResolutionUnit.

    Returns:
        The value and "", or None and the reason. A file that is not a TIFF has no value.
    """
    try:
        with tifffile.TiffFile(path) as tif:
            tags: Any = tif.pages.first.tags
            x, y = tags.valueof("XResolution"), tags.valueof("YResolution")
            unit = int(tags.valueof("ResolutionUnit", default=2))
            (x_num, x_den), (y_num, y_den) = x, y
    except Exception:  # whichever error the parser raises, there are no usable tags
        return None, "it has no TIFF resolution tags"
    if unit not in _UNIT_UM:
        return None, "its TIFF resolution tags have no unit"
    if 0 in {x_num, x_den, y_num, y_den}:
        return None, "its TIFF resolution tags are zero"
    return (_UNIT_UM[unit] * x_den / x_num, _UNIT_UM[unit] * y_den / y_num), ""


def is_plausible(*mpp: float) -> bool:
    """Return whether all values can be the µm/px of a slide scanner."""
    return all(MPP_MIN <= value <= MPP_MAX for value in mpp)
