"""The inspection of one slide and of its mask, and the slides whose inspection differs from their provider's others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt

from panda.audit.tissue_hashes import HASH_RULES, TissueHashes
from panda.data.findings import Finding
from panda.stored import Share
from panda.wsi.geometry import Positive, Side
from panda.wsi.mpp import MppSource, SlideMpp
from panda.wsi.tissue import RULES, How

RULE_VERSIONS: Mapping[str, int] = MappingProxyType({"inspection": 3, "tissue": RULES, "hashes": HASH_RULES})
"""Versions of the rules that inspections follow; slides with older inspections are inspected again. Increase the first
if the same files would give another inspection."""

_TOLERANCE = 0.02  # relative difference of µm/px, and of downsamples, that counts as none
_FEW = 0.05  # share of a provider's slides below which a value is unusual
_MOST = 2 / 3  # share of slides that must have usual values

_Values = tuple[float, ...]
MaskCode = Annotated[str, Field(pattern=r"^\d{1,3}$")]


@dataclass(frozen=True)
class Inspection:
    """Properties of a slide and its mask. A value that could not be read is None or empty.

    Attributes:
        digest: Digest of the file, see `panda.audit.near_duplicates.digest_quickly`.
        level_dimensions: (width, height) of each level in px of that level, level 0 first.
        downsamples: Level-0 px per px of each level.
        mpp: µm per level-0 px as (x, y).
        reader: `"fast"` or `"openslide"`.
        vendor: OpenSlide's name of the file format.
        tissue_how: The method that found the tissue, see `panda.wsi.tissue.TissueMap`.
        tissue_fraction: Tissue as a fraction of the slide.
        pen_fraction: Ink as a fraction of the slide.
        sharpness: Median over windows, see `panda.audit.sharpness`.
        blurred: Share of the windows that are out of focus.
        mask_dimensions: (width, height) of mask level 0.
        mask_level: Level of the mask at which codes are counted.
        mask_codes: Px of each code at that level, by the code in decimal; annotations are counted at 10 µm/px or finer.
        cancer_fraction: Cancer as a fraction of the labelled px.
        labelled_on_tissue: Share of the labelled px that are on tissue.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    slide_id: str
    provider: str
    file_bytes: NonNegativeInt | None = None
    digest: str | None = None
    level_dimensions: tuple[tuple[Side, Side], ...] = ()
    downsamples: tuple[Positive, ...] = ()
    mpp: tuple[SlideMpp, SlideMpp] | None = None
    mpp_source: MppSource | None = None
    reader: Literal["fast", "openslide"] | None = None
    vendor: str | None = None
    tissue_how: How | None = None
    tissue_fraction: Share | None = None
    tissue_mm2: NonNegativeFloat | None = None
    hashes: TissueHashes | None = None
    pen_fraction: Share | None = None
    sharpness: NonNegativeFloat | None = None
    blurred: Share | None = None
    mask_dimensions: tuple[Side, Side] | None = None
    mask_level: NonNegativeInt | None = None
    mask_codes: Mapping[MaskCode, NonNegativeInt] = field(default_factory=dict)
    cancer_fraction: Share | None = None
    cancer_mm2: NonNegativeFloat | None = None
    labelled_on_tissue: Share | None = None
    findings: tuple[Finding, ...] = ()


def find_outliers(inspections: Iterable[Inspection]) -> list[Finding]:
    """Find slides whose µm/px or pyramid differs from the rest of their provider.

    A value is unusual if less than 5 % of the provider's slides (or no other one) have it within 2 %, and two thirds of
    the slides have usual values. The findings are sorted by provider and slide.
    """
    mpps: defaultdict[str, dict[str, _Values]] = defaultdict(dict)
    levels: defaultdict[str, dict[str, _Values]] = defaultdict(dict)
    for seen in inspections:
        if seen.mpp is not None and seen.mpp_source != "override":
            mpps[seen.provider][seen.slide_id] = seen.mpp
        if seen.downsamples:
            levels[seen.provider][seen.slide_id] = seen.downsamples
    found = []
    for finding, by_provider, verb in (
        ("mpp_unlike_provider", mpps, "µm/px is"),
        ("unusual_levels", levels, "its levels are shrunk by"),
    ):
        for provider, values in sorted(by_provider.items()):
            usual, unusual = _split_usual(values)
            for slide_id, value in sorted(unusual.items()):
                text = f"{verb} {_format_values(value)}; the others of {provider} have {' or '.join(usual)}"
                found.append(Finding(slide_id, finding, text))
    return found


def _split_usual(values: Mapping[str, _Values]) -> tuple[list[str], dict[str, _Values]]:
    """Return the usual values as text, the most frequent first, and the slides with unusual values."""
    rounded = {slide_id: tuple(float(f"{number:.3g}") for number in value) for slide_id, value in values.items()}
    counts = Counter(rounded.values())
    shared = {value: sum(count for other, count in counts.items() if _are_close(value, other)) for value in counts}
    least = max(2.0, _FEW * len(values))
    unusual = {slide_id: values[slide_id] for slide_id, value in rounded.items() if shared[value] < least}
    if len(values) - len(unusual) < _MOST * len(values):
        return [], {}
    usual: list[_Values] = []
    for value in sorted(shared, key=lambda value: (-shared[value], value)):
        if shared[value] >= least and not any(_are_close(value, other) for other in usual):
            usual.append(value)
    return [_format_values(value) for value in usual], unusual


def _are_close(a: _Values, b: _Values) -> bool:
    return len(a) == len(b) and all(abs(x / y - 1) <= _TOLERANCE for x, y in zip(a, b, strict=True))


def _format_values(values: _Values) -> str:
    return " / ".join(f"{value:.3g}" for value in values)
