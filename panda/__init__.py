"""Experiments on prostate whole-slide images: tumour segmentation and slide grading.

A name of `__all__` is imported at its first use, so that `import panda` stays fast.
"""

from __future__ import annotations

import importlib
import operator
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panda.app.calls import infer, train
    from panda.data.bags import read_bag
    from panda.data.datamodule import DataSettings, PatchDataModule
    from panda.data.manifest import find_one_tumor_example, read_manifest
    from panda.data.patchset import PatchSet
    from panda.data.tile_selection import select_tile_coords_for_slide
    from panda.inference.compute import EngineSettings
    from panda.inference.grader import GradingPredictor
    from panda.inference.predictor import SegmentationPredictor
    from panda.inference.quantify import slide_quantification
    from panda.models.mil import MILNet
    from panda.models.segmentation import Segmenter
    from panda.synthetic.dataset import SyntheticSpec, draw_dataset
    from panda.tasks.grading import GradingTask
    from panda.tasks.segmentation import SegmentationTask
    from panda.wsi.label_maps import tumor_bool_from_gray
    from panda.wsi.slide import Slide
    from panda.wsi.tissue import find_tissue, tissue_mask_rgb

    open_slide = Slide.open

__all__ = [
    "DataSettings",
    "EngineSettings",
    "GradingPredictor",
    "GradingTask",
    "MILNet",
    "PatchDataModule",
    "PatchSet",
    "SegmentationPredictor",
    "SegmentationTask",
    "Segmenter",
    "Slide",
    "SyntheticSpec",
    "draw_dataset",
    "find_one_tumor_example",
    "find_tissue",
    "infer",
    "open_slide",
    "read_bag",
    "read_manifest",
    "select_tile_coords_for_slide",
    "slide_quantification",
    "tissue_mask_rgb",
    "train",
    "tumor_bool_from_gray",
]

_PLACES = {
    "DataSettings": "data.datamodule",
    "EngineSettings": "inference.compute",
    "GradingPredictor": "inference.grader",
    "GradingTask": "tasks.grading",
    "MILNet": "models.mil",
    "PatchDataModule": "data.datamodule",
    "PatchSet": "data.patchset",
    "SegmentationPredictor": "inference.predictor",
    "SegmentationTask": "tasks.segmentation",
    "Segmenter": "models.segmentation",
    "Slide": "wsi.slide",
    "SyntheticSpec": "synthetic.dataset",
    "draw_dataset": "synthetic.dataset",
    "find_one_tumor_example": "data.manifest",
    "find_tissue": "wsi.tissue",
    "infer": "app.calls",
    "open_slide": "wsi.slide:Slide.open",
    "read_bag": "data.bags",
    "read_manifest": "data.manifest",
    "select_tile_coords_for_slide": "data.tile_selection",
    "slide_quantification": "inference.quantify",
    "tissue_mask_rgb": "wsi.tissue",
    "train": "app.calls",
    "tumor_bool_from_gray": "wsi.label_maps",
}
"""The module of each name, and its name there if it is another one."""

# Unless this is set before its first import, by whichever library, albumentations asks the network for its newest
# version and warns when it cannot. It has no other switch.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'panda' has no attribute {name!r}")
    module, _, own = _PLACES[name].partition(":")
    found = operator.attrgetter(own or name)(importlib.import_module(f"panda.{module}"))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
