"""Which class each group of the configuration has to name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

AUGMENTATION = "panda.data.augment.Augmentation"
KINDS = {
    "data": "panda.data.datamodule.PatchDataModule",
    "data.augment": AUGMENTATION,
    "data.draw": "panda.synthetic.dataset.SyntheticSpec",
    "loss": "torch.nn.Module",
    "augment": AUGMENTATION,
    "optim": "panda.tasks.optim.Optim",
    "trainer": "pytorch_lightning.Trainer",
    "logger": "panda.app.tracking.Tracking",
    "quantify": "panda.inference.quantify.QuantifySettings",
    "engine": "panda.inference.compute.EngineSettings",
    "tiles": "panda.app.guidance.TileSettings",
}
"""What the target of a node has to be, or to be derived from."""
KINDS_OF_TASK = {
    "segmentation": {
        "task": "panda.app.segmentation.SegmentationSettings",
        "model": "panda.models.segmentation.Segmenter",
    },
    "grading": {"task": "panda.app.grading.GradingSettings", "model": "panda.models.mil.MILNet"},
}
"""The same, where it depends on `task.name`."""
KINDS_OF_AUDIT = {
    "audit": "panda.app.audit.AuditSettings",
    "data": "panda.data.settings.FolderSettings",
    "data.draw": KINDS["data.draw"],
}
"""The same of the audit, which needs no network and does not wait for the libraries that bring one."""


def kinds_of(task: Any) -> Mapping[str, str]:
    """The kinds of a run's nodes: path of a class by the key of a node.

    Args:
        task: The node `task`; where it names none that is known, nothing is said of what depends on it.
    """
    name = task.get("name") if isinstance(task, Mapping) else None
    return KINDS | KINDS_OF_TASK.get(str(name), {})


def imported(path: str) -> Any:
    """What a dotted path names.

    Raises:
        ImportError, AttributeError: If there is no such thing.
    """
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
