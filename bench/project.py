"""The measured parts of this project: the reader, and the stores that patches are written to."""

from __future__ import annotations

from panda.data.settings import PatchSettings, StoreKind
from panda.wsi.readers import ReaderName

READER: ReaderName = "fast"
"""The reader is named outright: if it cannot read, that is an error and no slower reader takes its place."""
TILE = 512
MIN_TISSUE = 0.1
DEFAULT_STORE: StoreKind = "slide"
"""The store of `data=panda`: masks are stored, pictures stay in the slide and `PatchSet` reads them there."""
STORES: tuple[StoreKind, ...] = (DEFAULT_STORE, "packed", "png")
"""The other two write pictures and masks, the last as the loops of other libraries do, a PNG each."""


TRAINING_SIZE, TRAINING_BATCH = 256, 8
TRAINING = f"UNet-ResNet18, {TRAINING_SIZE} px, batches of {TRAINING_BATCH}"
CACHED = "one cached batch"
"""What training steps are measured on, and what those from the loader are compared with."""

UNET, DEEPLAB = "UNet-ResNet18", "DeepLabV3-ResNet50"
NETWORKS = {UNET: ("Unet", "resnet18"), DEEPLAB: ("DeepLabV3", "resnet50")}
MAPPED_TILE, OVERLAP, MAPPED_TISSUE = 512, 0.25, 0.2
MAPPING = f"{UNET}, a slide of which a fifth is tissue"
"""What mapping is measured with: networks, side and overlap of the tiles, share of tissue."""


def settings(store: StoreKind, size: int = TILE) -> PatchSettings:
    """Return settings of patches at level 0, side by side, as all contenders cut them.

    Args:
        store: One of `STORES`.
        size: Of a patch in px.
    """
    return PatchSettings(level=0, patch_size=size, min_tissue=MIN_TISSUE, reader=READER, store=store)


GRADING_K, GRADING_SIZE = 16, 256
GRADING = f"MIL on ResNet18, {GRADING_K} tiles of {GRADING_SIZE} px"
GRADING_MEMORY = f"one step of training on ResNet18, 128 tiles of {GRADING_SIZE} px"
"""Cases of the parts on grading."""
ENCODING = "ViT-S/16 on tiles of 256 px"
"""What features are measured with."""
