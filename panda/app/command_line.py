"""What a command line that Hydra refuses has wrong, in our words: the key, what is near it, how to quote."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panda.errors import suggest
from panda.files import CONF

OWN = {"hydra", "run_dir"}
"""Keys that are not for the command line."""


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Says in a sentence why no configuration could be made.

    Args:
        error: What Hydra raised.
        arguments: Of the command line.
    """
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice}: there is no such choice{suggest(choice, error.options)}"
    if (several := re.search(r"Ambiguous value for argument '(.*)'\n", str(error))) is not None:
        return (
            f"{several[1]}: a comma separates values; sweep over them with -m, or quote a value that holds one: "
            f"{quoted(several[1])}"
        )
    absent = getattr(cause, "full_key", None) or "".join(re.findall(r"^Could not override '(\w+)'\. No", str(error)))
    if with_it := _brought_by(absent):
        given = next((text for text in arguments if _of_group(text, absent)), absent)
        return f"{given} needs {with_it}: give both"
    if isinstance(cause, OmegaConfBaseException) and str(error).startswith("Could not override"):
        key = str(cause.full_key)
        given = next((text for text in arguments if text.partition("=")[0] == key), key)
        node = OmegaConf.to_container(cause.parent_node) if isinstance(cause.parent_node, DictConfig) else {}
        assert isinstance(node, dict)
        return f"{given}: there is no such key{likely(str(cause.key), node, key[: -len(str(cause.key))])}"
    return f"{str(error).splitlines()[0]}; given was {shlex.join(arguments)}, --help lists choices and keys"


def likely(key: str, node: Mapping[Any, Any], path: str = "") -> str:
    """Say which key was meant by one that is not there.

    Args:
        key: Of the node.
        node: As plain data.
        path: Of the node, ending in a dot; empty for the root.

    Returns:
        " (did you mean group.key?)" with each group in the node that has the key; or the one that has it with another
        choice, and that choice; else what `suggest` says.
    """
    known = {str(name): value for name, value in node.items() if name not in OWN}
    inside = [f"{path}{name}.{key}" for name, value in known.items() if isinstance(value, Mapping) and key in value]
    if not inside and not path:
        inside = _of_other_choices(key, known)
    return f" (did you mean {', '.join(inside)}?)" if inside else suggest(key, known)


def _of_other_choices(key: str, groups: Collection[str]) -> list[str]:
    """The key in the one of the groups that has it with some choice, and the first such choice; else nothing."""
    found: dict[str, str] = {}
    for group, choice, content in _choices():
        # What a choice that bears on all of the configuration gives its own group stands under the group's name.
        own = content.get(group)
        if group in groups and key in (own if isinstance(own, dict) else content):
            found.setdefault(group, f"{group}.{key} with {group}={choice}")
    return list(found.values()) if len(found) == 1 else []


def _of_group(override: str, key: str) -> bool:
    """Whether an override is of a key, or of one inside it."""
    return f"{override.partition('=')[0]}.".startswith(f"{key}.")


def _brought_by(group: str) -> str:
    """The choice of another group that brings this one, `task=grading`; empty where none does."""
    for other, choice, content in _choices():
        if any(isinstance(entry, dict) and f"/{group}" in entry for entry in content.get("defaults", [])):
            return f"{other}={choice}"
    return ""


def _choices() -> Iterator[tuple[str, str, dict[Any, Any]]]:
    """Each choice of each group: both their names, and what it says."""
    for file in sorted(CONF.glob("*/*.yaml")):
        with contextlib.suppress(Exception):  # a broken file of another choice is not what is to be told
            content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
            if isinstance(content, dict):
                yield file.parent.name, file.stem, content


def quoted(override: str) -> str:
    """An override as one types it in a shell, its value taken as it stands.

    Args:
        override: `key=value` with any characters in the value.
    """
    key, _, value = override.partition("=")
    # Hydra wants a quote escaped, and doubled the backslashes that come before one.
    text = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return shlex.quote(f'{key}="{text}"')


def _unreadable(override: str) -> str:
    wanted = "is no key=value; --help lists the keys"
    if "=" not in override:
        return f"{override} {wanted}"
    suggested = quoted(override)
    try:
        OverridesParser.create().parse_override(shlex.split(suggested)[0])
    except HydraException:
        return f"{override} {wanted}"
    return f"{override}: the value holds characters with a meaning of their own; quote it: {suggested}"
