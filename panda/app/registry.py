"""The registry of what a configuration may build: for each node one class, or the classes of a few packages."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from panda.errors import ConfigError

SPECIAL = re.compile(r"_\w+_")
"""Keys that Hydra gives a meaning: `_target_`, `_partial_`, `_args_` and others."""


@dataclass(frozen=True)
class Slot:
    """What one node of a configuration may build.

    Attributes:
        base: Dotted path of a class.
        packages: Packages whose classes derived from `base` may be built too. If empty, only `base` is built.
    """

    base: str
    packages: tuple[str, ...] = ()


AUGMENTATION = Slot("panda.data.augment.Augmentation")
SYNTHETIC_DATA = Slot("panda.synthetic.dataset.SyntheticSpec")
SLOTS = {
    "data": Slot("panda.data.datamodule.DataSettings"),
    "data.augment": AUGMENTATION,
    "data.draw": SYNTHETIC_DATA,
    "loss": Slot(
        "torch.nn.Module",
        (
            "panda.models",
            "torch.nn",
            "segmentation_models_pytorch.losses",
            # Other parts of torchmetrics download or unpickle weights.
            "torchmetrics.classification",
            "torchmetrics.regression",
            "torchmetrics.segmentation",
        ),
    ),
    "augment": AUGMENTATION,
    "optim": Slot("panda.tasks.optim.Optim"),
    "trainer": Slot("pytorch_lightning.Trainer"),
    "logger": Slot("panda.app.tracking.Tracking"),
    "quantify": Slot("panda.inference.quantify.QuantifySettings"),
    "engine": Slot("panda.inference.compute.EngineSettings"),
    "tiles": Slot("panda.app.guidance.TileSettings"),
}
"""Slots of training and inference, by the key of the node. A node that is not listed builds nothing."""
SLOTS_OF_TASK = {
    "segmentation": {
        "task": Slot("panda.app.segmentation.SegmentationSettings"),
        "model": Slot("panda.models.segmentation.Segmenter", ("panda.models",)),
    },
    "grading": {
        "task": Slot("panda.app.grading.GradingSettings"),
        "model": Slot("panda.models.mil.MILNet", ("panda.models",)),
    },
}
"""Slots that depend on `task.name`."""
SLOTS_OF_AUDIT = {
    "audit": Slot("panda.app.audit.AuditSettings"),
    "data": Slot("panda.data.settings.FolderSettings"),
    "data.draw": SYNTHETIC_DATA,
}
"""Slots of the audit, whose classes need no torch."""


def find_slots(plain: Mapping[str, Any]) -> Mapping[str, Slot]:
    """Return the slots of a resolved configuration by the keys of its nodes.

    An unknown task, which is a fault elsewhere, gets the slots of segmentation.
    """
    if "audit" in plain:
        return SLOTS_OF_AUDIT
    task = plain.get("task")
    name = task.get("name") if isinstance(task, Mapping) else None
    return SLOTS | SLOTS_OF_TASK.get(str(name), SLOTS_OF_TASK["segmentation"])


def find_undeclared(key: str, node: Any, slots: Mapping[str, Slot]) -> list[str]:
    """Return one fault for each place of a node of plain data that would build something and has no slot."""
    if isinstance(node, list):
        return [fault for i, child in enumerate(node) for fault in find_undeclared(f"{key}[{i}]", child, slots)]
    if not isinstance(node, Mapping):
        return []
    faults = []
    for name, child in node.items():
        if SPECIAL.fullmatch(str(name)) and not (name == "_target_" and key in slots):
            faults.append(f"{key}.{name}={child} is not allowed: a configuration builds {', '.join(slots)} only")
        faults += find_undeclared(f"{key}.{name}", child, slots)
    return faults


def find_class(key: str, slot: Slot, target: str, allowed: Sequence[str] = ()) -> type:
    """Return the class that a `_target_` names. No module outside the slot's packages is imported.

    Args:
        key: Key of the node, for the message.
        slot: What the node may build.
        target: Dotted path of a class.
        allowed: Further packages, which the user typed as `allow_packages`.

    Raises:
        ConfigError: If the slot does not allow the class, or it cannot be imported.
    """
    if not slot.packages:
        if target != slot.base:
            raise ConfigError(f"{key}._target_={target} is not allowed: {key} builds {slot.base} only")
        return _import_class(target)
    packages = (*slot.packages, *allowed)
    base = _import_class(slot.base)
    refusal = ConfigError(
        f"{key}._target_={target} is not allowed: give a class derived from {base.__name__} and defined in "
        f"{', '.join(packages)}. A package of your own is allowed by allow_packages=[PACKAGE]; type it with each "
        "command, also with resume=…, because it is never read from a file"
    )
    module = target.rpartition(".")[0]
    if not (_is_inside(module, packages) or module in {package.partition(".")[0] for package in packages}):
        raise refusal
    try:
        found: Any = _import_class(target)
    except Exception as error:  # a user's own module may raise any
        raise ConfigError(f"{key}._target_={target} cannot be used: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, base) and _is_inside(found.__module__, packages)):
        raise refusal
    return found


def _import_class(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _is_inside(module: str, packages: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)
