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

from panda.data.manifest import SlideRecord
from panda.errors import ManifestError
from panda.stored import Plain
from panda.wsi.gleason import GRADES, list_class_names

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["classes", "ordinal", "regression", "survival"]
"""`classes`: without order; `ordinal`: with one; `regression`: a number; `survival`: time to an event, or censored."""
CLASS_KINDS: tuple[Kind, ...] = ("classes", "ordinal")

Names = Annotated[tuple[str, ...], Field(strict=False)]
_LARGEST = float(np.finfo(np.float32).max)


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
