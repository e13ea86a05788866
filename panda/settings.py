"""Settings objects: the values that a node of the configuration may hold, with all faults reported at once."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, Strict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from panda.errors import ConfigError, PandaError, describe_path_error, raise_exhaustion, suggest

PathValue = Annotated[Path, Strict(False)]
"""A path, which YAML writes as text."""
Names = Annotated[tuple[str, ...], Strict(False)]
"""Names, which YAML writes as a list."""
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]

_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Linux: µs of computing that a container may use, and in how many µs."""
REFUSED = object()
"""Stands for a value whose faults are reported already: only the rules that read it are skipped."""

_Part = TypeVar("_Part", bound="Settings")
_Rule = TypeVar("_Rule", bound=Callable[[Any], Iterable[str] | None])
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
_KINDS = {
    "string_too_short": "text that is not empty",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "tuple": "a list",
    "finite": "a finite number",
    "none": "null",
}

_TYPES: dict[Any, str] = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    tuple: "a list",
    list: "a list",
}


class SettingsError(ConfigError):
    """The faults of settings. `checked` has their valid fields, for the rules of the settings that hold it."""

    def __init__(self, faults: list[str], checked: Settings) -> None:
        super().__init__(faults)
        self.checked = checked


class _FaultyField(AttributeError):
    """A rule reads a field whose value is refused."""


def rule(check: _Rule) -> _Rule:
    """Mark a method of a `Settings` class as a rule between fields.

    It yields one sentence per fault, or raises a PandaError. A rule that reads a refused field is skipped.
    """
    setattr(check, "is_rule", True)  # noqa: B010  (mypy knows no attributes of functions)
    return check


def accept(expected: str, test: Callable[[Any], bool]) -> PlainValidator:
    """Return a validator that takes the values that pass a test; `expected` ends its "must be …"."""

    def check(value: Any) -> Any:
        if not test(value):
            raise PydanticCustomError("accept", "{expected}", {"expected": expected})
        return value

    setattr(check, "expected", expected)  # noqa: B010  (mypy knows no attributes of functions)
    return PlainValidator(check)


def is_number(value: Any) -> bool:
    """Return whether a value is a number; YAML's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class Settings(BaseModel):
    """The values of one node of the configuration, immutable.

    A text is never taken for a number. `node` begins the keys in messages. The description of a field, if there is
    one, ends the message about its value.

    Raises:
        SettingsError: With all faults of the fields and of the rules between them.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    node: ClassVar[str]

    def __init__(self, /, **values: Any) -> None:
        faults: list[str] = []
        checked: Settings = self
        try:
            super().__init__(**values)
        except ValidationError as error:
            details = error.errors(include_url=False)
            refused: dict[tuple[str, int], list[ErrorDetails]] = {}
            for detail in details:  # a union has one for each of its members
                if detail["input"] is not REFUSED:
                    refused.setdefault((str(detail["loc"][0]), id(detail["input"])), []).append(detail)
            faults = [self._describe(name, same) for (name, _), same in refused.items()]
            checked = self._leave_out({str(detail["loc"][0]) for detail in details}, values)
        for check in (part for base in type(self).__mro__ for part in vars(base).values()):
            if getattr(check, "is_rule", False):
                faults += _find_faults(check, checked)
        if faults or checked is not self:
            raise SettingsError(list(dict.fromkeys(faults)), checked)

    def setting(self, name: str) -> str:
        """Return a field as it is typed on a command line, `data.stride=64`."""
        return f"{self.key(name)}={format_value(getattr(self, name))}"

    @classmethod
    def key(cls, name: str) -> str:
        """Return the key of a field, `data.stride`."""
        return f"{cls.node}.{name}".removeprefix(".")

    def part(self, kind: type[_Part]) -> _Part:
        """Return the fields that a base class has, as an object of that class."""
        return kind(**{name: getattr(self, name) for name in kind.model_fields})

    @classmethod
    def _describe(cls, name: str, errors: list[ErrorDetails]) -> str:
        """Return the fault of one field in words of the configuration."""
        key, value = cls.key(name), errors[0]["input"]
        if errors[0]["type"] == "missing":
            return f"{key} is not given: write {key}=… on the command line"
        field = cls.model_fields.get(name)
        if field is None:
            return f"{key}={format_value(value)}: there is no such key{suggest(name, cls.model_fields)}"
        is_part = any(isinstance(place, int) for place in errors[0]["loc"])  # of a list
        if value is None and not is_part and field.is_required():
            return f"{key} is not given: write {key}=… on the command line"
        expected = list(dict.fromkeys(_describe_expected(field, error) for error in errors))
        if NoneType in get_args(field.annotation):
            expected.append("null")
        remedy = f": {field.description}" if field.description else ""
        if expected[0] in ("text", "a path") and len(errors[0]["loc"]) == 1 and isinstance(value, int | float):
            remedy = f": quote it, {quote(f'{key}={format_value(value)}')}"
        return f"{key}={format_value(value)} must be {' or '.join(expected)}{remedy}"

    @classmethod
    def _leave_out(cls, faulty: set[str], values: dict[str, Any]) -> Settings:
        """Return an object for the rules, in which reading a refused field raises `_FaultyField`."""
        partial = cls.__new__(cls)
        valid = {}
        for name, field in cls.model_fields.items():
            if name in values and name not in faulty and not isinstance(values[name], BaseModel):
                hint: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
                has_config = isinstance(hint, type) and issubclass(hint, BaseModel)
                config = None if has_config else cls.model_config
                valid[name] = TypeAdapter(hint, config=config).validate_python(values[name])
            elif name not in faulty:
                valid[name] = values.get(name, field.get_default(call_default_factory=True))
        object.__setattr__(partial, "__dict__", valid)
        return partial

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Refuse to read a field that `_leave_out` left out."""
            if name in type(self).model_fields:
                raise _FaultyField(name)
            return super().__getattr__(name)


def count_cores() -> int:
    """Return the number of cores that this process may use, from which `auto` is chosen.

    It counts the cores that the process may run on, and the share of time that a container has.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # another system, no limit ("max"), or the older kind of container
        quota, period = _CPU_LIMIT.read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def format_value(value: Any) -> str:
    """Return a value as YAML writes it; a text that looks like a number keeps its quotes."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, str):
        with suppress(ValueError):
            float(value or 0)
            return repr(value)
    return str(value)


def escape(text: str) -> str:
    """Escape `${` for OmegaConf, so that it does not refer to another key."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def quote(override: str) -> str:
    """Quote an override `key=value` for a shell, so that its value is taken literally."""
    key, _, value = override.partition("=")
    # Hydra needs quotes escaped, and backslashes before a quote doubled.
    text = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), escape(value))
    return shlex.quote(f'{key}="{text}"')


def format_override(override: str) -> str:
    """Return an override `key=value` as it is typed into a shell, quoted only if its value needs it."""
    return override if re.fullmatch(r"[\w./:+~-]+", override.partition("=")[2]) else quote(override)


def _find_faults(check: Callable[[Any], Iterable[str] | None], settings: Settings) -> list[str]:
    """Return the faults that a rule yields, and those of the error that ends it."""
    faults: list[str] = []
    try:
        faults.extend(check(settings) or ())
    except _FaultyField:
        pass
    except PandaError as error:
        raise_exhaustion(error)
        faults += error.faults if isinstance(error, ConfigError) else [str(error)]
    except OSError as error:
        raise_exhaustion(error)
        faults.append(describe_path_error(error))
    return faults


def _describe_expected(field: FieldInfo, error: ErrorDetails) -> str:
    """Return the values that a field takes, as the end of "must be …"."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        return str(limits["expected"]).replace("'", "")
    if (words := _KINDS.get(kind) or _KINDS.get(kind.partition("_")[0])) is not None:
        return words
    return _describe_bounds(field.metadata) or _describe_limits(limits) or error["msg"].removeprefix("Input should be ")


def describe_values(hint: Any, metadata: Sequence[Any] = ()) -> str:
    """Return the values that a type takes, in words. `metadata` is that of its field."""
    if get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        metadata = [*metadata, *more]
    parts = get_args(hint)
    expected = [getattr(part.func, "expected", "") for part in metadata if isinstance(part, PlainValidator)]
    if expected:
        return f"{expected[0]}{' or null' * (NoneType in parts)}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(dict.fromkeys(describe_values(part, metadata) for part in parts))
    if get_origin(hint) is Literal:
        return ", ".join(map(format_value, parts))
    kind = get_origin(hint) or hint
    words = _TYPES.get(kind) or ("keys of its own" if isinstance(kind, type) and issubclass(kind, BaseModel) else "")
    bounds = _describe_bounds(metadata) if kind in (int, float) else ""
    return f"{words}, {bounds}" if bounds else words or getattr(kind, "__name__", str(kind))


def _describe_bounds(metadata: Iterable[Any]) -> str:
    """Return the bounds of a field in words, or an empty text."""
    marks = [mark for part in metadata for mark in (part.metadata if isinstance(part, FieldInfo) else [part])]
    return _describe_limits({key: getattr(mark, key) for mark in marks for key in _BOUNDS if hasattr(mark, key)})


def _describe_limits(limits: Mapping[str, Any]) -> str:
    is_range = {"ge", "le"} <= limits.keys()
    bounds = [f"from {limits['ge']} to {limits['le']}"] if is_range else []
    left = {key: limit for key, limit in limits.items() if not (is_range and key in ("ge", "le"))}
    return " and ".join([*bounds, *(f"{words} {left[key]}" for key, words in _BOUNDS.items() if key in left)])
