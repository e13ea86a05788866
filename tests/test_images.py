"""The recipes of container images and the citation, which agree with the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from packaging.specifiers import SpecifierSet

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_images_hold_what_the_installation_needs() -> None:
    docker, apptainer = read("Dockerfile"), read("apptainer.def")
    copied = {name for line in re.findall(r"^COPY (.+) /src\S*$", docker, re.MULTILINE) for name in line.split()}
    assert copied == set(re.findall(r"^    (\S+) /src/$", apptainer, re.MULTILINE))
    assert copied == set(re.findall(r"^!(\S+)$", read(".dockerignore"), re.MULTILINE))
    assert all((REPOSITORY / name).exists() for name in copied)
    assert {
        PROJECT["readme"],
        *PROJECT["license-files"],
        "pyproject.toml",
        "requirements.lock",
        "conf",
        "panda",
    } <= copied
    for recipe in (docker, apptainer):
        (python,) = re.findall(r"(?:FROM|From:) python:([\d.]+)-slim", recipe)
        assert python in SpecifierSet(PROJECT["requires-python"])
        assert "sh /src/container/install.sh\n" in recipe


def test_images_install_extras_that_exist() -> None:
    (extras,) = re.findall(r"\.\[([\w,]+)\]", read("container/install.sh"))
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]) - {"dev"}


def test_citation_states_version_and_license_of_package() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
