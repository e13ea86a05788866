"""Label maps are read from YAML, checked, and turn codes into cancer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from panda.errors import ConfigError, MaskError
from panda.wsi import label_maps
from panda.wsi.label_maps import LabelMap, find_label_map, get_label_maps, load_label_maps, tumor_bool_from_gray

GOOD = "names: {0: other, 7: cancer}\ncancer: [7]\nunlabelled: []\n"


def test_tumor_bool_from_gray_cancer_codes_of_each_provider() -> None:
    row = np.array([[0, 1, 2, 3, 4, 5]], np.uint8)
    assert tumor_bool_from_gray(row, "radboud").tolist() == [[False, False, False, True, True, True]]
    assert tumor_bool_from_gray(row[:, :3], "karolinska").tolist() == [[False, False, True]]
    assert find_label_map("radboud").names[2] == "benign epithelium"


def test_tumor_bool_from_gray_unknown_codes_are_counted() -> None:
    with pytest.raises(MaskError, match=r"3 \(2 px\), 255 \(1 px\) are not among karolinska's \[0, 1, 2\]"):
        tumor_bool_from_gray(np.array([[3, 3, 0], [1, 2, 255]], np.uint8), "karolinska")
    with pytest.raises(MaskError, match=r"not among binary's \[0, 1\]; .* right \(the codes fit binary_255\)"):
        tumor_bool_from_gray(np.array([[0, 255]], np.uint8), "binary")


def test_tumor_bool_from_gray_unknown_provider_names_known() -> None:
    with pytest.raises(
        MaskError, match=r"'leuven'.* binary, binary_255, gleason, karolinska, radboud;.*conf/label_maps/leuven\.yaml"
    ):
        tumor_bool_from_gray(np.zeros((2, 2), np.uint8), "leuven")


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.float32)])
def test_tumor_bool_from_gray_other_than_uint8_plane_raises(bad: NDArray[np.uint8]) -> None:
    with pytest.raises(MaskError, match="red channel"):
        tumor_bool_from_gray(bad, "radboud")


def test_tumor_bool_from_gray_empty_plane_has_no_cancer() -> None:
    assert tumor_bool_from_gray(np.zeros((0, 4), np.uint8), "radboud").shape == (0, 4)


def test_load_label_maps_yaml_file_adds_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leuven.yaml").write_text(GOOD)
    monkeypatch.setattr(label_maps, "FOLDER", tmp_path)
    assert [*get_label_maps()] == ["leuven"]
    assert tumor_bool_from_gray(np.array([[0, 7]], np.uint8), "leuven").tolist() == [[False, True]]
    with pytest.raises(MaskError, match="known are leuven;"):
        find_label_map("radboud")


def test_label_map_survives_plain_data() -> None:
    for label_map in get_label_maps().values():
        plain = label_map.model_dump(mode="json")
        assert LabelMap.model_validate(plain) == label_map
    assert find_label_map("radboud").patterns == {3: 3, 4: 4, 5: 5}
    assert find_label_map("binary").unlabelled == ()


def test_label_map_codes_omit_names() -> None:
    one, other = (LabelMap(names={1: name}, cancer=(1,), unlabelled=()) for name in ("tumour", "cancer"))
    assert one.codes() == other.codes() == {"known": [1], "cancer": [1], "unlabelled": [], "channel": []}
    red, green = (LabelMap(names={1: "a"}, cancer=(1,), unlabelled=(), channel=name) for name in ("red", "green"))
    assert "channel" not in red.codes()
    assert green.codes()["channel"] == [1]


def test_load_label_maps_all_faults_of_all_files_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "names: {0: other, 300: far, 2: grey}\ncancer: [2, x]\nunlabeled: [0]\npatterns: {2: 9}\n"
    )
    (tmp_path / "b.yaml").write_text("names: {0: a, 1: b}\ncancer: [1, 4]\nunlabelled: [0, 9]\npatterns: {5: 5}\n")
    (tmp_path / "c.yaml").write_text("names: {0: a, 1: b}\ncancer: [1]\nunlabelled: [1]\n")
    (tmp_path / "ca.yaml").write_text("names: {0: a, 1: b}\ncancer: [1]\nunlabelled: []\npatterns: {0: 3, 1: 4}\n")
    (tmp_path / "d.yaml").write_text("names: {0: a\n")
    (tmp_path / "e.yaml").write_text("- 3\n")
    (tmp_path / "good.yaml").write_text(GOOD)
    with pytest.raises(ConfigError) as caught:
        load_label_maps(tmp_path)
    faults = [fault.removeprefix(f"{tmp_path}/") for fault in caught.value.faults]
    assert faults[:-2] == [
        "a.yaml: names.300 is 300: give a name for each code, 0 to 255",
        "a.yaml: cancer.1 is 'x': give a list of codes, 0 to 255",
        "a.yaml: unlabelled is missing: give a list of codes, 0 to 255, [] for none",
        "a.yaml: patterns.2 is 9: give the Gleason pattern, 1 to 5, of each such code",
        "a.yaml: unlabeled=[0]: there is no such key (did you mean unlabelled?)",
        "b.yaml: cancer has code 4 without a name: add it to names, or remove it here",
        "b.yaml: unlabelled has code 9 without a name: add it to names, or remove it here",
        "b.yaml: patterns has code 5 without a name: add it to names, or remove it here",
        "c.yaml: unlabelled has code 1, which cancer has too: remove it from one of them",
        "ca.yaml: patterns has code 0, which cancer lacks: add it to cancer, or remove it here",
    ]
    assert faults[-2].startswith("d.yaml: cannot be read as YAML (")
    assert (
        faults[-1]
        == "e.yaml: is [3]: give the keys names, cancer, unlabelled, patterns, aliases, channel, empty_means_benign"
    )


def test_load_label_maps_folder_without_maps_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no label map; restore"):
        load_label_maps(tmp_path)


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ("names: {0: other, 7: cancer, 7: benign}", "names.7"),
        ("names: {0: other, 7: cancer, 0x7: benign}", "names.7"),
        ("names: {0: other, 7: cancer, 1: benign, true: stroma}", "names.1"),
        ("names: {0: other, 7: cancer}\npatterns: {7: 3, 7: 4}", "patterns.7"),
        ("names: {0: other, 7: cancer}\nnames: {0: other}", "names"),
    ],
)
def test_load_label_maps_key_given_twice_raises(tmp_path: Path, other: str, key: str) -> None:
    (tmp_path / "a.yaml").write_text(GOOD.replace("names: {0: other, 7: cancer}", other))
    with pytest.raises(ConfigError, match=rf"a\.yaml: {key} is given twice: remove one"):
        load_label_maps(tmp_path)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("names: {true: cancer, 7: other}", "names.1 is True: give a name for each code, 0 to 255"),
        ("names: {0: other, 1.0: cancer}", "names.1.0 is 1.0: give a name for each code, 0 to 255"),
        ("names: {0: other, '7': cancer}", "names.7 is '7': give a name for each code, 0 to 255"),
        ("cancer: [true]", "cancer.0 is True: give a list of codes, 0 to 255"),
        ("unlabelled: [no]", "unlabelled.0 is False: give a list of codes, 0 to 255, [] for none"),
        ("patterns: {7: true}", "patterns.7 is True: give the Gleason pattern, 1 to 5, of each such code"),
    ],
)
def test_load_label_maps_code_of_other_type_raises(tmp_path: Path, line: str, fault: str) -> None:
    key = line.partition(":")[0]
    lines = [own for own in GOOD.splitlines() if not own.startswith(key)]
    (tmp_path / "a.yaml").write_text("\n".join([line, *lines]))
    with pytest.raises(ConfigError) as caught:
        load_label_maps(tmp_path)
    assert f"{tmp_path}/a.yaml: {fault}" in caught.value.faults


def test_load_label_maps_names_that_differ_in_case_raise(tmp_path: Path) -> None:
    for name in ("Leuven", "leuven", "other"):
        (tmp_path / f"{name}.yaml").write_text(GOOD)
    with pytest.raises(ConfigError) as caught:
        load_label_maps(tmp_path)
    assert caught.value.faults == [
        f"{tmp_path}/Leuven.yaml and leuven.yaml differ in upper and lower case only: remove or rename one"
    ]
