"""Shards: what names one, and which slides are in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from panda.data.shard import Shard, parse_shard
from panda.errors import ConfigError


def slurm(task: int, first: int, last: int, count: int, step: int = 1) -> dict[str, str]:
    values = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{key}": str(value) for key, value in values.items()} | {"JOB_COMPLETION_INDEX": "7"}


def test_shards_are_the_slides_each_once() -> None:
    paths = [Path(f"data/slide {number}.tiff") for number in range(1_000)]
    shards = [Shard(number, 8).take(paths) for number in range(1, 9)]
    assert sorted(path for shard in shards for path in shard) == sorted(paths)
    assert all(90 < len(shard) < 160 for shard in shards)
    assert Shard(1, 1).take(paths) == paths


def test_shard_of_a_slide_never_changes() -> None:
    # SHA-256 of "a" begins with ca978112ca1bbdca, which is 2 modulo 8
    assert Shard(3, 8).holds("a")
    assert not Shard(2, 8).holds("a")


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("1/4", {}, (1, 4)),
        ("4/4", slurm(9, 0, 63, 64), (4, 4)),
        ("auto", slurm(0, 0, 63, 64), (1, 64)),
        ("auto", slurm(64, 1, 64, 64), (64, 64)),
        ("auto", slurm(14, 10, 18, 5, 2), (3, 5)),
        ("auto", slurm(5, 5, 5, 1), (1, 1)),
        ("auto/64", slurm(17, 3, 17, 2), (18, 64)),
        ("auto/64", slurm(64, 1, 64, 64), (1, 64)),
        ("auto/4", {"JOB_COMPLETION_INDEX": "3"}, (4, 4)),
    ],
)
def test_parse_shard_reads_text_and_array(text: str, environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert parse_shard(text, environment) == Shard(*expected)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("0/4", {}, "K must be 1 to 4"),
        ("5/4", {}, "K must be 1 to 4"),
        ("1/0", {}, "N must be 1 to"),
        ("1/1000000", {}, "N must be 1 to"),
        ("4", {}, "is no shard: give K/N"),
        ("a/4", {}, "is no shard"),
        ("-1/4", {}, "is no shard"),
        ("1/4/4", {}, "is no shard"),
        ("auto", {}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"),
        ("auto", {"JOB_COMPLETION_INDEX": "3"}, "give shard=auto/N"),
        ("auto", slurm(17, 3, 17, 2), "the array has gaps"),
        ("auto", slurm(17, 3, 19, 3, 7), "the array has gaps"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN is ''"),
        ("auto/4", {"JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX is 'x'"),
    ],
)
def test_parse_shard_refuses_by_value(text: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"shard={text}.*{message}"):
        parse_shard(text, environment)
