"""Targets of grading: what is read from the columns of a table, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from panda.data.manifest import SlideRecord
from panda.data.target_choice import find_target, require_labels, require_learnable
from panda.data.targets import CANCER, ISUP, Target, TargetSpec
from panda.errors import ManifestError


def make_records(**columns: list[str]) -> list[SlideRecord]:
    """Make a slide for each row of columns; its grade is its number modulo 6."""
    rows = zip(*columns.values(), strict=True)
    return [
        SlideRecord(
            f"s{k}", "radboud", k % 6, "3+3", Path(), None, f"s{k}", others=tuple(zip(columns, row, strict=True))
        )
        for k, row in enumerate(rows)
    ]


def find(records: list[SlideRecord], name: str, kind: Any, **keys: Any) -> TargetSpec:
    return find_target(records, name, kind, **keys)


def test_named_targets_follow_from_the_grade() -> None:
    records = make_records(x=["a"] * 3)
    assert [int(ISUP.read_label(record)) for record in records] == [0, 1, 2]
    assert [int(CANCER.read_label(record)) for record in records] == [0, 1, 1]
    assert find([], "isup", "auto") is ISUP
    assert (ISUP.outputs, CANCER.outputs, ISUP.read_label(records[0]).dtype) == (6, 2, torch.int64)


def test_column_of_a_named_target_needs_its_kind() -> None:
    records = make_records(cancer=["no", "yes", "no", "yes"])
    assert find(records, "cancer", "auto") is CANCER
    own = find(records, "cancer", "classes")
    assert (own.is_grade, own.classes, own.scoring) == (False, ("no", "yes"), "classes")
    assert int(own.read_label(records[1])) == 1


def test_classes_are_sorted_by_number_or_name_or_as_given() -> None:
    records = make_records(a=["10", "9", "10", "9"], b=["late", "early", "late", "early"])
    assert find(records, "a", "ordinal").classes == ("9", "10")
    assert find(records, "b", "classes").classes == ("early", "late")
    given = find(records, "b", "ordinal", classes=["late", "early", "never"])
    assert given.classes == ("late", "early", "never")
    assert int(given.read_label(records[1])) == 1


def test_numbers_and_survival_are_read_as_float32() -> None:
    records = make_records(ki67=["12.5", "-3e1"], months=["0", "7.25"], dead=["1", "0.0"])
    number, time = find(records, "ki67", "regression"), find(records, "months", "survival", event="dead")
    assert [number.read_label(record).item() for record in records] == [12.5, -30.0]
    assert [time.read_label(record).tolist() for record in records] == [[0.0, 1.0], [7.25, 0.0]]
    assert (number.outputs, time.outputs, number.read_label(records[0]).dtype) == (1, 1, torch.float32)
    assert find(records, "os", "survival", time="months", event="dead").columns == ("months", "dead")


def test_grade_and_provider_are_columns_too() -> None:
    records = make_records(x=["1"] * 12)
    assert find(records, "isup_grade", "ordinal").classes == ("0", "1", "2", "3", "4", "5")
    with pytest.raises(ManifestError, match="only 'radboud', so there is nothing to learn"):
        find(records, "provider", "classes")


@pytest.mark.parametrize(
    ("name", "kind", "keys", "fault"),
    [
        ("ki67", "auto", {}, r"give task\.kind=classes.*with a column of the table \(ki67, months, dead, "),
        ("ki76", "regression", {}, r"task\.target=ki76 is no column of the table \(did you mean ki67\?\)"),
        ("months", "survival", {}, r"task\.kind=survival needs task\.event=COLUMN"),
        ("months", "survival", {"event": "died"}, r"task\.event=died is no column"),
        ("ki67", "regression", {"event": "dead"}, r"task\.event has no meaning with task\.kind=regression"),
        ("isup", "auto", {"classes": ["a", "b"]}, r"task\.classes has no meaning with task\.kind=auto"),
        ("ki67", "classes", {"classes": ["a", "a"]}, r"task\.classes=\[a,a\]: give at least two classes, each once"),
        ("word", "ordinal", {}, r"give the order of the classes of word, task\.classes=\[high,low\]"),
        ("code", "classes", {}, r"the column has 4 classes on 4 slides, as ids have"),
        ("hole", "classes", {}, r"column hole has 'NA': leave the cell empty"),
        ("two", "classes", {}, r"column two has '1' and '1\.0', which are one number: write it in one way"),
        ("same", "classes", {}, r"only 'x', so there is nothing to learn"),
        ("none", "classes", {}, r"has no value"),
    ],
)
def test_find_target_wrong_keys_or_columns_raise(name: str, kind: str, keys: dict[str, Any], fault: str) -> None:
    records = make_records(
        ki67=["1", "2", "3", "4"], months=["1", "2", "3", "4"], dead=["0", "1", "0", "1"], word=["low", "high"] * 2,
        code=["p1", "p2", "p3", "p4"], hole=["a", "b", "NA", "a"], same=["x"] * 4, none=[""] * 4,
        two=["1", "1.0"] * 2,
    )  # fmt: skip
    with pytest.raises(ManifestError, match=fault):
        find(records, name, kind, **keys)


@pytest.mark.parametrize(
    ("cells", "kind", "fault"),
    [
        ({"x": "high"}, "regression", r"slide 's0': x is 'high', not a number such as 12\.5"),
        ({"x": "nan"}, "regression", r"x is 'nan', not a number"),
        ({"x": "1e999"}, "regression", r"x is '1e999', not a number"),
        ({"x": "-3.5e38"}, "regression", r"x is '-3\.5e38', too large for single precision"),
        ({"x": "1_0"}, "regression", r"x is '1_0', not a number"),
        ({"x": "12,5"}, "regression", r"x is '12,5', not a number"),
        ({"x": "-1", "e": "1"}, "survival", r"x is '-1', a negative time"),
        ({"x": "1", "e": "2"}, "survival", r"e is '2', not 1 \(the event happened\) or 0 \(censored\)"),
        ({"x": "1", "e": "yes"}, "survival", r"e is 'yes', not 1"),
        ({"x": "c"}, "classes", r"x is 'c', which is none of task\.classes=\[a,b\]"),
    ],
)
def test_require_labels_bad_cell_names_slide_column_and_value(cells: dict[str, str], kind: Any, fault: str) -> None:
    records = make_records(**{name: [cell] for name, cell in cells.items()})
    classes = ("a", "b") if kind == "classes" else ()
    target = TargetSpec(name="x", kind=kind, classes=classes, columns=tuple(cells))
    with pytest.raises(ManifestError, match=f"(?s)1 of 1 slides have no usable label.*{fault}"):
        require_labels(records, target)


def test_require_labels_missing_are_counted_with_remedy() -> None:
    records = make_records(months=["1", "", "3"], dead=["1", "0", ""])
    target = find(records, "months", "survival", event="dead")
    with pytest.raises(
        ManifestError,
        match=r"(?s)2 of 3 slides have no months or dead.*data\.exclude=\[missing:months,missing:dead\].*'s1'.*'s2'",
    ):
        require_labels(records, target)
    require_labels(records[:1], target)


@pytest.mark.parametrize(
    ("kind", "cells", "fault"),
    [
        ("regression", ["5", "5.0"], "all 2 training slides have the value 5 of task.target=x, so there is nothing"),
        ("regression", ["1000000001", "1000000009"], "numbers up to 1e.09, but a standard deviation of 4, too little"),
        ("classes", ["b", "b"], "all 2 training slides have the value b of task.target=x"),
        ("survival", ["5", "6"], "none of 2 training slides has an event in column e"),
    ],
)
def test_require_learnable_constant_or_no_event_raises(kind: Any, cells: list[str], fault: str) -> None:
    records = make_records(x=cells, e=["0", "0"])
    columns = ("x", "e") if kind == "survival" else ("x",)
    target = TargetSpec(name="x", kind=kind, classes=("a", "b") if kind == "classes" else (), columns=columns)
    with pytest.raises(ManifestError, match=fault):
        require_learnable(records, target)


def test_stored_target_is_a_name_or_the_whole() -> None:
    stored: TypeAdapter[TargetSpec] = TypeAdapter(Target)
    own = TargetSpec(name="ki67", kind="regression", columns=("ki67",))
    for target, text in (
        (ISUP, "isup"),
        (own, {"name": "ki67", "kind": "regression", "classes": [], "columns": ["ki67"]}),
    ):
        assert stored.dump_python(target, mode="json") == text
        assert stored.validate_python(text) == target
        assert stored.validate_json(json.dumps(text), strict=True) == target
