"""Keys that have no effect in a grading, or in some gradings."""

from __future__ import annotations

from panda.app.operating_point import CHOICE_KEYS
from panda.inference.quantify import QuantifySettings

IDLE_KEYS = (
    *CHOICE_KEYS,
    *(f"data.{key}" for key in ("batch_size", "stride", "edge", "min_tissue", "store", "extract_workers")),
    *(f"data.{key}" for key in ("sampler", "tumor_share", "ignore_background", "empty_means_benign")),
)
"""Keys that have no effect in grading. The group `tiles` has its own."""

MAP_KEYS = ("colour_map", "quantify", *(f"quantify.{limit}" for limit in QuantifySettings.model_fields), "engine.tta")
"""Keys that only affect maps of slides, which only guided tiles need."""
AUGMENT_KEYS = ("augment", "data.augment", "data.augment.name")
PIXEL_KEYS = (
    *MAP_KEYS,
    *AUGMENT_KEYS,
    *(f"tiles.{key}" for key in ("tile_size", "level", "mpp", "random_fraction", "min_tissue")),
    *(f"data.{key}" for key in ("patch_size", "level", "mpp", "normalize", "store_root")),
    *(
        f"model.{key}"
        for key in ("encoder", "encoder_weights", "freeze_encoder", "train_blocks", "chunk", "mean", "std")
    ),
    *(f"engine.{key}" for key in ("precision", "compile", "batch_size", "read_threads", "canvas_mib", "post_workers")),
)
"""Keys that only affect how tiles become features."""
