"""Explain why Hydra refuses a command line: the key, near names, how to quote."""

from __future__ import annotations

import contextlib
import re
import shlex
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panda.app.hydra_job import AUTO
from panda.app.registry import SPECIAL
from panda.app.resume import RESUMABLE
from panda.choices import CONF, find_own_conf, name_command
from panda.errors import INSTALL_CLUSTER, ConfigError, suggest
from panda.settings import quote

ENTRY_POINTS = ("train", "infer", "audit", "features")
_LISTED = "--help lists the keys"
OWN = {"hydra", "run_dir"}
"""Keys that are not typed."""


def parse_arguments(arguments: Sequence[str], entry_point: str) -> Namespace:
    """Parse the options of Hydra, and refuse to run an entry point with the configuration of another one."""
    parsed, unknown = get_args_parser().parse_known_args(arguments)
    if unknown and entry_point:
        raise ConfigError(f"{unknown[0]}: there is no such option; a key is typed without dashes, {_LISTED}")
    name = parsed.config_name
    if name in ENTRY_POINTS and name != entry_point:
        raise ConfigError(
            f"--config-name={name}: that is the configuration of {name_command(name)}: run it, or leave the option out"
        )
    return parsed


def explain(error: Exception, arguments: Sequence[str], entry_point: str = "") -> tuple[str, str | None]:
    """Return in a sentence why Hydra could not compose a configuration, and the argument at fault if it is known."""
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        return _explain_unreadable(error.override), error.override
    if isinstance(error, MissingConfigException) and (found := _explain_missing(error, arguments)):
        return found
    if (several := re.search(r"Ambiguous value for argument '(.*)'\n", str(error))) is not None:
        return (
            f"{several[1]}: a comma separates values; sweep over them with -m, or quote a value that has a comma: "
            f"{quote(several[1])}"
        ), several[1]
    absent = getattr(cause, "full_key", None) or "".join(re.findall(r"^Could not override '(\w+)'\. No", str(error)))
    if with_it := _find_required_choice(absent):
        given = next((text for text in arguments if f"{text.partition('=')[0]}.".startswith(f"{absent}.")), None)
        return f"{given or absent} needs {with_it}: give both", given
    if isinstance(cause, OmegaConfBaseException) and str(error).startswith("Could not override"):
        key = str(cause.full_key)
        given = _find_argument(key, arguments)
        node = OmegaConf.to_container(cause.parent_node) if isinstance(cause.parent_node, DictConfig) else {}
        assert isinstance(node, dict)
        outside: Any = cause.parent_node._get_root() if isinstance(cause.parent_node, DictConfig) else ()
        suggested = suggest_key(str(cause.key), node, key[: -len(str(cause.key))], outside)
        if given and _takes(entry_point, key, node):
            suggested = f" in conf: add it with +{given}"
        if any(text.startswith("resume=") and text != f"resume={AUTO}" for text in arguments):
            suggested = suggested * ("did you mean" in suggested)  # its task may have other keys than those here
            suggested += f"; a resumed run keeps its choices, what can be changed is {', '.join(RESUMABLE)}"
        return f"{given or key}: there is no such key{suggested}", given
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        said = _explain_broken_file(error)
    else:
        said = _explain_own_choice(error, arguments) or (
            f"{_shorten(error)}; the arguments were {shlex.join(arguments)}, --help lists choices and keys"
        )
    return said, None


def _shorten(error: Exception) -> str:
    """Return the first line of an error of Hydra that says why, without the name of a choice before it."""
    lines = (str(error) or str(error.__cause__)).splitlines()
    first = lines[1] if lines[0].endswith("raised while composing config:") and lines[1:] else lines[0]
    return re.sub(r"^In '[^']+': ", "", first)


def _explain_own_choice(error: Exception, arguments: Sequence[str]) -> str:
    """Return which file of the user's own choices Hydra cannot use, its key and why; empty if there is none."""
    if (own := find_own_conf()) is None:
        return ""
    message = str(error) or str(error.__cause__)
    if (named := re.search(r"[Ii]n '([^']+)'", message.splitlines()[0])) is not None:
        file, key = own / f"{named[1]}.yaml", re.search(r"full_key: (\S+)", message)
        return f"{file}: {f'{key[1]}: ' if key else ''}{_shorten(error)}; correct the file" if file.is_file() else ""
    typed = (text.partition("=") for text in arguments)
    files = [str(file) for group, _, choice in typed if (file := own / group / f"{choice}.yaml").is_file()]
    return f"{_shorten(error)}; correct {', '.join(files)}" if files else ""


def _takes(entry_point: str, key: str, node: Mapping[Any, Any]) -> bool:
    """Return whether the class that a node builds takes a key that no file of `conf` has."""
    path, _, name = key.rpartition(".")
    if "_target_" not in node or not entry_point:
        return False
    from panda.app.config_check import list_options  # noqa: PLC0415  (slow imports for a refusal only)

    return name in list_options(entry_point, path, node)


def _explain_missing(error: MissingConfigException, arguments: Sequence[str]) -> tuple[str, str | None] | None:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    given = _find_argument(group, arguments)
    if choice.startswith("submitit_"):
        return f"{given}: submitit and its plugin for Hydra are not installed: {INSTALL_CLUSTER}", given
    return (
        (f"{group}={choice}: there is no such choice{suggest(choice, error.options)}", given) if error.options else None
    )


def _find_argument(key: str, arguments: Sequence[str]) -> str | None:
    return next((text for text in arguments if text.partition("=")[0].lstrip("+~") == key), None)


def suggest_key(key: str, node: Mapping[Any, Any], path: str = "", outside: Collection[Any] = frozenset()) -> str:
    """Return " (did you mean group.key?)" for a key that a node does not have, or how keys are listed.

    It names each group in the node that has the key, otherwise the group and choice that have it, otherwise near keys.
    `path` is the path of the node with a final dot, or empty for the root. `outside` has the keys of the root, which
    are typed without a group.
    """
    known = {str(name): value for name, value in node.items() if name not in OWN and not SPECIAL.fullmatch(str(name))}
    inside = [f"{path}{name}.{key}" for name, value in known.items() if isinstance(value, Mapping) and key in value]
    if not inside and path and key in outside:
        inside = [key]
    if not inside and not path:
        inside = _find_in_other_choices(key, known)
    return f" (did you mean {', '.join(inside)}?)" if inside else suggest(key, known) or f"; {_LISTED}"


def _find_in_other_choices(key: str, groups: Collection[str]) -> list[str]:
    """Return the key and the choice that has it, if exactly one group has such a choice."""
    found: dict[str, str] = {}
    for group, choice, content in _read_choices():
        # A choice with `@package _global_` has the keys of its group under the name of the group.
        own = content.get(group)
        if group in groups and key in (own if isinstance(own, dict) else content):
            found.setdefault(group, f"{group}.{key} with {group}={choice}")
    return list(found.values()) if len(found) == 1 else []


def _find_required_choice(group: str) -> str:
    """Return the choice of another group that adds this group, such as `task=grading`, or an empty text."""
    for other, choice, content in _read_choices():
        if any(isinstance(entry, dict) and f"/{group}" in entry for entry in list_defaults(content)):
            return f"{other}={choice}"
    return ""


def _read_choices() -> Iterator[tuple[str, str, dict[Any, Any]]]:
    """Yield each choice of each group: name of the group, name of the choice, content."""
    for file in _list_files():
        with contextlib.suppress(Exception):  # a broken file of another choice is not the fault here
            content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
            if isinstance(content, dict):
                yield file.parent.name, file.stem, content


def list_defaults(content: Any) -> list[Any]:
    """Return the entries of the list `defaults` in the content of a file; none if it has no such list."""
    defaults = content.get("defaults") if isinstance(content, dict) else None
    return defaults if isinstance(defaults, list) else []


def _list_files() -> list[Path]:
    return [file for conf in (CONF, find_own_conf()) if conf for file in sorted(conf.glob("*/*.yaml"))]


def _explain_broken_file(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """Return which file of `conf` is no YAML. The decoder of text does not know its file."""
    mark = getattr(error, "problem_mark", None)
    names = (
        [f"{mark.name}, line {mark.line + 1}"] if mark else [str(file) for file in _list_files() if not _is_text(file)]
    )
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{', '.join(names)}: no YAML ({reason}); correct the file"


def _is_text(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _explain_unreadable(override: str) -> str:
    wanted = "is no key=value; --help lists the keys"
    if "=" not in override:
        return f"{override} {wanted}"
    suggested = quote(override)
    try:
        OverridesParser.create().parse_override(shlex.split(suggested)[0])
    except HydraException:
        return f"{override} {wanted}"
    return f"{override}: the value has characters with a special meaning; quote it: {suggested}"
