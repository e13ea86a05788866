"""The names that `import panda` gives."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import panda
from panda.app.calls import compose_job, train
from panda.app.hydra_job import is_multirun, list_overrides
from panda.errors import ConfigError
from panda.wsi.slide import Slide

PACKAGE = Path(str(panda.__file__))


def test_import_panda_loads_no_library() -> None:
    code = "import sys, panda; print(sorted({'torch', 'numpy', 'hydra', 'cv2'} & sys.modules.keys()), dir(panda))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ")
    assert all(f"'{name}'" in done.stdout for name in panda.__all__)


@pytest.mark.parametrize("name", panda.__all__)
def test_name_is_what_its_module_has(name: str) -> None:
    found = panda.__getattr__(name)
    assert found.__name__ == name or found == Slide.open
    assert panda._PLACES[name].partition(":")[0] == found.__module__.removeprefix("panda.")


def test_names_are_those_that_type_checkers_see() -> None:
    (block,) = [node for node in ast.parse(PACKAGE.read_text()).body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: f"{node.module}".removeprefix("panda.") for node in imports for alias in node.names}
    assert seen | {"open_slide": "wsi.slide:Slide.open"} == panda._PLACES
    assert sorted(panda.__all__) == sorted(panda._PLACES)


def test_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        panda.__getattr__("trian")


def test_train_refuses_as_its_command_and_leaves_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"modle=unet: there is no such key \(did you mean model\?\)"):
        train("modle=unet")
    with pytest.raises(ConfigError, match=r"data\.patch_size=0\b"):
        train("data.patch_size=0")
    assert list_overrides() == []
    assert not list(tmp_path.iterdir())


def test_compose_job_is_a_job_of_its_own() -> None:
    cfg = compose_job("train", ["name=mine", "seed=3"])
    assert (cfg.seed, cfg.run_dir) == (3, "runs/segmentation/mine")
    assert list_overrides() == ["name=mine", "seed=3"]
    assert not is_multirun()
