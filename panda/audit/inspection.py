"""The inspection of one slide: what the audit knows of it and of its mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from pydantic import ConfigDict

from panda.audit.tissue_hashes import HASH_RULES, TissueHashes
from panda.data.findings import Finding
from panda.wsi.tissue import RULES

VERSION = 1
"""Increase it if the same files would give another inspection."""

RULE_VERSIONS: Mapping[str, int] = MappingProxyType({"inspection": VERSION, "tissue": RULES, "hashes": HASH_RULES})
"""Versions of the rules that inspections follow; slides with older inspections are inspected again."""


@dataclass(frozen=True)
class Inspection:
    """What is known of a slide and its mask. A value that could not be read is None or empty.

    Attributes:
        slide_id: The slide.
        provider: Its provider as in the table.
        file_bytes: Size of its file in bytes.
        digest: Digest of the file, see `panda.audit.identical_files.digest_quickly`.
        level_dimensions: (width, height) of each level in px of that level, level 0 first.
        downsamples: Level-0 px per px of each level.
        mpp: µm per level-0 px as (x, y).
        mpp_source: Where the µm/px comes from.
        reader: Name of the reader, `"fast"` or `"openslide"`.
        vendor: OpenSlide's name of the file format.
        tissue_how: How the tissue was found, see `panda.wsi.tissue.TissueMap`.
        tissue_fraction: Tissue as a fraction of the slide.
        tissue_mm2: Tissue area in mm².
        hashes: Hashes of the tissue, to find other scans of it.
        pen_fraction: Ink as a fraction of the slide.
        sharpness: Median over windows, see `panda.audit.sharpness`.
        blurred: Share of the windows that are out of focus.
        mask_dimensions: (width, height) of mask level 0.
        mask_level: Level of the mask at which codes are counted.
        mask_codes: Px of each code at that level, by the code in decimal.
        cancer_fraction: Cancer as a fraction of the labelled px.
        cancer_mm2: Cancer area in mm².
        labelled_on_tissue: Share of the labelled px that are on tissue.
        findings: What is wrong.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    slide_id: str
    provider: str
    file_bytes: int | None = None
    digest: str | None = None
    level_dimensions: tuple[tuple[int, int], ...] = ()
    downsamples: tuple[float, ...] = ()
    mpp: tuple[float, float] | None = None
    mpp_source: str | None = None
    reader: str | None = None
    vendor: str | None = None
    tissue_how: str | None = None
    tissue_fraction: float | None = None
    tissue_mm2: float | None = None
    hashes: TissueHashes | None = None
    pen_fraction: float | None = None
    sharpness: float | None = None
    blurred: float | None = None
    mask_dimensions: tuple[int, int] | None = None
    mask_level: int | None = None
    mask_codes: Mapping[str, int] = field(default_factory=dict)
    cancer_fraction: float | None = None
    cancer_mm2: float | None = None
    labelled_on_tissue: float | None = None
    findings: tuple[Finding, ...] = ()
