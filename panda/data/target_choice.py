"""Choose what a grader learns from the columns of a table, and refuse slides from which it cannot be learned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from panda.data.findings import MISSING
from panda.data.manifest import SlideRecord, format_list
from panda.data.targets import CLASS_KINDS, NAMED, Kind, TargetSpec
from panda.errors import ManifestError, suggest

_UNKNOWN = ("na", "n/a", "nan", "null", "unknown", "?", "-")
"""Cells that are written for an unknown value, and that would silently become a class."""
_LEAST_SPREAD = 1e-5
"""Least standard deviation of numbers, over the largest: single precision has steps of 1e-7 of a number."""


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
