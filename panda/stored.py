"""Stored data: models of the files that runs, stores and outputs leave, refused by file, key, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, NonNegativeFloat, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from panda.errors import ConfigError, PandaError

T = TypeVar("T")

MOST_BYTES = 2**28
"""Size of the largest JSON file that is read."""
MOST_PATCH_PX = 8192
"""Longest side of a patch or tile: the sums of a canvas then fit into memory."""
SAME_SCALE = 0.1
"""Relative difference up to which tiles have the same scale for an encoder."""

_NAMED_FAULTS, _NAMED_KEYS, _SHOWN = 3, 8, 60


def _round_down(value: object) -> object:
    """Return ±1, or 100, for a float beyond it by rounding: a run must not fail at its end for that."""
    for limit in (1.0, 100.0):
        if isinstance(value, float) and limit < abs(value) < limit + 1e-6:
            return math.copysign(limit, value)
    return value


def _check_order(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise PydanticCustomError("interval", "the low end is above the high end")
    return ends


Percent = Annotated[float, Field(ge=0, le=100), BeforeValidator(_round_down)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_round_down)]
"""A computed share; settings take none above 1."""
Kappa = Annotated[float, Field(ge=-1, le=1), BeforeValidator(_round_down)]
PatchSide = Annotated[int, Field(ge=1, le=MOST_PATCH_PX)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A SHA-256."""
Timestamp = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\+00:00|Z)$")]
"""ISO 8601 in seconds, UTC."""
InSample = Literal["training", "validation"]
"""Role of a slide in a training."""
PathText = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]+$")]
ShareEnds = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_check_order)]
"""Low and high; read from a list, because JSON has no tuples."""
KappaEnds = Annotated[tuple[Kappa, Kappa], Field(strict=False), AfterValidator(_check_order)]
NumberEnds = Annotated[tuple[float, float], Field(strict=False), AfterValidator(_check_order)]
AmountEnds = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], Field(strict=False), AfterValidator(_check_order)]


class Plain(BaseModel, frozen=True, strict=True, extra="forbid", allow_inf_nan=False):
    """A part of a stored file: no other keys, exact types, no NaN."""


class Making(Plain, frozen=True):
    """How the files of a folder were made."""

    overrides: list[str] | None = Field(default=None, description="What was typed, `key=value`. Absent in older files.")
    commit: str | None = Field(
        default=None,
        description="Commit of the sources, `-dirty` if they differ from it. Null without git. Absent in older files.",
    )


def read_model(path: Path, kind: TypeAdapter[T], remedy: str, error: type[PandaError] = PandaError) -> T:
    """Read a JSON file as typed data.

    Args:
        path: The file.
        kind: Type of its content.
        remedy: The remedy for a file that does not fit, which ends the message.
        error: Class of the error.

    Raises:
        FileNotFoundError: If there is no such file.
        PandaError: If the content does not fit, see `describe_faults`, or the file is larger than `MOST_BYTES`.
    """
    if (size := path.stat().st_size) > MOST_BYTES:
        raise error(f"{path}: has {size:,} bytes, more than the {MOST_BYTES:,} that such a file can have; {remedy}")
    try:
        return kind.validate_json(path.read_bytes(), strict=True)
    except ValidationError as faults:
        raise error(f"{path}: {describe_faults(faults)}; {remedy}") from faults
    except ConfigError as faults:
        raise error(f"{path}: {'; '.join(faults.faults)}; {remedy}") from faults


def describe_faults(error: ValidationError, node: str = "") -> str:
    """Return the first three faults with key and value, and the keys of the others.

    `node` is the key in the file under which the model is stored.
    """
    faults = error.errors(include_url=False)
    texts = [_describe(fault, node) for fault in faults[:_NAMED_FAULTS]]
    if others := list(dict.fromkeys(_name_key(fault["loc"], node) for fault in faults[_NAMED_FAULTS:])):
        more = " …" if len(others) > _NAMED_KEYS else ""
        texts.append(f"faulty too: {', '.join(others[:_NAMED_KEYS])}{more}")
    return "; ".join(texts)


def list_faults(error: ValidationError) -> list[str]:
    """Return every fault with key and value."""
    return [_describe(fault, "") for fault in error.errors(include_url=False)]


def _name_key(location: tuple[int | str, ...], node: str) -> str:
    """Write the key of a fault, without the tags in <> of models among which one is chosen."""
    parts = [str(part) for part in (node, *location) if not str(part).startswith("<")]
    return ".".join(part for part in parts if part)


def _describe(fault: Mapping[str, Any], node: str) -> str:
    key, kind, message = _name_key(fault["loc"], node), fault["type"], str(fault["msg"])
    if kind == "missing":
        return f"{key} is missing"
    if kind == "json_invalid":
        return message.lower()
    value = repr(fault["input"])
    value = value if len(value) <= _SHOWN else f"{value[:_SHOWN]} …"
    if kind == "extra_forbidden":
        return f"{key} is {value}, but there is no such key"
    message = message.removeprefix("Value error, ")
    expected = message.replace("Input should be", "must be")
    if expected == message:  # a rule of a model, whose value would be the whole model
        own = f"{key}: {message}" if key else message
        return own if isinstance(fault["input"], Mapping) else f"{own}, not {value}"
    return f"{key or 'the content'} is {value}, but {expected}"
