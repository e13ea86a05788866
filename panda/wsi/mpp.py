"""µm per level-0 px of a slide: the value that the file states, and the value that is used."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import tifffile
from pydantic import Field

from panda.errors import raise_exhaustion

SQUARE = 0.02
"""Largest relative difference of µm/px along x and y of a scan with square px."""
MPP_MIN, MPP_MAX = 0.05, 20.0
"""Smallest and largest µm per level-0 px of a slide scanner; a value outside is a mistake in the file."""

MIXED = 0.1
"""Relative spread of µm/px at one pyramid level above which the scales of slides are mixed."""

MppSource = Literal["openslide", "tiff tags", "ome-xml", "override"]
SlideMpp = Annotated[float, Field(ge=MPP_MIN, le=MPP_MAX)]
Mpp = tuple[float, float]
"""µm per px along x and y."""

_UNIT_UM = {2: 25_400.0, 3: 10_000.0}  # ResolutionUnit inch, centimetre (TIFF 6.0, section 8)
_OME_UNIT_UM = {"µm": 1.0, "μm": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0, "Å": 1e-4}
"""µm per unit of length of the OME schema, which is µm if a file states none; written with either letter for micro."""
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b([^>]*)>")
_ATTRIBUTE = re.compile(r"""(\w+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


def find_mpp(
    path: Path, stated: Mpp | None, note: str, override: float | None
) -> tuple[Mpp | None, MppSource | None, str, Mpp | None]:
    """Decide µm per level-0 px from OpenSlide, else the TIFF resolution tags, else OME-XML, else the override.

    A value outside 0.05..20 is refused. OME-XML comes first if it has a possible value and the others have none. If it
    states another value than the one that is used, the sentence says so.

    Args:
        path: The slide. Its tags are read if OpenSlide states nothing.
        stated: µm/px that OpenSlide states, or None.
        note: Why OpenSlide states nothing.
        override: µm/px that the user gives, already checked, or None.

    Returns:
        µm/px or None, its source or None, the sentence that explains both, and the value in the file, even an
        impossible one.
    """
    source: MppSource = "openslide"
    said = "OpenSlide says"
    if stated is None:
        source, said = "tiff tags", "its TIFF resolution tags say"
        stated, tags_note = read_tag_mpp(path)
        note = f"{note} and {tags_note}"
    if stated is not None:
        note = f"{said} {_name(stated)}" + ("" if is_plausible(*stated) else f", outside {MPP_MIN}..{MPP_MAX:g}")
    described = read_ome_mpp(path)
    if described is not None and is_plausible(*described):
        if stated is None or not is_plausible(*stated):
            stated, source, note = described, "ome-xml", f"its OME-XML says {_name(described)} ({note})"
        elif any(abs(own / other - 1) > SQUARE for own, other in zip(described, stated, strict=True)):
            note += f", but its OME-XML says {_name(described)}: check which is right"
    if stated is not None and is_plausible(*stated):
        return stated, source, note, stated
    if override is not None:
        note = f"mpp_override, {override:g} x {override:g} µm/px ({note})"
        return (float(override), float(override)), "override", note, stated
    return None, None, f"{note}: give data.mpp_override (infer.py, features.py: mpp_override)", stated


def _name(mpp: Mpp) -> str:
    return f"{mpp[0]:.4g} x {mpp[1]:.4g} µm/px"


def read_ome_mpp(path: Path) -> Mpp | None:
    """Read µm per px of the first page from the OME-XML of a TIFF; None if it states none for a picture of its size."""
    try:
        with tifffile.TiffFile(path) as tif:
            page: Any = tif.pages.first
            found = _PIXELS.search(page.description) if page.is_ome else None
            pixels = {
                name: html.unescape(one or two) for name, one, two in _ATTRIBUTE.findall(found[1] if found else "")
            }
            if (int(pixels["SizeX"]), int(pixels["SizeY"])) != (page.imagewidth, page.imagelength):
                return None  # a label or a thumbnail comes first
            x, y = (
                float(pixels[f"PhysicalSize{axis}"]) * _OME_UNIT_UM[pixels.get(f"PhysicalSize{axis}Unit", "µm")]
                for axis in "XY"
            )
    except Exception as error:  # whichever error the parser raises, there is no usable metadata
        raise_exhaustion(error)
        return None
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None


def read_tag_mpp(path: Path) -> tuple[Mpp | None, str]:
    """Read µm per px of the first page from the TIFF resolution tags: the value and "", or None and the reason."""
    try:
        with tifffile.TiffFile(path) as tif:
            tags: Any = tif.pages.first.tags
            x, y = tags.valueof("XResolution"), tags.valueof("YResolution")
            unit = int(tags.valueof("ResolutionUnit", default=2))
            (x_num, x_den), (y_num, y_den) = x, y
    except Exception as error:  # whichever error the parser raises, there are no usable tags
        raise_exhaustion(error)
        return None, "it has no TIFF resolution tags"
    if unit not in _UNIT_UM:
        return None, "its TIFF resolution tags have no unit"
    if 0 in {x_num, x_den, y_num, y_den}:
        return None, "its TIFF resolution tags are zero"
    return (_UNIT_UM[unit] * x_den / x_num, _UNIT_UM[unit] * y_den / y_num), ""


def is_mixed(lowest: float, highest: float) -> bool:
    """Return whether a range of µm/px is so wide that a network sees the same cell at clearly different sizes."""
    return highest > lowest * (1 + MIXED)


def describe_level(level: int, lowest: float, highest: float, slides: str) -> str:
    """Return what a pyramid level means on some slides, in a sentence, with the remedy if the scales are mixed.

    Args:
        level: The level.
        lowest: Lowest µm per px of the level.
        highest: Highest µm per px of the level.
        slides: The slides in words, such as `"the training slides"`.
    """
    low, high = f"{lowest:.3g}", f"{highest:.3g}"
    text = f"Level {level} is {low if low == high else f'{low} to {high}'} µm/px on {slides}"
    if not is_mixed(lowest, highest):
        return f"{text}."
    return (
        f"{text}: a cell is up to {highest / lowest:.2f} times as large on one slide as on another. Give "
        f"data.level=null data.mpp={high}, and all slides have one scale."
    )


def is_anisotropic(mpp: Mpp) -> bool:
    """Return whether µm/px along x and y differ so much that the picture of the tissue is stretched."""
    return max(mpp) > min(mpp) * (1 + SQUARE)


def is_plausible(*mpp: float) -> bool:
    """Return whether all values can be the µm/px of a slide scanner."""
    return all(MPP_MIN <= value <= MPP_MAX for value in mpp)
