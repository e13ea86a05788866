"""A folder of the user that cannot be read is named, never passed over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from panda.app.inference_slides import find_slides
from panda.choices import check_own_conf, find_files
from panda.data.feature_files import find_feature_files
from panda.data.mapped_slide import _find_file
from panda.data.store import list_stores
from panda.errors import PandaError
from panda.files import find_paths
from panda.settings import Settings, rule
from panda.view.slide_list import find_slides as list_results
from panda.wsi.label_maps import get_label_maps

SEARCHES: dict[str, Callable[[Path], object]] = {
    "conf": check_own_conf,
    "choices": lambda _: find_files("label_maps"),
    "label maps": lambda _: get_label_maps(),
    "folder of slides": lambda conf: find_slides(str(conf / "label_maps")),
    "glob of slides": lambda conf: find_slides(f"{conf}/*/*.tiff"),
    "file below a glob": lambda conf: find_paths(f"{conf}/*/a.tiff"),
    "results to show": list_results,
    "glob of folders": lambda conf: find_slides(f"{conf}/**/*.tiff"),
    "slide of a correction": lambda conf: _find_file(conf, "a.tiff"),
    "features": find_feature_files,
    "stores": lambda conf: list_stores(conf / "label_maps"),
}


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with one that can be read and one that cannot."""
    monkeypatch.chdir(tmp_path)
    for name in ("label_maps", "others"):
        (tmp_path / "conf" / name).mkdir(parents=True)
        for file in ("mine.yaml", "a.tiff", "a.h5", "quantification.json"):
            (tmp_path / "conf" / name / file).touch()
    for function in ("scandir", "listdir"):
        monkeypatch.setattr(os, function, _forbid(getattr(os, function)))  # root reads any folder
    return tmp_path / "conf"


def _forbid(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def forbidden(folder: Any = ".") -> Any:
        if Path(folder).name == "label_maps" and "tmp" in str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return read(folder)

    return forbidden


@pytest.mark.parametrize("search", SEARCHES)
def test_unreadable_folder_is_named(conf: Path, search: str) -> None:
    with pytest.raises((PandaError, PermissionError), match=r"label_maps"):
        SEARCHES[search](conf)


def test_unreadable_folder_is_one_of_all_faults(conf: Path) -> None:
    class Own(Settings):
        node = ""

        @rule
        def _check(self) -> None:
            find_slides(f"{conf}/*/*.tiff")

    with pytest.raises(PandaError, match=r"label_maps/: Permission denied; change its permissions, or give another"):
        Own()


def test_find_paths_names_what_glob_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/b/1.svs", "a/2.svs", "3.svs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert find_paths("**/*.svs") == [Path("3.svs"), Path("a/2.svs"), Path("a/b/1.svs")]
    assert find_paths(f"{tmp_path}/*/*.svs") == [tmp_path / "a/2.svs"]
    assert find_paths("*.svs") == find_paths("3.svs") == [Path("3.svs")]
    assert find_paths("none/*.svs") == []
