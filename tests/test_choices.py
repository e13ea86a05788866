"""The package's choices, and those of a folder `conf` of the user's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import panda.app.entry_point  # noqa: F401 (lets Hydra find the user's own choices)
from panda import choices
from panda.app.command_line import suggest_key
from panda.app.encoder_choice import find_encoder
from panda.app.help import describe_command
from panda.choices import CONF, find_files, find_own_conf, name_command
from panda.errors import ConfigError
from panda.wsi.classes import find_classes
from panda.wsi.label_maps import find_label_map


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder `conf` of a user, with copies of choices under names of their own."""
    monkeypatch.chdir(tmp_path)
    for kind, name in (("label_maps", "radboud"), ("classes", "gleason"), ("encoders", "uni"), ("model", "fpn")):
        (tmp_path / "conf" / kind).mkdir(parents=True)
        shutil.copy(CONF / kind / f"{name}.yaml", tmp_path / "conf" / kind / "mine.yaml")
    return tmp_path / "conf"


def read_model(*overrides: str) -> str:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return str(compose("train", overrides=list(overrides)).model.architecture)


def test_own_choices_are_found_by_name(own: Path) -> None:
    assert read_model("model=mine") == "fpn"
    assert find_label_map("mine") == find_label_map("radboud")
    assert find_classes("mine") == find_classes("gleason")
    assert find_encoder("mine") == find_encoder("uni")
    (own / "model" / "mine.yaml").write_text("zoom: 2\n")
    assert "model.zoom with model=mine" in suggest_key("zoom", {"model": {}})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [\n", r"conf/model/mine\.yaml, line 2: no YAML \(.*\); correct the file"),
        (b"\xff", r"conf/model/mine\.yaml: no YAML \(.*\); correct the file"),
        (b"defaults: 3\n", r"conf/model/mine\.yaml: .*defaults must be a list \(got int\); correct the file"),
        (
            b"# @package hydra\nmode: x\n",
            r"conf/model/mine\.yaml: hydra\.mode: Invalid value 'x', .*; correct the file",
        ),
        (b"defaults:\n  - a: b\n", r"conf/model/mine\.yaml: Could not find 'model/a/b'; correct the file"),
        (b"defaults: [mine]\n", r"recursion depth exceeded.*; correct .*conf/model/mine\.yaml"),
        (b"x: ${a\n", r"no viable alternative at input '\${a'; correct .*conf/model/mine\.yaml"),
        (b"3\n", r"Invalid loaded object type: int; correct .*conf/model/mine\.yaml"),
    ],
)
def test_own_file_that_is_broken_is_named_and_help_passes_over_it(own: Path, content: bytes, said: str) -> None:
    (own / "model" / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_model("model=mine")
    assert "\n  mine\n" in describe_command("train", "", ["model"])
    assert "\n  tiles " in describe_command("train", "", [])


def test_own_file_with_name_of_package_is_refused_unless_a_copy(own: Path) -> None:
    shutil.copytree(CONF, own, dirs_exist_ok=True)
    assert find_label_map("radboud").cancer == (3, 4, 5)
    assert read_model("model=fpn") == "fpn"
    (own / "model" / "fpn.yaml").write_text("architecture: unet\n")
    with pytest.raises(ConfigError, match=r"conf/model/fpn\.yaml: the package has another file of this name, .*rename"):
        read_model("model=fpn")


def test_name_command_fits_the_place_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_command("train") == "python train.py"
    monkeypatch.setattr(choices, "CONF", choices._INSTALLED)
    assert name_command("train") == "panda train"


def test_find_own_conf_passes_over_conf_of_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_own_conf() is None
    os.symlink(CONF, tmp_path / "conf")
    assert find_own_conf() is None
    assert find_files("classes") == {"gleason": CONF / "classes" / "gleason.yaml"}


@pytest.mark.parametrize("command", ["infer", "features"])
def test_folder_of_a_job_is_one_name_for_paths_in_all_keys(command: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        keys = [str(key) for key in compose(command) if key not in ("run_dir", "engine", "quantify", "cluster")]
        cfg = compose(command, [*(f"{key}=/a/{key}" for key in keys), "output=out"], return_hydra_config=True)
        subdir = cfg.hydra.sweep.subdir
    assert "=_a_" in subdir
    assert "/" not in subdir
