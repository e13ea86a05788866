"""How much disk an extraction will take, told from a few of its slides before it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import numpy as np

from panda.data.manifest import SlideRecord
from panda.data.pixel_stores import open_pixel_store
from panda.data.settings import PatchSettings
from panda.errors import PandaError
from panda.wsi.grid import tissue_grid
from panda.wsi.tissue import find_tissue

SAMPLED = 8
"""Slides that are looked at."""
_ENCODED = 3
_BLOCK = 4096  # a file takes whole blocks; a mask as PNG is about one
_LISTED = 100  # bytes of a patch's line in slide.json


@dataclass(frozen=True)
class Need:
    """What is still to be written.

    Attributes:
        slides: That have no patches yet.
        patches: About so many.
        bytes: About so many.
    """

    slides: int
    patches: int
    bytes: int

    def __str__(self) -> str:
        size = f"{self.bytes / 1e9:.1f} GB" if self.bytes >= 1e9 else f"{self.bytes / 1e6:.1f} MB"
        return f"about {self.patches:,} patches of {self.slides:,} slides, {size}"


def estimate_need(pending: Sequence[SlideRecord], settings: PatchSettings) -> Need | None:
    """Estimate the patches and the disk of slides from up to `SAMPLED` of them, spread over the list.

    Args:
        pending: The slides that have no patches yet.
        settings: How they are cut.

    Returns:
        The estimate; None where none of the sample can be read (the extraction says why).
    """
    counts: list[int] = []
    sizes: list[int] = []
    pixels = open_pixel_store(settings)
    for number in np.unique(np.linspace(0, len(pending) - 1, min(SAMPLED, len(pending))).round().astype(int)):
        try:
            with settings.slide_options.open(pending[number].image_path) as slide:
                resolution = settings.resolution.resolve(slide)
                grid = tissue_grid(
                    resolution,
                    find_tissue(slide),
                    settings.patch_size,
                    settings.step,
                    edge=settings.edge,
                    min_tissue=settings.min_tissue,
                )
                counts.append(len(grid))
                if pixels.keeps_pixels:
                    for x, y in grid.level0[:: max(1, len(grid) // _ENCODED)][:_ENCODED].tolist():
                        image = slide.read(resolution, (x, y), (settings.patch_size, settings.patch_size))
                        sizes.append(pixels.estimate_bytes(image))
        except Exception:  # whatever is wrong with a slide, the extraction says it
            continue
    if not counts:
        return None
    patches = round(sum(counts) / len(counts) * len(pending))
    each = _LISTED + round(sum(sizes) / max(1, len(sizes)))
    return Need(len(pending), patches, patches * each)


def surely_fits(pending: Sequence[SlideRecord], settings: PatchSettings, store: Path) -> bool:
    """Say whether the disk has room for the patches even if all of each slide were tissue, and no PNG smaller than it.

    To look for tissue would take a good part of the time that it takes to cut a few slides.

    Args:
        pending: The slides that have no patches yet; where they are more than `SAMPLED`, the answer is no.
        settings: How they are cut.
        store: The store's folder.
    """
    if len(pending) > SAMPLED:
        return False
    each = 4 * settings.patch_size**2 + 3 * _BLOCK + _LISTED
    most = 0
    for record in pending:
        try:
            with settings.slide_options.open(record.image_path) as slide:
                size = settings.resolution.resolve(slide).size
        except Exception:  # whatever is wrong with a slide, the extraction says it
            continue
        most += math.prod(-(-side // settings.step) for side in size) * each
    return most <= disk_usage(store).free


def refuse_without_room(need: Need, store: Path) -> None:
    """Compare a need with the room on the disk of a store.

    Raises:
        PandaError: There is less room than is needed.
    """
    free = disk_usage(store).free
    if need.bytes > free:
        raise PandaError(
            f"{store}: the patches need {need}; the disk has {free / 1e9:.1f} GB free. Keep no pixels with "
            f"data.store=slide, choose another disk with data.store_root, or cut fewer or coarser patches "
            f"(data.stride, data.level, data.mpp)"
        )
