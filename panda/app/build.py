"""Build the objects that a configuration describes, and collect the faults on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from panda.app.registry import find_class, find_slots
from panda.errors import ConfigError, OptionError, PandaError, raise_exhaustion


class Faults:
    """Collects the faults of a configuration, so that all are reported at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, *faults: str) -> None:
        """Add sentences that each name key, value and remedy, and skip those that are known already."""
        self.found += [fault for fault in dict.fromkeys(faults) if fault not in self.found]

    def names(self, key: str) -> bool:
        """Return whether a fault is about a key or one below it."""
        return any(fault.startswith((f"{key}=", f"{key}.")) for fault in self.found)

    @contextmanager
    def collect(self, key: str = "") -> Iterator[None]:
        """Take over the faults of a ConfigError raised inside; `key` names the node of an `OptionError`."""
        try:
            yield
        except ConfigError as error:
            raise_exhaustion(error)
            self.add(*(error.prefix_node(key) if isinstance(error, OptionError) else error).faults)

    def build(self, plain: Mapping[str, Any], key: str, /, **extra: Any) -> Any:
        """Build a node as `build` does. If its constructor refuses, take over its faults and return None."""
        with self.collect(key):
            return build(plain, key, **extra)

    def raise_any(self) -> None:
        """Raise all faults at once, if there is any."""
        if self.found:
            raise ConfigError(self.found)


def build(plain: Mapping[str, Any], key: str, /, **extra: Any) -> Any:
    """Build the object that a node describes, and the objects of its options that have a slot.

    `plain` is the resolved configuration, which `check_config` passed. `extra` replaces options of the node. Raise a
    ConfigError for any error of the constructor, except for a PandaError, which passes as it is.
    """
    parent, _, name = key.rpartition(".")
    node, slots = (plain[parent] if parent else plain)[name], find_slots(plain)
    built = find_class(key, slots[key], str(node["_target_"]), plain.get("allow_packages") or [])
    options = {
        name: build(plain, f"{key}.{name}") if f"{key}.{name}" in slots and value is not None else value
        for name, value in node.items()
        if name != "_target_"
    }
    try:
        return built(**options | extra)
    except PandaError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}._target_={node['_target_']} refuses its options: {error}") from error
