"""What of this project is measured: the reader, and the stores that patches are written to."""

from __future__ import annotations

from panda.data.settings import PatchSettings, StoreKind
from panda.wsi.slide import ReaderName

READER: ReaderName = "fast"
"""The one named outright: where it cannot read, that is an error here and no slower reader takes its place."""
TILE = 512
MIN_TISSUE = 0.1
DEFAULT_STORE: StoreKind = "slide"
"""That of ``data=panda``: masks are read, pictures stay in the slide, where `PatchSet` reads them."""
STORES: tuple[StoreKind, ...] = (DEFAULT_STORE, "packed", "png")
"""The other two write pictures and masks, the last as the loops of other libraries do, a PNG each."""


def settings(store: StoreKind) -> PatchSettings:
    """Patches of 512 px at level 0, side by side, as all contenders cut them.

    Args:
        store: one of ``STORES``.
    """
    return PatchSettings(level=0, patch_size=TILE, min_tissue=MIN_TISSUE, reader=READER, store=store)
