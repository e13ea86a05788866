"""The wheel, installed into an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from panda.choices import CONF
from tests.checkpoints import segmentation_checkpoint
from tests.integration.entry_points import REPOSITORY, table
from tests.panda_folder import make_folder

BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
"""What a front end such as pip runs, in an environment that has setuptools."""
Run = Callable[..., str]


@pytest.fixture(scope="module")
def panda(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return what runs the installed command in a folder: the package is that of the wheel, the libraries are ours."""
    home = tmp_path_factory.mktemp("package")
    source, made, place = home / "source", home / "wheel", home / "venv"
    for name in ("panda", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    made.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, str(made)], cwd=source, check=True, capture_output=True)
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in (source / "panda").rglob("*") if path.is_file()]
    choices = [path for path in (source / "conf").rglob("*") if path.is_file()]
    assert held == {path.relative_to(source).as_posix() for path in files} | {
        f"panda/{path.relative_to(source).as_posix()}" for path in choices
    }

    venv.create(place, symlinks=os.name != "nt")
    variables = {"base": str(place), "platbase": str(place)}
    scripts, packages = (Path(sysconfig.get_path(name, vars=variables)) for name in ("scripts", "purelib"))
    python = scripts / Path(sys.executable).name
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    # Not as a site of its own, so that the package that is installed there for editing stays out.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    def run(folder: Path, *words: str) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [str(scripts / "panda"), *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.mark.slow
def test_installed_command_works_in_any_folder(panda: Run, tmp_path: Path) -> None:
    assert f"path: {CONF}" not in panda(tmp_path, "audit", "--info", "searchpath")
    make_folder(tmp_path, 1)
    (tmp_path / "conf" / "quantify").mkdir(parents=True)
    shutil.copy(CONF / "quantify" / "default.yaml", tmp_path / "conf" / "quantify" / "mine.yaml")
    checkpoint = segmentation_checkpoint(tmp_path / "best.ckpt", patch_size=128)
    given = (f"checkpoint={checkpoint}", "slides=train_images", "threshold=0.5", "quantify=mine", "output=out")
    panda(tmp_path, "infer", *given, "engine.device=cpu", "engine.compile=never", "engine.post_workers=0")
    assert len(table(tmp_path / "out" / "quantification.csv")) == 1
    assert (tmp_path / "out" / "report.html").is_file()
