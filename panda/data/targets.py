"""What a grader learns from slides: a target, and the label of a slide read from the columns of the table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, GetCoreSchemaHandler, GetPydanticSchema, PlainSerializer, model_validator
from pydantic_core import PydanticCustomError, core_schema

from panda.data.findings import MISSING
from panda.data.manifest import SlideRecord, format_list
from panda.errors import ManifestError, suggest
from panda.stored import Plain
from panda.wsi.gleason import GRADES, list_class_names

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["classes", "ordinal", "regression", "survival"]
"""`classes`: without order; `ordinal`: with one; `regression`: a number; `survival`: time to an event, or censored."""
CLASS_KINDS: tuple[Kind, ...] = ("classes", "ordinal")

Names = Annotated[tuple[str, ...], Field(strict=False)]
_UNKNOWN = ("na", "n/a", "nan", "null", "unknown", "?", "-")
"""Cells that are written for an unknown value, and that would silently become a class."""

_LARGEST = float(np.finfo(np.float32).max)
_LEAST_SPREAD = 1e-5
"""Least standard deviation of numbers, over the largest: single precision has steps of 1e-7 of a number."""


class TargetSpec(Plain, frozen=True):
    """What is learned, and from which columns of the table."""

    name: Annotated[str, Field(min_length=1, description="`isup`, `cancer`, or the name in `task.target`.")]
    kind: Kind = Field(description="Classes without or with order, a number, or the time to an event.")
    classes: Names = Field(default=(), description="Names of the classes, in order. Empty for a number or a time.")
    columns: Names = Field(
        default=(),
        description="The column of the values; those of time and event for survival. Empty for `isup` and `cancer`, "
        "which follow from the ISUP grade.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (len(self.classes) >= 2) != self.has_classes or len({*self.classes}) != len(self.classes):
            message = "classes must be at least two different names with kind {kind}"
            message = message if self.has_classes else "classes must be empty with kind {kind}"
            raise PydanticCustomError("target", message, {"kind": self.kind})
        if not self.columns and self.name not in ("isup", "cancer"):
            raise PydanticCustomError("target", "columns must name the column of {name}", {"name": self.name})
        if self.columns and len(self.columns) != (2 if self.kind == "survival" else 1):
            raise PydanticCustomError("target", "columns must be {count} with kind {kind}", self._count_columns())
        return self

    def _count_columns(self) -> dict[str, Any]:
        return {"count": "time and event" if self.kind == "survival" else "one", "kind": self.kind}

    @property
    def has_classes(self) -> bool:
        """Whether slides have classes; if not, they have numbers."""
        return self.kind in CLASS_KINDS

    @property
    def is_grade(self) -> bool:
        """Whether labels follow from the ISUP grade: `isup` or `cancer`."""
        return not self.columns

    @property
    def outputs(self) -> int:
        """Number of outputs of a network: one for each class, otherwise one."""
        return len(self.classes) if self.has_classes else 1

    @property
    def title(self) -> str:
        """The prediction in words, for readers."""
        named = {"isup": "ISUP grade", "cancer": "Cancer"}
        if self.is_grade:
            return named[self.name]
        return f"log hazard ({self.name})" if self.kind == "survival" else self.name

    @property
    def predicted_column(self) -> str:
        """Column of the prediction in the tables of an inference."""
        return f"{self.name}_{'risk' if self.kind == 'survival' else 'predicted'}"

    def describe_source(self) -> str:
        """Return what is learned: `isup`, or name, kind, columns and classes of a column."""
        if self.is_grade:
            return self.name
        classes = f" [{','.join(self.classes)}]" * self.has_classes
        return f"{self.name} ({self.kind} of {' and '.join(self.columns)}{classes})"

    @property
    def scoring(self) -> str:
        """Which figures apply: `isup`, `cancer`, or the kind."""
        return self.name if self.is_grade else self.kind

    def describe(self, value: float) -> str:
        """Write a predicted class by its name, or a number."""
        return self.classes[int(value)] if self.has_classes else f"{value:.4g}"

    def read_values(self, record: SlideRecord) -> tuple[float, ...] | None:
        """Read the label of a slide as numbers: the index of its class, a value, or time and event (1 or 0).

        Returns:
            None if the label is missing.

        Raises:
            ManifestError: If a cell is not what the kind needs.
        """
        if self.is_grade:
            grade = record.isup_grade
            return None if grade is None else (grade if self.name == "isup" else int(grade > 0),)
        cells = [record.read_cell(column) for column in self.columns]
        if not all(cells):
            return None
        try:
            return tuple(parse(cell) for parse, cell in zip(self._parsers, cells, strict=True))
        except ValueError as error:
            raise ManifestError(f"slide {record.slide_id!r}: {error}") from error

    def read_label(self, record: SlideRecord) -> Tensor:
        """Read the label of a slide: the index of its class, () int64; a value, () float32; or time and event, (2,).

        Raises:
            ManifestError: If it is missing, or a cell is not what the kind needs.
        """
        values = self.read_values(record)
        if values is None:
            lacking = " or ".join(self.columns) or "isup_grade"
            raise ManifestError(f"{record.slide_id}: no {lacking}; fill it in the table or leave the slide out")
        import torch  # noqa: PLC0415  (processes that write the files of slides do not wait for it)

        if self.has_classes:
            return torch.tensor(int(values[0]))
        return torch.tensor(values if self.kind == "survival" else values[0], dtype=torch.float32)

    @property
    def _parsers(self) -> Sequence[Callable[[str], float]]:
        if self.has_classes:
            return (self._find_class,)
        if self.kind == "regression":
            return (lambda cell: _parse_number(self.columns[0], cell),)
        time, event = self.columns
        return (lambda cell: _parse_time(time, cell), lambda cell: _parse_event(event, cell))

    def _find_class(self, cell: str) -> int:
        if cell not in self.classes:
            raise ValueError(
                f"{self.columns[0]} is {cell!r}, which is none of task.classes=[{','.join(self.classes)}]; correct it, "
                "or name it there"
            )
        return self.classes.index(cell)


def _parse_number(column: str, cell: str) -> float:
    try:
        value = float(cell) if re.fullmatch(r"[-+.\dEe]+", cell, re.ASCII) else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{column} is {cell!r}, not a number such as 12.5; correct it, or leave it empty if unknown")
    if abs(value) > _LARGEST:
        raise ValueError(f"{column} is {cell!r}, too large for single precision; correct it, or give another unit")
    return value


def _parse_time(column: str, cell: str) -> float:
    if (value := _parse_number(column, cell)) < 0:
        raise ValueError(f"{column} is {cell!r}, a negative time; correct it, or leave it empty if it is unknown")
    return value


def _parse_event(column: str, cell: str) -> float:
    if not re.fullmatch(r"[01](\.0+)?", cell, re.ASCII):
        raise ValueError(
            f"{column} is {cell!r}, not 1 (the event happened) or 0 (censored); correct it, or leave it empty"
        )
    return float(cell[0])


ISUP = TargetSpec(name="isup", kind="ordinal", classes=tuple(list_class_names("isup", GRADES)))
CANCER = TargetSpec(name="cancer", kind="classes", classes=tuple(list_class_names("cancer", 2)))
NAMED = MappingProxyType({spec.name: spec for spec in (ISUP, CANCER)})
"""Targets that follow from the ISUP grade, by name."""


def _make_schema(_source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
    """Return the schema of a name in `NAMED` or a whole target."""
    either = handler.generate_schema(Literal["isup", "cancer"] | TargetSpec)
    return core_schema.no_info_after_validator_function(
        lambda value: NAMED[value] if isinstance(value, str) else value, either
    )


Target = Annotated[
    TargetSpec,
    GetPydanticSchema(_make_schema),
    PlainSerializer(lambda spec: spec.name if spec.is_grade else spec.model_dump(mode="json")),
]
"""A target in a stored file: `isup` and `cancer` by name, others in full."""


def find_target(
    records: Sequence[SlideRecord],
    name: str,
    kind: Kind | Literal["auto"],
    *,
    classes: Sequence[str] | None = None,
    time: str | None = None,
    event: str | None = None,
) -> TargetSpec:
    """Return the target of `task.target` and the keys beside it.

    Args:
        records: Slides whose columns may be named, and whose values are the classes if `classes` is not given.
        name: `isup` or `cancer`, with kind `auto`; otherwise a column, or any name of a survival with `time`.
        kind: The kind of a column.
        classes: The classes in order.
        time: Column of the time, if it is not `name`.
        event: Column of the event.

    Raises:
        ManifestError: If keys do not fit the kind, a column does not exist, or its values give no classes.
    """
    keys = {"classes": classes, "time": time, "event": event}
    needed = {"survival": ("time", "event"), "classes": ("classes",), "ordinal": ("classes",)}.get(kind, ())
    if idle := [f"task.{key}" for key, value in keys.items() if value is not None and key not in needed]:
        raise ManifestError(f"{', '.join(idle)} has no meaning with task.kind={kind}: remove it, or give another kind")
    columns = list(records[0].cells) if records else []
    if kind == "auto":
        if name in NAMED:
            return NAMED[name]
        shown = f" ({', '.join(columns)})" if columns else ""
        raise ManifestError(
            f"task.target={name}: give task.kind=classes, ordinal, regression or survival with a column of the table"
            f"{shown}; only isup and cancer have a kind of their own"
        )
    if kind == "survival" and event is None:
        raise ManifestError(
            f"task.kind=survival needs task.event=COLUMN, 1 if the event happened and 0 if not; columns are "
            f"{', '.join(columns)}"
        )
    named = {"task.target" if time is None else "task.time": time or name} | ({"task.event": event} if event else {})
    for key, column in named.items():
        if column not in columns:
            raise ManifestError(
                f"{key}={column} is no column of the table{suggest(column, columns)}; columns are {', '.join(columns)}"
            )
    own = tuple(named.values())
    if kind in CLASS_KINDS:
        return TargetSpec(name=name, kind=kind, classes=_find_classes(records, own[0], kind, classes), columns=own)
    return TargetSpec(name=name, kind=kind, columns=own)


def _find_classes(
    records: Sequence[SlideRecord], column: str, kind: Kind, given: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the classes of a column, in the order given, or by number or name."""
    if given is not None:
        if len(given) < 2 or len({*given}) < len(given):
            raise ManifestError(f"task.classes=[{','.join(given)}]: give at least two classes, each once")
        return tuple(given)
    found = sorted({record.read_cell(column) for record in records} - {""})
    if unknown := [text for text in found if text.lower() in _UNKNOWN]:
        raise ManifestError(
            f"column {column} has {', '.join(map(repr, unknown))}: leave the cell empty if it is unknown, or name all "
            "classes in order with task.classes=[…]"
        )
    if same := _find_equal_numbers(found):
        raise ManifestError(
            f"column {column} has {' and '.join(map(repr, same))}, which are one number: write it in one way, or name "
            "all classes in order with task.classes=[…]"
        )
    if len(found) < 2:
        raise ManifestError(
            f"task.target={column}: the column has {'only ' + repr(found[0]) if found else 'no value'}, so there is "
            "nothing to learn; give another column"
        )
    if len(found) > 2 and 2 * len(found) > len(records):
        raise ManifestError(
            f"task.target={column}: the column has {len(found)} classes on {len(records)} slides, as ids have; give "
            "another column, task.kind=regression for numbers, or task.classes=[…] if these are classes"
        )
    if all(re.fullmatch(r"-?\d+", text, re.ASCII) for text in found):
        return tuple(sorted(found, key=int))
    if kind == "ordinal":
        raise ManifestError(
            f"task.kind=ordinal: give the order of the classes of {column}, task.classes=[{','.join(found)}] from the "
            "lowest to the highest"
        )
    return tuple(found)


def _find_equal_numbers(texts: Sequence[str]) -> list[str]:
    """Return texts of one number, such as 1 and 1.0; empty if there are none."""
    by_number: dict[float, list[str]] = {}
    for text in texts:
        if re.fullmatch(r"-?\d+(\.\d*)?", text, re.ASCII):
            by_number.setdefault(float(text), []).append(text)
    return next((same for same in by_number.values() if len(same) > 1), [])


def require_labels(records: Sequence[SlideRecord], target: TargetSpec) -> None:
    """Refuse slides without a label, and labels that are not what the kind needs.

    Raises:
        ManifestError: If there are any; the message counts them and names some.
    """
    absent, faults = [], []
    for record in records:
        try:
            if target.read_values(record) is None:
                absent.append(repr(record.slide_id))
        except ManifestError as error:
            faults.append(str(error))
    if faults:
        raise ManifestError(format_list(f"{len(faults)} of {len(records)} slides have no usable label", faults))
    if not absent:
        return
    if target.is_grade:
        names, exclude = "isup_grade", "missing_grade"
    else:
        names, exclude = " or ".join(target.columns), ",".join(f"{MISSING}{column}" for column in target.columns)
    raise ManifestError(
        format_list(
            f"{len(absent)} of {len(records)} slides have no {names}, which grading needs; fill in the column, or "
            f"leave these slides out with data.exclude=[{exclude}]",
            absent,
        )
    )


def require_learnable(train: Sequence[SlideRecord], target: TargetSpec) -> None:
    """Refuse training slides from which nothing can be learned: of one class, of equal numbers, or without an event.

    Raises:
        ManifestError: If it is so.
    """
    values = [target.read_values(record) or () for record in train]
    remedy = "so there is nothing to learn: give slides of other {}, or another data.seed or data.splits"
    if target.kind == "survival":
        if not any(event for _, event in values):
            raise ManifestError(
                f"none of {len(train)} training slides has an event in column {target.columns[1]}, "
                + remedy.format("outcomes")
            )
    elif len(found := {*values}) == 1:
        ((value,),) = found
        what = f"class {value}" if target.is_grade else f"the value {target.describe(value)}"
        raise ManifestError(
            f"all {len(train)} training slides have {what} of task.target={target.name}, "
            + remedy.format("grades" if target.is_grade else "values")
        )
    elif target.kind == "regression":
        numbers = np.array(values)
        if numbers.std() < _LEAST_SPREAD * (largest := np.abs(numbers).max()):
            raise ManifestError(
                f"column {target.columns[0]}: the training slides have numbers up to {largest:g}, but a standard "
                f"deviation of {numbers.std():g}, too little for single precision; subtract the same number from all"
            )
