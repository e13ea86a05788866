"""Settings objects: one message style, all faults at once, rules between the fields that are valid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field

from panda.data.settings import PatchSettings
from panda.errors import ConfigError
from panda.settings import REFUSED, Count, Names, PathValue, Settings, Share, Text, count_cores, rule


class Inner(Settings):
    node: ClassVar[str] = "data.inner"

    width: Count = 4


class Example(Settings):
    node: ClassVar[str] = "data"

    size: Count = 8
    step: int | None = Field(default=None, ge=1)
    share: Share = 0.5
    weight: float = Field(default=1.0, gt=0, lt=2, description="1 weighs both alike")
    edge: Literal["pad", "shift"] = "pad"
    names: Names = ()
    folder: PathValue | None = None
    ready: bool = False
    inner: Inner | None = None
    root: str

    @rule
    def _check_step(self) -> Iterator[str]:
        if self.step is not None and self.step > self.size:
            yield f"{self.setting('step')} must be at most {self.setting('size')}"

    @rule
    def _check_names(self) -> Iterator[str]:
        for name in self.names:
            if name == "bad":
                yield f"{self.setting('names')} has {name}: remove it"


def faults(**values: object) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        Example(**{"root": "here", **values})  # type: ignore[arg-type]
    return refused.value.faults


def test_settings_lists_and_text_become_tuples_and_paths() -> None:
    made = Example(root="here", names=["a", "b"], folder="x/y", weight=1, inner=Inner())  # type: ignore[arg-type]
    assert (made.names, made.folder, made.weight, made.inner) == (("a", "b"), Path("x/y"), 1.0, Inner(width=4))


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("size", 0, "data.size=0 must be at least 1"),
        ("size", "8", "data.size='8' must be a whole number"),
        ("size", 8.5, "data.size=8.5 must be a whole number"),
        ("size", True, "data.size=true must be a whole number"),
        ("size", None, "data.size=null must be a whole number"),
        ("step", 0, "data.step=0 must be at least 1 or null"),
        ("step", "wide", "data.step=wide must be a whole number or null"),
        ("share", 1.5, "data.share=1.5 must be from 0 to 1"),
        ("share", float("nan"), "data.share=nan must be a finite number"),
        ("weight", 2, "data.weight=2 must be above 0 and below 2: 1 weighs both alike"),
        ("edge", "cut", "data.edge=cut must be pad or shift"),
        ("names", "a", "data.names=a must be a list"),
        ("names", [1], "data.names=1 must be text"),
        ("folder", 3, "data.folder=3 must be a path or null: quote it, 'data.folder=\"3\"'"),
        ("ready", "yes", "data.ready=yes must be true or false"),
        ("root", 2020, "data.root=2020 must be text: quote it, 'data.root=\"2020\"'"),
        ("sise", 3, "data.sise=3: there is no such key (did you mean size?)"),
    ],
)
def test_settings_bad_value_names_key_value_and_remedy(name: str, value: object, fault: str) -> None:
    assert faults(**{name: value}) == [fault]


def test_settings_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.root is not given: write data\.root=… on the command line"):
        Example()  # type: ignore[call-arg]


def test_settings_null_of_a_key_with_two_types_is_not_given() -> None:
    class Slides(Settings):
        node: ClassVar[str] = ""

        slides: Text | Names
        collect: None = None

    for given, fault in (
        ({"slides": None}, "slides is not given: write slides=… on the command line"),
        ({"slides": [None]}, "slides=[null] must be text"),
        ({"slides": "a", "collect": "b"}, "collect=b must be null"),
    ):
        with pytest.raises(ConfigError) as refused:
            Slides(**given)
        assert refused.value.faults[0].startswith(fault)


def test_settings_rules_run_beside_faulty_fields() -> None:
    assert faults(share=-1, step=9, names=["bad"]) == [
        "data.share=-1 must be from 0 to 1",
        "data.step=9 must be at most data.size=8",
        "data.names=[bad] has bad: remove it",
    ]


def test_settings_rule_of_faulty_field_is_skipped() -> None:
    assert faults(size=0, step=9) == ["data.size=0 must be at least 1"]


def test_settings_refused_part_skips_its_rules_alone() -> None:
    assert faults(size=REFUSED, step=9, names=["bad"]) == ["data.names=[bad] has bad: remove it"]


def test_settings_are_immutable_and_keep_plain_values() -> None:
    made = Example(root="here")
    with pytest.raises(ValueError, match="frozen"):
        made.size = 3
    assert made.model_dump() == {
        "size": 8, "step": None, "share": 0.5, "weight": 1.0, "edge": "pad", "names": (), "folder": None,
        "ready": False, "inner": None, "root": "here",
    }  # fmt: skip


def test_settings_share_just_above_1_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be from 0 to 1"):
        PatchSettings(min_tissue=1 + 1e-9)


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("800000 100000", 4), ("", 4)]
)
def test_count_cores_follows_limit_of_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr("panda.settings._CPU_LIMIT", tmp_path / "cpu.max")
    assert count_cores() == 4
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert count_cores() == cores
