"""What a command takes: `--help` lists its groups and keys, `--help KEY` says all of one of them.

Meanings are the comments of the files in `conf` and the docstrings of the settings; values and bounds are the types of
the settings.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic.fields import FieldInfo

from panda.app.command_line import list_defaults, suggest_key
from panda.app.registry import SPECIAL, find_class, find_config, list_slots
from panda.choices import CONF, find_files, name_command
from panda.errors import ConfigError
from panda.settings import Settings, describe_values, format_value

_COMMANDS = """  GROUP=CHOICE … KEY=VALUE …    one job
  -m KEY=A,B …                  a sweep over all combinations
  --help GROUP, --help KEY      choices and keys of a group; meaning, values, unit and default of a key
  --cfg job --resolve           print the configuration"""
_LINE = re.compile(r"(?P<indent>\s*)(?:- )?(?:override )?(?P<key>[\w/@.]+):.*?(?:\s# (?P<comment>.*))?")
_ENTRY = re.compile(r"    (\w+): (.*)")
_UNIT = re.compile(
    r"(?<![\w/])(µm/px|µm per px|µm²|mm²|µm|px|MiB|%|seconds|epochs|share)(?!\w)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Key:
    """What is known of a key.

    Attributes:
        name: The key, such as `data.stride`.
        default: Its value, as it is typed.
        comment: The comment beside it in its file of `conf`.
        meaning: What the docstring of its settings says.
        values: The values that it takes, in words.
        is_added: No file of `conf` has it, so that it is typed with a `+`.
    """

    name: str
    default: str
    comment: str = ""
    meaning: str = ""
    values: str = ""
    is_added: bool = False

    @property
    def unit(self) -> str:
        """The unit of a number, if the texts name one."""
        found = _UNIT.search(f"{self.comment} {self.meaning}") if "number" in self.values else None
        return found[1] if found else ""

    def describe(self) -> str:
        """Return all of it."""
        rows = {"meaning": self.meaning or self.comment, "note": self.comment if self.meaning else ""}
        rows |= {"values": self.values, "unit": self.unit, "default": self.default}
        rows["typed"] = f"+{self.name}=…, because no file of conf has it" if self.is_added else f"{self.name}=…"
        return "\n".join([self.name, *(f"  {title:9}{text}" for title, text in rows.items() if text)])


def describe_command(entry_point: str, purpose: str, asked: Sequence[str]) -> str:
    """Return the help of a command.

    Args:
        entry_point: Name of its configuration.
        purpose: What it does.
        asked: Groups and keys to explain, none for all in short; and overrides, which choose the defaults.

    Raises:
        ConfigError: If there is no such key.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(entry_point, [text for text in asked if "=" in text], return_hydra_config=True)
    command = _Command(entry_point, cfg)
    if names := [text for text in asked if "=" not in text]:
        return "\n\n".join(map(command.describe, names))
    groups = [(group, choice, _find_comment(command.root, (group,))) for group, choice in command.groups.items()]
    groups += [(group, f"with {with_it}", "") for group, with_it in _list_further_groups(command.groups)]
    keys = [(key.name, key.default, key.comment) for key in command.list_root_keys()]
    parts = [f"{name_command(entry_point)}: {purpose}\n\n{_COMMANDS}"]
    parts += [f"Groups\n{_lay_out(groups)}"] * bool(groups)
    return "\n\n".join([*parts, f"Keys\n{_lay_out(keys)}"])


class _Command:
    """The configuration of a command, with the files that it is composed of."""

    def __init__(self, entry_point: str, cfg: DictConfig) -> None:
        self.entry_point = entry_point
        plain: Any = OmegaConf.to_container(cfg, resolve=False)
        chosen = plain.pop("hydra")["runtime"]["choices"]
        self.plain: dict[str, Any] = plain
        self.root = CONF / f"{entry_point}.yaml"
        named = [key[0] for key in _read_comments(self.root) if key[0] in chosen and key[0].isidentifier()]
        named += [group for group in chosen if group.isidentifier() and group not in named]  # those of another choice
        self.groups: dict[str, str] = {group: chosen[group] or "null" for group in named}

    def describe(self, name: str) -> str:
        """Return the help of a group or a key."""
        if name in self.groups:
            return self._describe_group(name)
        path = name.lstrip("+").split(".")
        node = self.plain.get(path[0])
        keys = {key.name: key for key in (*self.list_root_keys(), *self._list_keys(path[0]))}
        if (key := keys.get(name.lstrip("+"))) is not None:
            return key.describe()
        inside = [key.describe() for key in keys.values() if key.name.startswith(f"{name}.")]
        if inside:
            return "\n\n".join(inside)
        below = node if isinstance(node, Mapping) and len(path) > 1 else self.plain
        prefix = f"{path[0]}." if below is node else ""
        raise ConfigError(f"--help {name}: there is no such group or key{suggest_key(path[-1], below, prefix)}")

    def list_root_keys(self) -> list[Key]:
        """Return the keys that are in no group."""
        keys: list[Key] = []
        for name, value in self.plain.items():
            if isinstance(value, Mapping):
                keys += [] if name in self.groups else self._list_keys(name)
            elif name != "run_dir":
                keys.append(Key(name, format_value(value), _find_comment(self.root, (name,))))
        return keys

    def _describe_group(self, group: str) -> str:
        choice = self.groups[group]
        choices = [(name, _read_header(path)) for name, path in find_files(group).items()]
        text = f"{group}={choice}: {_find_comment(self.root, (group,))}\n\nChoices\n{_lay_out(choices)}"
        keys = [(("+" if key.is_added else "") + key.name, key.default, key.comment) for key in self._list_keys(group)]
        return f"{text}\n\nKeys of {group}={choice}\n{_lay_out(keys)}" if keys else text

    def _list_keys(self, name: str) -> list[Key]:
        """Return the keys of a node, or of a key of the root, with their types."""
        config = find_config(self.entry_point, self.plain)
        if not isinstance(self.plain.get(name), Mapping):
            field = config.model_fields.get(name)
            if field is None or name not in self.plain:
                return []
            comment, default = _find_comment(self.root, (name,)), format_value(self.plain[name])
            values = describe_values(field.annotation, field.metadata)
            return [Key(name, default, comment, _read_meanings(config).get(name, field.description or ""), values)]
        return list(self._walk(config, (name,), self.plain[name]))

    def _walk(self, config: type[Settings], path: tuple[str, ...], node: Mapping[str, Any]) -> Iterator[Key]:
        """Find the keys of a node and of those in it."""
        built = self._find_class(config, path, node)
        fields: Mapping[str, FieldInfo] = built.model_fields if issubclass(built, Settings) else {}
        meanings = _read_meanings(built)
        for name, value in node.items():
            if SPECIAL.fullmatch(name) or (fields and name not in fields):
                continue
            if isinstance(value, Mapping) and "_target_" in value:
                yield from self._walk(config, (*path, name), value)
                continue
            key, comment = ".".join((*path, name)), self._find_comment((*path, name))
            field = fields.get(name)
            values = describe_values(field.annotation, field.metadata) if field else _describe_option(built, name)
            meaning = meanings.get(name, (field.description if field else "") or "")
            yield Key(key, format_value(value), comment, meaning, values)
        for name, field in fields.items():
            if name not in node and not name.startswith("_"):
                values = describe_values(field.annotation, field.metadata)
                meaning = meanings.get(name, field.description or "")
                default = "" if field.is_required() else format_value(field.get_default(call_default_factory=True))
                yield Key(".".join((*path, name)), default, "", meaning, values, is_added=True)

    def _find_class(self, config: type[Settings], path: tuple[str, ...], node: Mapping[str, Any]) -> type:
        slot = list_slots(config)[".".join(path)]
        return slot.base if self.entry_point == "audit" else find_class(".".join(path), slot, str(node["_target_"]))

    def _find_comment(self, path: tuple[str, ...]) -> str:
        group = path[0]
        for file in _list_bases(find_files(group).get(self.groups.get(group, ""))):
            if comment := _find_comment(file, path[1:]) or _find_comment(file, path):
                return comment
        return _find_comment(self.root, path)


def _describe_option(built: type, name: str) -> str:
    """Return the values that an option of a class takes, if its signature states a type."""
    from panda.app.config_check import read_signature  # noqa: PLC0415

    hint = read_signature(built, {})[1].get(name)
    return "" if hint is None else describe_values(hint)


def _list_further_groups(groups: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the groups that another choice of these groups adds, each with the choice."""
    found: dict[str, str] = {}
    for group in groups:
        for choice, path in find_files(group).items():
            for entry in _read_defaults(path):
                name = next(iter(entry)) if isinstance(entry, Mapping) else ""
                if name.startswith("/") and name.strip("/") not in groups:
                    found.setdefault(name.strip("/"), f"{group}={choice}")
    return list(found.items())


def _read_defaults(path: Path) -> list[Any]:
    """Return the entries by which a file of a group begins; none of a file that no command can read."""
    with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException):
        return list_defaults(OmegaConf.to_container(OmegaConf.load(path)))
    return []


def _list_bases(path: Path | None) -> Iterator[Path]:
    """Find a file of a group and the files of the group that it begins with."""
    if path is None:
        return
    yield path
    for entry in _read_defaults(path):
        if isinstance(entry, str) and (base := path.with_name(f"{entry}.yaml")).is_file():
            yield from _list_bases(base)


def _find_comment(path: Path, key: tuple[str, ...]) -> str:
    return _read_comments(path).get(key, "")


@functools.cache
def _read_comments(path: Path) -> dict[tuple[str, ...], str]:
    """Return the comments of a YAML file by the keys that they stand beside or above."""
    comments: dict[tuple[str, ...], str] = {}
    open_keys: list[tuple[int, str]] = []
    above: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.strip(" #"))
        elif found := _LINE.fullmatch(line):
            indent = len(found["indent"])
            open_keys = [(depth, key) for depth, key in open_keys if depth < indent and key != "defaults"]
            open_keys.append((indent, found["key"]))
            texts = [*(above if comments else []), found["comment"] or ""]  # the first lines describe the file
            comments[tuple(key for _, key in open_keys)] = " ".join(filter(None, texts))
            above = []
    return comments


def _read_header(path: Path) -> str:
    """Return the first line of a file that describes it."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    header = [line.strip("# ") for line in lines[:2] if line.startswith("#") and "@package" not in line]
    return header[0] if header else ""


def _read_meanings(built: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of its fields."""
    meanings: dict[str, str] = {}
    for kind in built.__mro__:
        name = ""
        for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
            if found := _ENTRY.fullmatch(line):
                name = found[1]
                if name in meanings:
                    name = ""
                else:
                    meanings[name] = found[2]
            elif name and line.startswith(" " * 8):
                meanings[name] += f" {line.strip()}"
            else:
                name = ""
    return {name: text.replace("`", "") for name, text in meanings.items()}


def _lay_out(rows: Iterable[tuple[str, ...]]) -> str:
    """Lay out rows in columns."""
    rows = [tuple(cell.replace("\n", " ") for cell in row) for row in rows]
    widths = [min(32, max(map(len, column))) for column in zip(*rows, strict=True)][:-1]
    return "\n".join(
        ("  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, [*widths, 0], strict=True))).rstrip()
        for row in rows
    )
