"""The registry of what a configuration may build: for each node one class, or the classes of a few packages.

It follows from the settings of an entry point: a field that holds settings builds its class, and a field with a `Slot`
builds what the slot allows.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from panda.errors import ConfigError
from panda.settings import Settings

SPECIAL = re.compile(r"_\w+_")
"""Keys that Hydra gives a meaning: `_target_`, `_partial_`, `_args_` and others."""


@dataclass(frozen=True)
class Slot:
    """What one node of a configuration may build.

    Attributes:
        base: A class.
        packages: Packages whose classes derived from `base` may be built too. If empty, only `base` is built.
    """

    base: type
    packages: tuple[str, ...] = ()


def find_config(entry_point: str, plain: Mapping[str, Any]) -> type[Settings]:
    """Return the class of the configuration of an entry point.

    That of `train` depends on the task, and that of `infer` on whether features are given. An unknown task, which is a
    fault, gets the class of segmentation. No other class is imported, because an audit does not wait for torch.
    """
    task = plain.get("task")
    name = task.get("name") if isinstance(task, Mapping) else None
    module, name = {
        "train": ("grading_config", "GradingConfig")
        if name == "grading"
        else ("segmentation_config", "SegmentationConfig"),
        "infer": ("inference_config", "InferenceConfig" if plain.get("features") is None else "FeatureInferenceConfig"),
        "collect": ("collection", "CollectionConfig"),
        "audit": ("audit", "AuditConfig"),
        "audit_collection": ("audit_collection", "AuditCollectionConfig"),
        "features": ("features_config", "FeaturesConfig"),
    }[entry_point]
    found: type[Settings] = getattr(importlib.import_module(f"panda.app.{module}"), name)
    return found


def list_slots(kind: type[Settings], path: str = "") -> dict[str, Slot]:
    """Return the slots of settings by the keys of their nodes. `path` begins the keys, with a final dot."""
    slots: dict[str, Slot] = {}
    for name, field in kind.model_fields.items():
        slot = next((part for part in field.metadata if isinstance(part, Slot)), None)
        for part in (field.annotation, *get_args(field.annotation)):
            if inspect.isclass(part) and issubclass(part, Settings):
                slot = slot or Slot(part)
                slots |= list_slots(part, f"{path}{name}.")
        if slot is not None:
            slots[f"{path}{name}"] = slot
    return slots


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
        if target != (base := f"{slot.base.__module__}.{slot.base.__name__}"):
            raise ConfigError(f"{key}._target_={target} is not allowed: {key} builds {base} only")
        return slot.base
    packages = (*slot.packages, *allowed)
    refusal = ConfigError(
        f"{key}._target_={target} is not allowed: give a class derived from {slot.base.__name__} and defined in "
        f"{', '.join(packages)}. A package of your own is allowed by allow_packages=[PACKAGE]; type it with each "
        "command, also with resume=…, because it is never read from a file"
    )
    module, _, name = target.rpartition(".")
    if not (_is_inside(module, packages) or module in {package.partition(".")[0] for package in packages}):
        raise refusal
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's own module may raise any
        raise ConfigError(f"{key}._target_={target} cannot be used: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, slot.base) and _is_inside(found.__module__, packages)):
        raise refusal
    if inspect.isabstract(found):
        raise ConfigError(f"{key}._target_={target} is abstract: give a class derived from it")
    return found


def _is_inside(module: str, packages: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)
