"""The patches of one slide: their corners and contents. The pixels are in a folder of the store."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.data.settings import PatchSettings
from panda.data.slide_entry import SlideEntry, SlideOrigin, read_origin
from panda.errors import ManifestError, PandaError
from panda.files import fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SlidePatches:
    """The finished patches of one slide, by y and then x.

    Attributes:
        folder: The slide's folder in the store.
        mpp: µm per patch px as (x, y), or None if unknown.
        xy: Top-left corners, (N, 2) int64, level-0 px.
        tissue_fraction: Share of tissue in each patch, (N,) float64.
        tumor_fraction: Share of cancer pixels in each patch, (N,) float64.
        class_fractions: Share of pixels of each class of cancer in each patch, (N, number of such classes) float64.
        fingerprint: Hash of the settings, the slide's row, and the identity of slide and mask.
    """

    record: SlideRecord
    folder: Path
    mpp: tuple[float, float] | None
    xy: NDArray[np.int64]
    tissue_fraction: NDArray[np.float64]
    tumor_fraction: NDArray[np.float64]
    class_fractions: NDArray[np.float64]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.xy)

    @property
    def contradicts_grade(self) -> bool:
        """Whether the slide has a grade of 1 or more and no cancer pixel in any patch, so that its truth is unknown."""
        return bool(self.record.isup_grade) and not self.tumor_fraction.any()

    @classmethod
    def from_entry(cls, record: SlideRecord, folder: Path, entry: SlideEntry) -> SlidePatches:
        """Return the patches that the entry of a slide lists."""
        return cls(
            record=record,
            folder=folder,
            mpp=entry.resolution.mpp,
            xy=np.array([(patch.x, patch.y) for patch in entry.patches], dtype=np.int64),
            tissue_fraction=np.array([patch.tissue_fraction for patch in entry.patches]),
            tumor_fraction=np.array([patch.tumor_fraction for patch in entry.patches]),
            class_fractions=np.array([patch.class_fractions for patch in entry.patches]),
            fingerprint=entry.fingerprint,
        )


def load_slide(record: SlideRecord, settings: PatchSettings, store: Path) -> SlidePatches | None:
    """Return a slide's finished patches in the store; None if it has none, or those of other files or another row."""
    folder = store / record.slide_id
    try:
        entry = SlideEntry.read(folder)
    except OSError:
        return None
    except ManifestError as error:
        log.warning("%s", error)
        return None
    try:
        unchanged = entry.fingerprint == fingerprint_patches(read_origin(record, settings.classes), settings)
    except PandaError:
        return None
    return SlidePatches.from_entry(record, folder, entry) if unchanged else None


def fingerprint_patches(origin: SlideOrigin, settings: PatchSettings) -> str:
    """Return the fingerprint of all that a slide's patches depend on."""
    return fingerprint({"settings": settings.model_dump(mode="json"), **origin.model_dump()})


if __name__ == "__main__":
    sys.exit("python -m panda.data.patches has moved: type python -m panda.data.store list [STORE_ROOT]")
