"""The stain of each slide of a patch store: estimated once and kept in the slide's folder, `stain.json`.

The pixels of the store keep their colours, so that one store serves runs with and without normalization.
"""

from __future__ import annotations

import functools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from panda.data.failures import Failure
from panda.data.patches import SlidePatches
from panda.data.settings import PatchSettings
from panda.data.store import StoreResult
from panda.errors import name_exhaustion, raise_exhaustion
from panda.files import hold_lock, remove_leftovers, write_json
from panda.progress import Progress
from panda.wsi.stain_normalization import STAIN_RULES, StainProfile, find_stain
from panda.wsi.tissue import find_tissue

STAIN_FILE = "stain.json"

Stains = dict[str, StainProfile | None]
"""Slide id → its stain; None for a slide without two stains."""


@name_exhaustion()
def estimate_stains(result: StoreResult, settings: PatchSettings, *, workers: int = 2) -> tuple[StoreResult, Stains]:
    """Estimate the stain of each slide of a store, if the store does not have it yet.

    Returns:
        The result without slides that cannot be read, which are failures of the stage `stain`; and the stains.

    Raises:
        OSError: If the store cannot be written.
        ExhaustedError: If memory, threads or file handles run out.
    """
    stains: Stains = {}
    unknown: list[SlidePatches] = []
    for slide_id, patches in result.slides.items():
        try:
            stains[slide_id] = _read_stain(patches)
        except (OSError, ValueError, KeyError, TypeError):  # missing, of another slide, or damaged
            unknown.append(patches)
    with hold_lock(result.store / "stains"), ThreadPoolExecutor(max(1, workers), thread_name_prefix="stain") as pool:
        found = pool.map(functools.partial(_estimate_stain, settings), unknown)
        for patches, outcome in zip(unknown, Progress(found, "stains", len(unknown), hidden=not unknown), strict=True):
            slide_id = patches.record.slide_id
            if isinstance(outcome, Failure):
                result.failures.append(outcome)
                continue
            stains[slide_id] = outcome
            plain = None if outcome is None else asdict(outcome)
            remove_leftovers(patches.folder, STAIN_FILE)
            write_json(
                patches.folder / STAIN_FILE, {"rules": STAIN_RULES, "fingerprint": patches.fingerprint, "stain": plain}
            )
    left = {slide_id: patches for slide_id, patches in result.slides.items() if slide_id in stains}
    return replace(result, slides=left), stains


def _read_stain(patches: SlidePatches) -> StainProfile | None:
    """Return the stain in the store; raise an error of any kind if there is none."""
    stored = json.loads((patches.folder / STAIN_FILE).read_text(encoding="utf-8"))
    if (stored["rules"], stored["fingerprint"]) != (STAIN_RULES, patches.fingerprint):
        raise ValueError("another slide, or other rules")
    return None if stored["stain"] is None else StainProfile(**stored["stain"])


def _estimate_stain(settings: PatchSettings, patches: SlidePatches) -> StainProfile | Failure | None:
    record = patches.record
    try:
        with settings.slide_options.open(record.image_path, record.slide_id) as slide:
            return find_stain(slide, find_tissue(slide))
    except Exception as error:
        raise_exhaustion(error)
        return Failure(record.slide_id, "stain", type(error).__name__, str(error))
