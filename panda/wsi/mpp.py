"""How many µm a level-0 pixel spans: what the file says, whether that can be, and what is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import tifffile

from panda.errors import SlideError

MPP_MIN, MPP_MAX = 0.05, 20.0
"""µm per level-0 px that a slide scanner can mean; values outside are a file's mistake."""

MppSource = Literal["openslide", "tiff tags", "override"]
Mpp = tuple[float, float]
"""µm per px along x and y."""

_UNIT_UM = {2: 25_400.0, 3: 10_000.0}  # ResolutionUnit inch, centimetre (TIFF 6.0, section 8)


def checked_override(override: float | Mpp | None) -> Mpp | None:
    """Return a configured µm/px as (x, y).

    Raises:
        SlideError: It is outside 0.05..20 µm/px.
    """
    if override is None:
        return None
    x, y = (override, override) if isinstance(override, int | float) else override
    if not _plausible((x, y)):
        raise SlideError(
            f"data.mpp_override (infer.py: mpp_override) is {x:g} x {y:g} µm/px, outside {MPP_MIN}..{MPP_MAX:g}; "
            "give the µm that a level-0 pixel spans"
        )
    return float(x), float(y)


def judged_mpp(
    path: Path, stated: Mpp | None, note: str, override: Mpp | None
) -> tuple[Mpp | None, MppSource | None, str, Mpp | None]:
    """Decide µm per level-0 px: OpenSlide's, else the TIFF resolution tags', else the override, else unknown.

    A value outside 0.05..20 is refused, and the tags are not asked in its place: a file that states nonsense
    in one place is not believed in another.

    Args:
        path: The slide, whose tags are read where OpenSlide states nothing.
        stated: What OpenSlide states.
        note: Why it states nothing.
        override: The configured value, already checked.

    Returns:
        µm/px or None, its source or None, the sentence that explains both, and what the file states, be it nonsense.
    """
    source: MppSource = "openslide"
    said = "OpenSlide says"
    if stated is None:
        source, said = "tiff tags", "its TIFF resolution tags say"
        stated, tags_note = tag_mpp(path)
        note = f"{note} and {tags_note}"
    if stated is not None:
        note = f"{said} {stated[0]:.4g} x {stated[1]:.4g} µm/px"
        if _plausible(stated):
            return stated, source, note, stated
        note += f", outside {MPP_MIN}..{MPP_MAX:g}"
    if override is not None:
        return override, "override", f"mpp_override, {override[0]:g} x {override[1]:g} µm/px ({note})", stated
    return None, None, f"{note}: give data.mpp_override (infer.py: mpp_override)", stated


def tag_mpp(path: Path) -> tuple[Mpp | None, str]:
    """Read µm per px of a TIFF's first page from XResolution, YResolution and ResolutionUnit.

    Returns:
        The value, or None and the reason; files that are no TIFF have none.
    """
    try:
        with tifffile.TiffFile(path) as tif:
            tags: Any = tif.pages.first.tags
            x, y = tags.valueof("XResolution"), tags.valueof("YResolution")
            unit = int(tags.valueof("ResolutionUnit", default=2))
            (x_num, x_den), (y_num, y_den) = x, y
    except Exception:  # anything the parser raises means that there are no tags to be had
        return None, "it has no TIFF resolution tags"
    if unit not in _UNIT_UM:
        return None, "its TIFF resolution tags have no unit"
    if 0 in {x_num, x_den, y_num, y_den}:
        return None, "its TIFF resolution tags are zero"
    return (_UNIT_UM[unit] * x_den / x_num, _UNIT_UM[unit] * y_den / y_num), ""


def _plausible(mpp: Mpp) -> bool:
    return all(MPP_MIN <= value <= MPP_MAX for value in mpp)
