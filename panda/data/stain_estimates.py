"""How each slide of a patch store is stained: estimated once and kept in the slide's folder, `stain.json`.

The store's pixels stay as the slides have them, so that one store serves runs with and without normalisation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from panda.data.failures import Failure
from panda.data.patches import SlidePatches
from panda.data.settings import PatchSettings
from panda.data.store import StoreResult
from panda.files import write_json
from panda.wsi.stain_normalization import STAIN_RULES, StainProfile, told_stain
from panda.wsi.tissue import find_tissue

STAIN_FILE = "stain.json"

Stains = dict[str, StainProfile | None]
"""Slide id → its stain; None where it has not two stains."""


def find_stains(result: StoreResult, settings: PatchSettings, *, workers: int = 2) -> tuple[StoreResult, Stains]:
    """Estimate the stain of each slide of a store that is not known yet.

    Args:
        result: The slides with their patches.
        settings: How the slides are read.
        workers: Slides looked at at the same time, in threads.

    Returns:
        What is left of the result, a slide that cannot be read being a failure of the stage `stain`; and the stains
        of what is left.

    Raises:
        OSError: The store cannot be written.
    """
    stains: Stains = {}
    unknown: list[SlidePatches] = []
    for slide_id, patches in result.slides.items():
        try:
            stains[slide_id] = _kept(patches)
        except (OSError, ValueError, KeyError, TypeError):  # there is none yet, of another slide, or damaged
            unknown.append(patches)
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="stain") as pool:
        found = pool.map(_looked_at(settings), unknown)
        for patches, outcome in zip(unknown, tqdm(found, "stains", len(unknown), disable=not unknown), strict=True):
            slide_id = patches.record.slide_id
            if isinstance(outcome, Failure):
                result.failures.append(outcome)
                continue
            stains[slide_id] = outcome
            plain = None if outcome is None else outcome.plain()
            write_json(_file(patches), {"rules": STAIN_RULES, "fingerprint": patches.fingerprint, "stain": plain})
    left = {slide_id: patches for slide_id, patches in result.slides.items() if slide_id in stains}
    return replace(result, slides=left), stains


def _file(patches: SlidePatches) -> Path:
    return patches.folder / STAIN_FILE


def _kept(patches: SlidePatches) -> StainProfile | None:
    """The stain that the store knows of a slide; an error of any kind where it knows none."""
    stored = json.loads(_file(patches).read_text(encoding="utf-8"))
    if (stored["rules"], stored["fingerprint"]) != (STAIN_RULES, patches.fingerprint):
        raise ValueError("of another slide, or found by other rules")
    return None if stored["stain"] is None else StainProfile.from_plain(stored["stain"])


def _looked_at(settings: PatchSettings) -> Callable[[SlidePatches], StainProfile | Failure | None]:
    def look(patches: SlidePatches) -> StainProfile | Failure | None:
        record = patches.record
        try:
            with settings.slide_options.open(record.image_path) as slide:
                return told_stain(slide, find_tissue(slide))
        except MemoryError:
            raise
        except Exception as error:
            return Failure(record.slide_id, "stain", type(error).__name__, str(error))

    return look
