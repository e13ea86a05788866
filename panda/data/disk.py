"""How much disk an extraction takes, estimated from a few of its slides before it begins."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

from panda.data.manifest import SlideRecord
from panda.data.pixel_stores import open_pixel_store
from panda.data.settings import PatchSettings
from panda.errors import PandaError
from panda.wsi.tissue import find_tissue

log = logging.getLogger(__name__)

SAMPLED = 8
"""Most slides that are read for an estimate."""
_ENCODED = 3  # patches of each of them that are encoded
_BLOCK = 4096  # bytes; a file takes whole blocks, and a mask as PNG about one
_LISTED = 100  # bytes of a patch in slide.json


@dataclass(frozen=True)
class DiskEstimate:
    """The number of slides without patches so far, and the estimated number and size on the disk of their patches."""

    slides: int
    patches: int
    bytes: int

    def __str__(self) -> str:
        size = f"{self.bytes / 1e9:.1f} GB" if self.bytes >= 1e9 else f"{self.bytes / 1e6:.1f} MB"
        return f"about {self.patches:,} patches of {self.slides:,} slides, {size}"


def require_room(pending: Sequence[SlideRecord], settings: PatchSettings, store: Path) -> None:
    """Check that the patches of slides without patches so far fit on the disk of their store.

    Raises:
        PandaError: If the disk has less room than the patches need.
    """
    # Without pixels, or for a few slides, a look at the tissue would take about as long as the extraction.
    if not open_pixel_store(settings).keeps_pixels:
        return
    free = disk_usage(store).free
    if len(pending) <= SAMPLED and _bound_bytes(pending, settings) <= free:
        return
    if (estimate := estimate_disk(pending, settings)) is None:
        return
    log.info("%s: %s to write", store, estimate)
    if estimate.bytes > free:
        raise PandaError(
            f"{store}: the patches need {estimate}; the disk has {free / 1e9:.1f} GB free. Keep no "
            "pixels with data.store=slide, choose another disk with data.store_root, or cut fewer or coarser patches "
            "(data.stride, data.level, data.mpp)"
        )


def estimate_disk(pending: Sequence[SlideRecord], settings: PatchSettings) -> DiskEstimate | None:
    """Estimate patches and bytes of slides without patches, from at most `SAMPLED` of them, spread over the list.

    Returns:
        The estimate; None if no slide of the sample can be read. The extraction then reports why.
    """
    counts: list[int] = []
    sizes: list[int] = []
    pixels, side = open_pixel_store(settings), settings.patch_size
    for record in pending[:: max(1, -(-len(pending) // SAMPLED))]:
        with suppress(Exception), settings.slide_options.open(record.image_path, record.slide_id) as slide:
            resolution, tissue = settings.resolution.resolve(slide), find_tissue(slide)
            grid = settings.lay_grid(resolution, tissue)
            counts.append(len(grid))
            if pixels.keeps_pixels:
                for x, y in grid.level0[:: max(1, len(grid) // _ENCODED)][:_ENCODED].tolist():
                    sizes.append(pixels.estimate_bytes(slide.read(resolution, (x, y), (side, side))))
    if not counts:
        return None
    patches = round(sum(counts) / len(counts) * len(pending))
    return DiskEstimate(len(pending), patches, patches * (_LISTED + round(sum(sizes) / max(1, len(sizes)))))


def _bound_bytes(pending: Sequence[SlideRecord], settings: PatchSettings) -> int:
    """Return the bytes of all patches if the slides were all tissue and no PNG smaller than its pixels."""
    patches = 0
    for record in pending:
        with suppress(Exception), settings.slide_options.open(record.image_path, record.slide_id) as slide:
            patches += math.prod(-(-side // settings.step) for side in settings.resolution.resolve(slide).size)
    return patches * (4 * settings.patch_size**2 + 3 * _BLOCK + _LISTED)
