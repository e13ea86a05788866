"""Check a composed configuration before anything slow begins."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any

from omegaconf import DictConfig, ListConfig, Node
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from panda.app.build import Faults
from panda.app.command_line import suggest_key
from panda.app.hydra_job import is_typed
from panda.app.registry import SPECIAL, find_class, find_config, find_undeclared, list_slots
from panda.errors import ConfigError, suggest
from panda.settings import REFUSED, Settings, SettingsError, format_value, quote


def check_config(cfg: DictConfig, entry_point: str, faults: Faults | None = None) -> Any:
    """Check a composed configuration and return its settings, see `find_config`.

    Faults that were found before are raised with its own.

    Raises:
        ConfigError: With all faults: unknown and missing keys, classes, options, types, values and the rules between
            them, files that do not exist.
    """
    faults = faults or Faults()
    nodes = {str(key): _resolve(cfg, key, str(key), faults) for key in cfg}
    config = find_config(entry_point, nodes)
    known = {name: nodes.get(name) for name in config.model_fields}
    faults.add(*(f"{key}: there is no such key{suggest_key(key, known)}" for key in nodes if key not in known))
    check = _NodeCheck(config, nodes, faults)
    parts = {key: check.build_part(key, nodes[key]) for key in known if key in nodes}
    settings = None
    with faults.collect():
        settings = config(**parts)
    faults.raise_any()
    return settings


def _resolve(parent: DictConfig | ListConfig, name: Any, key: str, faults: Faults) -> Any:
    """Return a value as plain data; REFUSED if it is missing or refers to something that does not exist."""
    try:
        value = parent[name]
    except MissingMandatoryValue:
        faults.add(f"{key} is not given: write {key}=… on the command line")
        return REFUSED
    except OmegaConfBaseException as error:
        raw = parent._get_node(name, validate_access=False)
        literal = quote(f"{key}={raw._value()}") if isinstance(raw, Node) else key
        faults.add(
            f"{key}: {str(error).splitlines()[0]}; correct the ${{…}} in it, or escape it if it is text: {literal}"
        )
        return REFUSED
    if isinstance(value, ListConfig):
        children = [_resolve(value, index, f"{key}[{index}]", faults) for index in range(len(value))]
        return REFUSED if REFUSED in children else children
    if isinstance(value, DictConfig):
        return {child: _resolve(value, child, f"{key}.{child!s}", faults) for child in value}
    return value


def list_options(entry_point: str, path: str, node: Mapping[Any, Any]) -> Collection[str]:
    """Return the options of the class that a node at a path builds, none if the class cannot be found."""
    slot = list_slots(find_config(entry_point, {})).get(path)
    if slot is None:
        return ()
    with suppress(ConfigError):
        built = find_class(path, slot, str(node["_target_"]))
        return built.model_fields if issubclass(built, Settings) else read_signature(built, {})[0]
    return ()


class _NodeCheck:
    """Checks that each node builds only what its slot allows, from options that the class takes."""

    def __init__(self, config: type[Settings], nodes: Mapping[str, Any], faults: Faults) -> None:
        self.nodes = nodes
        self.faults = faults
        self.slots = list_slots(config)
        self._allowed = self._list_allowed_packages()

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

    def build_part(self, key: str, node: Any) -> Any:
        """Return the settings that a node describes, or a plain value; REFUSED if a rule cannot read it.

        Of settings and options with faults, the valid ones remain. Nothing is built from a value that would build what
        no slot declares. A class that is no settings is not built, because its task builds it.
        """
        undeclared = find_undeclared(key, node, self.slots)
        self.faults.add(*undeclared)
        if key not in self.slots or node is REFUSED or ("." in key and node is None):
            return REFUSED if undeclared else node
        slot = self.slots[key]
        if not isinstance(node, Mapping) or "_target_" not in node:
            derived = ", or a class derived from it" if slot.packages else ""
            self.faults.add(f"{key} has no _target_: give {slot.base.__module__}.{slot.base.__name__}{derived}")
            return REFUSED
        try:
            built = find_class(key, slot, str(node["_target_"]), self._allowed)
        except ConfigError as error:
            self.faults.add(*error.faults)
            return REFUSED
        options = {str(option): value for option, value in node.items() if not SPECIAL.fullmatch(str(option))}
        if not issubclass(built, Settings):
            return {"_target_": node["_target_"], **self._find_valid_options(key, options, built)}
        try:
            return built(**{option: self.build_part(f"{key}.{option}", value) for option, value in options.items()})
        except SettingsError as error:
            self.faults.add(*error.faults)
            return error.checked

    def _find_valid_options(self, key: str, options: Mapping[str, Any], built: type) -> dict[str, Any]:
        """Check options against the signature of a class, and return those that fit it."""
        known, hints = read_signature(built, options)
        valid = {}
        for name, given in options.items():
            faults = []
            value = self.build_part(f"{key}.{name}", given)
            if name not in known:
                faults.append(
                    f"{key}.{name}={given}: {built.__module__}.{built.__name__} has no such option"
                    f"{suggest(name, known)}"
                )
            elif name in hints and value is not REFUSED:
                faults += _find_type_faults(f"{key}.{name}", value, hints[name])
            self.faults.add(*faults)
            if not faults and value is not REFUSED:
                valid[name] = value
        return valid


def read_signature(built: type, options: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
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


def _find_type_faults(key: str, value: Any, hint: Any) -> list[str]:
    """Return the fault of a value that is not of a type, if pydantic can check the type."""
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return []  # the constructor checks a library's own type
    try:
        # Lax lets YAML lists stand for tuples and text for paths, but would also take "3" for a number.
        strict = isinstance(value, str) and _list_kinds(hint) <= {int, float, bool, NoneType}
        adapter.validate_python(value, strict=strict)
    except ValidationError as error:
        wanted = "; ".join(dict.fromkeys(e["msg"].lower() for e in error.errors()))
        return [f"{key}={format_value(value)} is of the wrong kind: {wanted}"]
    return []


def _list_kinds(hint: Any) -> set[Any]:
    """Return the members of a union and of the unions in it, or the type itself."""
    if typing.get_origin(hint) not in (typing.Union, UnionType):
        return {hint}
    return set().union(*map(_list_kinds, typing.get_args(hint)))
