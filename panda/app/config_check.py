"""Check a composed configuration before anything slow begins."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from panda.app.build import Faults, build
from panda.app.command_line import quote, suggest_key
from panda.app.hydra_job import is_typed
from panda.app.registry import find_class, find_slots, find_undeclared
from panda.app.value_checks import find_value_faults
from panda.errors import ConfigError, suggest
from panda.settings import REFUSED, Settings, format_value

PLAIN_TYPES: dict[str, dict[str, Any]] = {
    "train": {
        "seed": int, "test_slides": bool, "debug": bool, "resume": str | None, "segmentation_checkpoint": str | None,
        "cost_ratio": float | None, "threshold_per_provider": bool, "colour_map": Literal["jet", "viridis"],
        "allow_packages": list[str],
    },
    "infer": {
        "checkpoint": str, "grading_checkpoint": str | None, "slides": str, "output": str, "debug": bool,
        "provider": str | None, "labels": str | None, "mpp_override": float | None,
        "reader": Literal["auto", "openslide", "fast"], "colour_map": Literal["jet", "viridis"],
    },
    "audit": {"debug": bool},
}  # fmt: skip
"""Types of the keys that belong to no group."""
KEYS = {
    "train": {
        "data", "model", "loss", "augment", "optim", "trainer", "logger", "quantify", "engine", "task", "tiles",
        "name", "threshold", "criterion", "run_dir", *PLAIN_TYPES["train"],
    },
    "infer": {"quantify", "engine", "threshold", "run_dir", *PLAIN_TYPES["infer"]},
    "audit": {"data", "audit", "run_dir", *PLAIN_TYPES["audit"]},
}  # fmt: skip


def check_config(cfg: DictConfig, entry_point: str, refused: Faults | None = None) -> None:
    """Check keys, missing values, classes and values of a composed configuration, and raise every fault.

    If only settings have faults, `refused` takes them instead, so that a caller can add more and raise all at once.
    """
    faults, known = Faults(), KEYS[entry_point]
    asked: Any = OmegaConf.to_container(cfg, resolve=False)
    given = list(map(str, cfg))
    nodes_by_key = {name: asked.get(name) for name in known}
    faults.add(*(f"{key}: there is no such key{suggest_key(key, nodes_by_key)}" for key in given if key not in known))
    absent = sorted(known - set(given) - {"tiles"})
    faults.add(*(f"{key} was taken away, and a run needs it: remove ~{key}" for key in absent))
    try:
        missing = sorted(map(str, OmegaConf.missing_keys(cfg)))
        faults.add(*(f"{key} is not given: write {key}=… on the command line" for key in missing))
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        faults.add(f"{str(error).splitlines()[0]}; correct the ${{…}} in it")
        faults.raise_any()
    assert isinstance(plain, dict)
    nodes = {str(key): value for key, value in plain.items()}
    check = _NodeCheck(nodes, faults)
    for key in check.slots:
        check.check_slot(key)
    faults.add(*find_value_faults(nodes, entry_point))
    _check_plain_values(nodes, entry_point, faults)
    if faults.found or refused is None:
        faults.add(*check.refused.found)
    else:
        refused.add(*check.refused.found)
    faults.raise_any()


def _check_plain_values(nodes: Mapping[str, Any], entry_point: str, faults: Faults) -> None:
    """Check the types of the keys that belong to no group."""
    if entry_point == "train":
        from panda.tasks.threshold import find_criterion  # noqa: PLC0415

        with faults.collect():
            find_criterion(str(nodes.get("criterion")))
    for key, hint in PLAIN_TYPES[entry_point].items():
        value = nodes.get(key)
        if value == "":
            faults.add(f"{key} is empty: write {key}=…")
        elif hint in (str, str | None) and isinstance(value, int | float):
            faults.add(f"{key}={value} was read as a number: quote it, {quote(f'{key}={value}')}")
        else:
            _check_type(key, value, hint, faults)


class _NodeCheck:
    """Checks that each node builds only what its slot allows, from options that the class takes.

    `refused` gets the faults of settings, and `faults` all others.
    """

    def __init__(self, nodes: Mapping[str, Any], faults: Faults) -> None:
        self.nodes = nodes
        self.faults = faults
        self.refused = Faults()
        self.slots = find_slots(nodes)
        self._allowed = self._list_allowed_packages()
        for key, node in nodes.items():
            faults.add(*find_undeclared(key, node, self.slots))

    def _list_allowed_packages(self) -> Sequence[str]:
        """Return the user's own packages that may define a class. They count only when typed."""
        given = self.nodes.get("allow_packages")
        if given and not is_typed("allow_packages"):
            self.faults.add(
                f"allow_packages={given} comes from a file: remove it there, and type it with the command if you trust "
                "these packages"
            )
            return []
        return given if isinstance(given, list) and all(isinstance(name, str) for name in given) else []

    def check_slot(self, key: str) -> None:
        """Check the node at the key of a slot, if there is one."""
        slot = self.slots[key]
        parent, _, name = key.rpartition(".")
        above = self.nodes.get(parent) if parent else self.nodes
        if not isinstance(above, Mapping) or name not in above or (parent and above[name] is None):
            return
        node = above[name]
        if not isinstance(node, Mapping) or "_target_" not in node:
            derived = ", or a class derived from it" if slot.packages else ""
            self.faults.add(f"{key} has no _target_: give {slot.base}{derived}")
            return
        with self.faults.collect():
            built = find_class(key, slot, str(node["_target_"]), self._allowed)
            options = {str(option): value for option, value in node.items() if option != "_target_" and value != "???"}
            if issubclass(built, Settings):
                self._check_settings(key, options, built)
            else:
                self._check_options(key, options, built)

    def _check_settings(self, key: str, options: dict[str, Any], built: type[Settings]) -> None:
        """Check options by making the settings from them."""
        for name, value in options.items():
            if f"{key}.{name}" in self.slots and value is not None:
                options[name] = REFUSED
                with suppress(ConfigError):  # the check of its own slot reports it
                    options[name] = build(self.nodes, f"{key}.{name}")
        with self.refused.collect(key):
            built(**options)

    def _check_options(self, key: str, options: Mapping[str, Any], built: type) -> None:
        """Check options against the signature of a class."""
        known, hints = _read_signature(built, options)
        for name, value in options.items():
            if name not in known:
                self.faults.add(
                    f"{key}.{name}={value}: {built.__module__}.{built.__name__} has no such option"
                    f"{suggest(name, known)}"
                )
            elif name in hints and f"{key}.{name}" not in self.slots:
                _check_type(f"{key}.{name}", value, hints[name], self.faults)


def _read_signature(built: type, options: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the names of the options that a class takes, and the types of those that state one.

    A class that passes `**kwargs` on takes the options of its bases too, and of the class that it wraps, if it names
    them by `list_wrapped_options`.
    """
    known: list[str] = []
    hints: dict[str, Any] = {}
    for kind in built.__mro__:
        if "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known += [name for name, parameter in parameters.items() if parameter.kind in named and name != "self"]
        with suppress(NameError, TypeError):
            hints = typing.get_type_hints(kind.__init__) | hints  # type: ignore[misc]
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            return known, hints
    wrapped = getattr(built, "list_wrapped_options", None)
    return known + (list(wrapped(options)) if wrapped else []), hints


def _check_type(key: str, value: Any, hint: Any, faults: Faults) -> None:
    """Check a value against a type, if pydantic can check the type."""
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return  # the constructor checks a library's own type
    try:
        # Lax lets YAML lists stand for tuples and text for paths, but would also take "3" for a number.
        strict = isinstance(value, str) and _list_kinds(hint) <= {int, float, bool, NoneType}
        adapter.validate_python(value, strict=strict)
    except ValidationError as error:
        wanted = "; ".join(dict.fromkeys(e["msg"].lower() for e in error.errors()))
        faults.add(f"{key}={format_value(value)} is of the wrong kind: {wanted}")


def _list_kinds(hint: Any) -> set[Any]:
    """Return the members of a union and of the unions in it, or the type itself."""
    if typing.get_origin(hint) not in (typing.Union, UnionType):
        return {hint}
    return set().union(*map(_list_kinds, typing.get_args(hint)))
