"""The heads of pages: what was made, from what, and the commands to paste."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

import panda
from panda.app import software
from panda.report.head import PageHead
from panda.report.page_facts import describe_resolution, list_network, write_command
from panda.report.run_facts import describe_comparison, describe_run, describe_sweep
from panda.report.sweep_jobs import Job
from tests.summaries import make_summary

CONFIG = """
task: {name: segmentation}
model: {architecture: deeplabv3, encoder_name: resnet50, encoder_weights: imagenet}
loss: {_target_: panda.models.losses.BCEDiceLoss, bce_weight: 0.25, dice_weight: 0.75}
"""
SUMMARY: dict[str, Any] = {
    "data": {
        "root": "/slides", "slides": {"train": 1400, "val": 5, "test": 5}, "settings": {"patch_size": 512, "level": 1},
    },
    "epochs": 12, "seed": 3, "commit": "0123456789ab-dirty", "overrides": ["model=deeplabv3", "data.root=my slides"],
    "resolution": {"level": 1, "mpp": None, "train_mpp": [1.81, 1.9, 1.94]}, "test": {"dice": 0.7, "slides": 5},
}  # fmt: skip


def make_run(folder: Path, config: str = CONFIG) -> Path:
    """Make a folder of a run with a configuration and checkpoints."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("best", "last"):
        (folder / "checkpoints" / f"{name}.ckpt").touch()
    (folder / "config.yaml").write_text(config)
    return folder


def list_shown(head: PageHead) -> dict[str, str]:
    """Return the facts that a page shows."""
    return {name: text for name, text in head.facts if text}


def test_describe_run_has_facts_and_commands(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my run")
    head = describe_run(run, make_summary(SUMMARY))
    shown = list_shown(head)
    for name, text in {
        "Network": "deeplabv3", "Encoder": "resnet50, imagenet weights",
        "Loss": "BCEDiceLoss, bce weight 0.25, dice weight 0.75", "Data": "/slides",
        "Slides": "1,400 training, 5 validation, 5 test", "Patch": "512 px, level 1, 1.81 to 1.94 µm/px",
        "Epochs": "12", "Seed": "3", "Commit": "0123456789ab-dirty",
    }.items():  # fmt: skip
        assert shown[name] == text
    commands = {name: shlex.split(text) for name, text in head.commands}
    assert commands["Trained by"][-2:] == ["model=deeplabv3", "data.root=my slides"]
    assert commands["Map slides"][2] == f'checkpoint="{run}/checkpoints/best.ckpt"'
    assert commands["Compare"][-2:] == [str(run), "OTHER_RUN"]
    assert commands["Train longer"][-1] == "trainer.max_epochs=24"


@pytest.mark.parametrize("config", ["", "a: [", "- 1\n", "model: 3\nloss: null\n"])
def test_describe_run_unknown_facts_are_left_out(tmp_path: Path, config: str) -> None:
    shown = list_shown(describe_run(make_run(tmp_path, config), make_summary({"test": None})))
    assert not {"Network", "Encoder", "Loss", "Patch", "Commit"} & shown.keys()
    assert shown["Seed"] == "0"
    head = describe_run(tmp_path, None)
    assert list_shown(head) == {}
    assert [name for name, _ in head.commands] == ["Continue"]


def test_describe_sweep_has_common_facts_and_its_command(tmp_path: Path) -> None:
    summaries = [make_summary(SUMMARY | {"seed": seed}) for seed in (0, 1)]
    jobs = [Job(f"{k}", {"seed": f"{k}"}, "done", own, "", "", 0) for k, own in enumerate(summaries)]
    make_run(tmp_path / "0")
    (tmp_path / "multirun.yaml").write_text("hydra: {overrides: {task: ['seed=0,1', 'name=a b']}}\n")
    head = describe_sweep(tmp_path, jobs, ["data.fold"], [("epochs", "12")], jobs[:1])
    shown = list_shown(head)
    assert (shown["Jobs"], shown["Network"], shown["Data"]) == ("2", "deeplabv3", "/slides")
    assert not {"Seed", "epochs"} & shown.keys(), "it differs, or is in the command"
    assert head.commands[0][1].endswith(" -m seed=0,1 'name=a b'")
    commands = dict(head.commands)
    assert commands["Pool the folds"].endswith(f" {tmp_path / '0'} {tmp_path / '1'}")
    assert f"checkpoint={tmp_path / '0' / 'checkpoints' / 'best.ckpt'}" in commands["Use the best"]
    (tmp_path / "multirun.yaml").unlink()
    head = describe_sweep(tmp_path, jobs, ["model"], [("epochs", "12")], jobs)
    assert "Network" not in list_shown(head)
    assert list_shown(head)["epochs"] == "12"
    assert [name for name, _ in head.commands] == ["Read the jobs again"]


def test_describe_comparison_separates_different_facts(tmp_path: Path) -> None:
    folders = (
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", CONFIG.replace("resnet50", "resnet18").replace("deep", "Deep")),
    )
    runs = make_summary(SUMMARY), make_summary(SUMMARY)
    shown = list_shown(describe_comparison(("a", "b"), folders, runs, 5, 4))
    assert (shown["Network"], shown["Groups of slides"]) == ("deeplabv3", "4")
    assert shown["Encoder"] == "resnet50, imagenet weights | resnet18, imagenet weights"


def test_list_network_names_pooling_and_decoder() -> None:
    assert list_network({"pooling": "gated", "encoder": "uni"}) == [("Network", "gated pooling"), ("Encoder", "uni")]
    assert list_network({"decoder": "conv", "encoder": "uni"})[0] == ("Network", "conv decoder")


def test_describe_resolution_states_what_is_known() -> None:
    assert describe_resolution({"level": None, "mpp": 0.5}) == "0.5 µm/px"
    assert describe_resolution({"level": 1, "mpp": None}, [1.92, 1.92, 1.92]) == "level 1, 1.92 µm/px"
    assert describe_resolution({"level": 1}) == "level 1"
    assert describe_resolution({}) == ""


def test_write_command_without_overrides_is_unknown() -> None:
    assert write_command("train", None) == ""
    assert write_command("train", []).endswith("train") or write_command("train", []).endswith("train.py")


def test_find_commit_is_of_the_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "panda" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(panda, "__file__", str(package))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.org"]

    def find() -> str | None:
        return software.find_commit.__wrapped__()

    assert find() is None
    for words in (["init", "-q"], ["commit", "-qm", "empty", "--allow-empty"]):
        subprocess.run([*git, *words], check=True)
    assert find() is None, "the package is not of this repository"
    for words in (["add", "panda"], ["commit", "-qm", "panda"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert find() == commit[:12]
    package.write_text("changed")
    assert find() == f"{commit[:12]}-dirty"
