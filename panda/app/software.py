"""The software that runs: a digest of this package's sources, and versions of the libraries that compute."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import panda
from panda.app.hydra_job import list_overrides
from panda.stored import Making

_LIBRARIES = (
    *("torch", "torchvision", "pytorch-lightning", "segmentation-models-pytorch", "timm", "numpy", "scipy"),
    "opencv-python-headless",
    *("zarr", "tifffile", "imagecodecs", "openslide-python", "openslide-bin", "pillow", "shapely", "distributed"),
)
"""Libraries whose version can change a byte of an output."""


@functools.cache  # the imported code runs, even if a file is edited later
def digest_code() -> str:
    """Return a digest of this package's sources."""
    folder, digest = Path(str(panda.__file__)).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache  # see `digest_code`
def find_commit() -> str | None:
    """Return the commit of this package's sources, with `-dirty` if files differ from it; None if git has no answer.

    A package in `.venv` is not of the repository around it.
    """
    git = ["git", "-C", str(Path(str(panda.__file__)).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, check=True, timeout=5)
        asked = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, check=True, timeout=5, text=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def describe_making() -> Making:
    """Return how this command makes its files."""
    return Making(overrides=list_overrides(), commit=find_commit())


def list_software() -> dict[str, str]:
    """Return what must be equal for two processes to give the same bytes: code, Python and libraries."""
    found = {"panda-wsi (its sources)": digest_code()[:12], "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # installed in another way, as by conda under another name
            found[name] = "unknown"
    return found


def describe_difference(own: Mapping[str, str], wanted: Mapping[str, str]) -> tuple[str, str]:
    """Return the software of a process that is not the wanted one, and the wanted one; both are empty if it fits."""
    other = [name for name, given in wanted.items() if own.get(name) != given]
    texts = [", ".join(f"{name} {found.get(name)}" for name in other) for found in (own, wanted)]
    return texts[0], texts[1]
