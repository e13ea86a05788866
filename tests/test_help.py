"""The help of the commands: groups and keys in short, and all of a key from its typed settings."""

from __future__ import annotations

import re
import sys

import pytest

from panda.app.commands import JOBS
from panda.app.entry_point import enter
from panda.app.help import describe_command
from panda.app.hydra_job import register_resolvers
from panda.errors import ConfigError


@pytest.fixture(autouse=True)
def resolvers() -> None:
    register_resolvers()


@pytest.mark.parametrize("entry_point", JOBS)
def test_help_explains_each_group_and_key(entry_point: str) -> None:
    text = describe_command(entry_point, JOBS[entry_point][1], [])
    rows = [line for line in text.splitlines() if re.match(r"  [a-z]", line)]
    assert len(rows) > 4
    lacking = [row for row in rows if len(re.split(r"  +", row.strip())) < 3]
    assert [row.split()[0] for row in lacking] == (["tiles"] if entry_point == "train" else [])


def test_help_names_only_what_the_command_takes() -> None:
    train, infer, audit = (describe_command(name, "", []) for name in ("train", "infer", "audit"))
    assert "\n  task " in train
    assert "\n  task " not in infer
    assert "\n  grading_checkpoint " in infer
    assert "grading_checkpoint" not in train
    assert "data.patch_size" not in describe_command("audit", "", ["data"])
    assert "data.root" in describe_command("audit", "", ["data"])
    assert "\n  audit.deep " in audit


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        ("data.stride", ("values   a whole number, at least 1 or null", "unit     px", "default  null", "Distance of")),
        ("data.min_tissue", ("values   a number, from 0 to 1", "unit     share", "default  0.1")),
        ("trainer.accelerator", ("values   auto, cpu, gpu, cuda, mps", "default  auto")),
        ("trainer.check_val_every_n_epoch", ("typed    +trainer.check_val_every_n_epoch=…", "default  1")),
        ("threshold", ("values   auto or a probability between 0 and 1", "a multiple of 0.001")),
        ("loss.bce_weight", ("values   a number", "default  0.5")),
        ("data.exclude", ("values   a list", "default  [missing_mask]")),
    ],
)
def test_help_key_has_values_unit_and_default(key: str, lines: tuple[str, ...]) -> None:
    text = describe_command("train", "", [key])
    assert text.startswith(f"{key}\n")
    for line in lines:
        assert line in text


def test_help_default_follows_choice_and_group_lists_choices() -> None:
    assert "default  256" in describe_command("train", "", ["data.patch_size", "data=panda"])
    assert "default  128" in describe_command("train", "", ["data.patch_size"])
    assert re.search(r"\n  guided +Bags of the K most", describe_command("train", "", ["tiles", "task=grading"]))
    with pytest.raises(ConfigError, match=r"--help stride: there is no such group or key \(did you mean data.stride"):
        describe_command("train", "", ["stride"])
    with pytest.raises(ConfigError, match=r"--help nothing: there is no such group or key; --help lists the keys"):
        describe_command("train", "", ["nothing"])
    with pytest.raises(ConfigError, match=r"--help model\.: .*\(there are: architecture, "):
        describe_command("train", "", ["model."])


def test_enter_help_ends_with_status_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit) as left:
        enter(lambda: pytest.fail("it ran"), "train", "train and evaluate")
    assert left.value.code == 0
    assert "train.py: train and evaluate" in capsys.readouterr().out
