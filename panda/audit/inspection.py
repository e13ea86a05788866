"""One slide looked at for the audit: what it is, and what is found on it and in its mask."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panda.audit.near_duplicates import HASH_RULES, TissueHashes
from panda.audit.slide_inspector import Look
from panda.audit.slide_table import TableRow
from panda.data.findings import Finding
from panda.wsi.slide import SlideOptions
from panda.wsi.tissue import RULES

VERSION = 1
"""A new number whenever the same files would give another inspection."""

MADE_BY: Mapping[str, int] = MappingProxyType({"inspection": VERSION, "tissue": RULES, "hashes": HASH_RULES})
"""The rules that inspections follow: those made by others are made anew."""

_ALIKE = 0.02  # relative difference of µm/px, and of downsamples, that counts as none
_FEW = 0.05  # share of a provider's slides below which a value is unusual
_MOST = 2 / 3  # share of slides of usual values from which on there is a rest to be unlike


@dataclass(frozen=True)
class Inspection:
    """What was seen of a slide and its mask, as plain values. What could not be seen is None or empty.

    Attributes:
        slide_id: The slide.
        provider: As the table writes it.
        file_bytes: Size of its file.
        digest: Of its size and some of its content, see `panda.audit.slide_inspector.quick_digest`.
        level_dimensions: (width, height) of each level in px of that level, level 0 first.
        downsamples: Level-0 px per px of each level.
        mpp: µm per level-0 px as (x, y).
        mpp_source: Where that comes from.
        reader: What read it, `"fast"` or `"openslide"`.
        vendor: OpenSlide's name of the file's layout.
        tissue_how: How its tissue was found, see `panda.wsi.tissue.TissueMap`.
        tissue_fraction: Tissue as a fraction of the slide.
        tissue_mm2: The same as an area.
        hashes: Of its tissue, to find other scans of it.
        pen_fraction: Ink as a fraction of the slide.
        sharpness: Median over windows, see `panda.audit.sharpness`.
        blurred: Share of those windows that are out of focus.
        mask_dimensions: (width, height) of mask level 0.
        mask_level: Level of the mask at which codes were counted.
        mask_codes: Px of each code at that level, by the code in decimal.
        cancer_fraction: Cancer as a fraction of what the mask labels.
        cancer_mm2: The same as an area.
        labelled_on_tissue: Share of what the mask labels that lies where tissue was found.
        findings: What is wrong.
    """

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

    def plain(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self) | {"hashes": None if self.hashes is None else self.hashes.plain()}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Inspection:
        """Make it of what `plain` gave, be it through JSON.

        Raises:
            TypeError: A key is missing or unknown.
            ManifestError: The hashes are none.
        """
        values = dict(plain)
        if unknown := set(values) ^ {known.name for known in fields(cls)}:
            raise TypeError(f"an inspection has not exactly its keys: {', '.join(sorted(unknown))}")
        for name in ("downsamples", "mpp", "mask_dimensions"):
            values[name] = None if values[name] is None else tuple(values[name])
        values["hashes"] = None if values["hashes"] is None else TissueHashes.from_plain(values["hashes"])
        values["level_dimensions"] = tuple(tuple(size) for size in values["level_dimensions"])
        values["findings"] = tuple(Finding(**found) for found in values["findings"])
        return cls(**values)


def inspect_slide(
    row: TableRow,
    root: Path,
    options: SlideOptions = SlideOptions(),
    *,
    mask_suffix: str = "_mask",
    deep: bool = False,
) -> tuple[Inspection, NDArray[np.uint8] | None]:
    """Look at a slide and its mask, each opened once. Whatever cannot be read is a finding and no error.

    Args:
        row: Of the table; what it shows by itself is not found anew (see `panda.audit.slide_table.check_table`).
        root: The folder of the data.
        options: How the slide is opened.
        mask_suffix: What a mask's file name has after the slide's id.
        deep: Decode every tile of the slide and count the mask at level 0, as slow as reading all.

    Returns:
        The inspection and, where the slide can be read, a picture of it, (h, w, 3) uint8 RGB of at most
        512 px a side.
    """
    look = Look(row, options, deep)
    if row.has_file:
        look.at_slide(row.image_path(root))
        look.at_mask(row.mask_path(root, mask_suffix))
    return Inspection(row.slide_id, row.provider, **look.seen, findings=tuple(look.findings)), look.thumbnail


def same_files(inspections: Iterable[Inspection], path_of: Callable[[str], Path]) -> list[list[str]]:
    """Find slides whose files are the same to the byte. Only those of the same `quick_digest` are read.

    Args:
        inspections: Of the slides.
        path_of: Slide id → its file.

    Returns:
        The ids of each group of two or more, in ascending order.

    Raises:
        OSError: A file cannot be read any more.
    """
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for seen in inspections:
        if seen.digest is not None:
            alike[seen.digest].add(seen.slide_id)
    groups = []
    for slides in alike.values():
        whole: defaultdict[bytes, list[str]] = defaultdict(list)
        for slide_id in sorted(slides) if len(slides) > 1 else ():
            with path_of(slide_id).open("rb") as file:
                whole[hashlib.file_digest(file, "blake2b").digest()].append(slide_id)
        groups += [group for group in whole.values() if len(group) > 1]
    return sorted(groups)


def dataset_findings(inspections: Iterable[Inspection]) -> list[Finding]:
    """Find what only all slides together show: µm/px and pyramids unlike the rest of their provider's.

    A value is unusual where under 5 % of the provider's slides (or no other one) share it to 2 %, and two thirds of
    the slides have usual values.

    Args:
        inspections: Of all slides.

    Returns:
        The findings, by provider and slide.
    """
    mpps: defaultdict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)
    levels: defaultdict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)
    for seen in inspections:
        if seen.mpp is not None and seen.mpp_source != "override":
            mpps[seen.provider][seen.slide_id] = seen.mpp
        if seen.downsamples:
            levels[seen.provider][seen.slide_id] = seen.downsamples
    found = []
    for finding, by_provider, word in (
        ("mpp_unlike_provider", mpps, "µm/px is"),
        ("unusual_levels", levels, "its levels are shrunk by"),
    ):
        for provider, values in sorted(by_provider.items()):
            usual, unusual = _split_usual(values)
            for slide_id, value in sorted(unusual.items()):
                text = f"{word} {_numbers(value)}; the others of {provider} have {' or '.join(usual)}"
                found.append(Finding(slide_id, finding, text))
    return found


def _split_usual(values: Mapping[str, tuple[float, ...]]) -> tuple[list[str], dict[str, tuple[float, ...]]]:
    """The usual values in words, the most frequent first, and the slides of unusual ones."""
    rounded = {slide_id: tuple(float(f"{number:.3g}") for number in value) for slide_id, value in values.items()}
    counts = Counter(rounded.values())
    alike = {value: sum(count for other, count in counts.items() if _are_alike(value, other)) for value in counts}
    least = max(2.0, _FEW * len(values))
    unusual = {slide_id: values[slide_id] for slide_id, value in rounded.items() if alike[value] < least}
    if len(values) - len(unusual) < _MOST * len(values):
        return [], {}
    named: list[tuple[float, ...]] = []
    for value in sorted(alike, key=lambda value: (-alike[value], value)):
        if alike[value] >= least and not any(_are_alike(value, other) for other in named):
            named.append(value)
    return [_numbers(value) for value in named], unusual


def _are_alike(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x / y - 1) <= _ALIKE for x, y in zip(a, b, strict=True))


def _numbers(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3g}" for value in values)
