"""Build the objects that a configuration describes, and collect the faults on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from panda.app.registry import find_class, list_slots
from panda.errors import ConfigError, PandaError, name_options, raise_exhaustion
from panda.settings import Settings


class Faults:
    """Collects the faults of a configuration, so that all are reported at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, *faults: str) -> None:
        """Add sentences that each name key, value and remedy, and skip those that are known already."""
        self.found += [fault for fault in dict.fromkeys(faults) if fault not in self.found]

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Take over the faults of a PandaError raised inside."""
        try:
            yield
        except PandaError as error:
            raise_exhaustion(error)
            self.add(*(error.faults if isinstance(error, ConfigError) else [str(error)]))

    def raise_any(self) -> None:
        """Raise all faults at once, if there is any."""
        if self.found:
            raise ConfigError(self.found)


def build(config: type[Settings], plain: Mapping[str, Any], key: str, /, **extra: Any) -> Any:
    """Build the object that a node describes, and the objects of its options that have a slot.

    `plain` is the resolved configuration of class `config`, which `check_config` passed. `extra` replaces options of
    the node. Raise a ConfigError for any error of the constructor, except for a PandaError, which passes as it is.
    """
    parent, _, name = key.rpartition(".")
    node, slots = (plain[parent] if parent else plain)[name], list_slots(config)
    built = find_class(key, slots[key], str(node["_target_"]), plain.get("allow_packages") or [])
    options = {
        name: build(config, plain, f"{key}.{name}") if f"{key}.{name}" in slots and value is not None else value
        for name, value in node.items()
        if name != "_target_"
    }
    try:
        with name_options(key):
            return built(**options | extra)
    except PandaError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}._target_={node['_target_']} refuses its options: {error}") from error
