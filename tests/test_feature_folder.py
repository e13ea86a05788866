"""Folders of feature files: the file of each slide, and files that do not fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panda.data.bagset import BagItem, BagSet, BagSettings
from panda.data.feature_files import write_feature_file
from panda.data.feature_folder import read_feature_folder
from panda.data.manifest import read_manifest
from panda.data.tile_selection import sample_tiles
from panda.errors import ManifestError
from tests.feature_folders import draw_features, make_feature_folder


def test_feature_folder_holds_file_and_count_of_each_slide(tmp_path: Path) -> None:
    folder = make_feature_folder(tmp_path, 3)
    found = read_feature_folder(folder, ["slide00", "slide02", "slide09"])
    assert found.find_file("slide02") == (folder / "slide02.h5", 12)
    assert found.origin.encoder == "drawn"
    assert (found.origin.tile_px0, found.notes) == (None, ()), "the size in level-0 px is that of one slide"
    with pytest.raises(ManifestError, match="no feature file of slide slide09; compute its features"):
        found.find_file("slide09")


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        ({"encoder": "uni"}, "encoder is drawn, but uni"),
        ({"dim": 9}, "dim is 8, but 9"),
        ({"tile_um": 128.0}, "tile_um is 64 µm, but 128 µm"),
        ({"mpp": 0.5}, "mpp is 1 µm/px, but 0.5 µm/px"),
        ({"tile_um": None, "weights": "b" * 64}, "weights is a"),
    ],
)
def test_feature_folder_of_mixed_origins_raises(tmp_path: Path, other: dict[str, Any], fault: str) -> None:
    """Both files and what differs are named, also if a third file states nothing."""
    folder = make_feature_folder(tmp_path, 2, encoder="drawn")
    unknown: dict[str, Any] = {"encoder": None, "weights": None, "mpp": None, "tile_um": None}
    write_feature_file(folder / "aaa.h5", draw_features("aaa", 0, **unknown))
    write_feature_file(folder / "slide02.h5", draw_features("slide02", 0, **other))
    with pytest.raises(ManifestError) as caught:
        read_feature_folder(folder)
    assert f"{folder / 'slide02.h5'} were not made alike: {fault}" in str(caught.value)
    assert str(folder / ("aaa.h5" if "dim" in other else "slide00.h5")) in str(caught.value)


def test_feature_folder_missing_provenance_is_noted(tmp_path: Path) -> None:
    folder = make_feature_folder(tmp_path, 2)
    write_feature_file(folder / "a.h5", draw_features("a", 0, encoder=None, weights=None, mpp=None, tile_um=None))
    notes = read_feature_folder(folder).notes
    assert [note.partition(" feature")[0] for note in notes] == ["1 of 3", "1 of 3"]
    assert "which encoder made them" in notes[0]
    assert read_feature_folder(folder).origin.encoder == "drawn"


def test_feature_folder_unreadable_file_is_fault_of_its_slide(tmp_path: Path) -> None:
    folder = make_feature_folder(tmp_path, 2)
    (folder / "slide01.h5").write_bytes(b"no features")
    found = read_feature_folder(folder)
    assert found.find_file("slide00")[1] == 12
    with pytest.raises(ManifestError, match=r"slide01\.h5"):
        found.find_file("slide01")
    with pytest.raises(ManifestError, match=r"none of 1 feature files can be used: .*slide01\.h5"):
        read_feature_folder(folder, ["slide01"])


def test_feature_folder_of_other_slides_names_both(tmp_path: Path) -> None:
    folder = make_feature_folder(tmp_path, 2)
    with pytest.raises(ManifestError, match=r"none of the 1 slides .*slide00\.h5, slide01\.h5, .* has TCGA-1\."):
        read_feature_folder(folder, ["TCGA-1"])


def test_sampled_tiles_follow_seed_and_keep_their_order() -> None:
    assert sample_tiles(5, 8, 0).tolist() == list(range(5))
    chosen = sample_tiles(1000, 8, 3)
    assert sorted({*chosen.tolist()}) == chosen.tolist()
    assert len(chosen) == 8
    assert chosen.tolist() == sample_tiles(1000, 8, 3).tolist() != sample_tiles(1000, 8, 4).tolist()


def test_bag_set_draws_tiles_of_feature_files(tmp_path: Path) -> None:
    """A bag of k tiles has those that the seed draws from the file, a small one is padded."""
    folder = make_feature_folder(tmp_path, 2)
    write_feature_file(folder / "slide01.h5", draw_features("slide01", 1, tiles=3))
    found = read_feature_folder(folder)
    none = np.empty((0, 2), np.int64)
    items = [
        BagItem(record, none, features=found.files[record.slide_id], drawn_from=found.counts[record.slide_id])
        for record in read_manifest(tmp_path)
    ]
    bags = BagSet(items, BagSettings(k=5, tile_size=8, level=0, mpp=None, seed=2))
    bag, mask, *_ = bags[0]
    rows = draw_features("slide00", 0).features[sample_tiles(12, 5, 2)]
    np.testing.assert_array_equal(bag.numpy(), rows)
    assert mask.tolist() == [True] * 5
    assert bags[1][1].tolist() == [True] * 3 + [False] * 2
