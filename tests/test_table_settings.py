"""The table of slides in the configuration, in a training's data and in an inference."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from panda.app.inference_slides import check_labels_source, find_labelled_slides
from panda.data.datamodule import DataSettings, PatchDataModule
from panda.data.settings import TableSettings
from panda.errors import ConfigError
from panda.wsi.label_maps import find_label_map
from tests.panda_folder import make_folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return a table of other columns and ids for the slides of a folder in PANDA's layout."""
    lines = ["slide_id;path;mask;provider;patient;grade"]
    for number, record in enumerate(make_folder(tmp_path / "data", 6)):
        assert record.mask_path is not None
        image, mask = (path.relative_to(tmp_path) for path in (record.image_path, record.mask_path))
        lines.append(f"00{number};{image};{mask};{record.provider.upper()};p{number // 2};{record.isup_grade},0")
    (tmp_path / "my.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    return tmp_path / "my.csv"


def test_table_settings_faults_name_their_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        TableSettings(labels="radbout")
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "data.root and data.table",
        "data.labels=radbout is no label map (did you mean radboud?)",
    ]
    with pytest.raises(ConfigError, match="give one of them, root for PANDA's layout, table for a CSV of your own"):
        TableSettings(root=tmp_path, table=tmp_path / "my.csv")
    with pytest.raises(ConfigError, match=r"data.table=.*my\.csv is no file: give a CSV with a column path"):
        TableSettings(table=tmp_path / "my.csv")


def test_patch_data_of_table_equals_that_of_folder(tmp_path: Path, table: Path) -> None:
    how: dict[str, Any] = {"level": 1, "patch_size": 64, "store": "slide", "num_workers": 0, "store_root": tmp_path}
    own = PatchDataModule(DataSettings(**how, table=table))
    folder = PatchDataModule(DataSettings(**how, root=tmp_path / "data"))
    assert own.select().groups_are == "patient"
    assert {record.slide_id for record in own.select().records} == {f"00{number}" for number in range(6)}
    slides = []
    for data in (own, folder):
        data.prepare_data()
        slides.append({slide.record.image_path: slide for slide in data._patches.values()})
    assert slides[0].keys() == slides[1].keys()
    for path, slide in slides[0].items():
        assert (slide.xy == slides[1][path].xy).all()
        assert (slide.tumor_fraction == slides[1][path].tumor_fraction).all()
    assert len(own.get_patches("train")) > 10


def test_find_labelled_slides_matches_files_before_ids(tmp_path: Path, table: Path) -> None:
    checkpoint: Any = SimpleNamespace(metadata=SimpleNamespace(label_maps={"radboud": find_label_map("radboud")}))
    slides = sorted((tmp_path / "data/train_images").iterdir())
    found = find_labelled_slides(str(table), slides, checkpoint)
    assert {name: record.slide_id for name, record in found.items()} == {
        path.stem: f"00{number}" for number, path in enumerate(slides)
    }
    renamed = slides[0].rename(tmp_path / "003.tiff")  # the name of another row
    slides[0].symlink_to(renamed)
    assert find_labelled_slides(str(table), [renamed], checkpoint)["003"].slide_id == "000"
    check_labels_source(str(table))
    with pytest.raises(ConfigError, match=r"labels=.*or a CSV with the columns path and mask"):
        check_labels_source(str(tmp_path))
