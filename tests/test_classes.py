"""Class sets are read from YAML, checked, and turn the codes of label maps into targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from panda.choices import CONF
from panda.errors import ConfigError, MaskError
from panda.wsi.classes import ANY_CANCER, BINARY, IGNORED, ClassSet, find_classes
from panda.wsi.label_maps import UNKNOWN, LabelMap, find_label_map, tumor_bool_from_gray

GLEASON = find_classes("gleason")
RADBOUD, KAROLINSKA = find_label_map("radboud"), find_label_map("karolinska")


def test_find_classes_names_and_paths() -> None:
    assert find_classes("binary") is BINARY
    assert find_classes(str(CONF / "classes" / "gleason.yaml")) == GLEASON
    assert GLEASON.names == ("benign", "G3", "G4", "G5")
    assert GLEASON.patterns == {"G3": (3,), "G4": (4,), "G5": (5,)}


def test_class_set_channels() -> None:
    assert (BINARY.is_binary, BINARY.channels, BINARY.cancer_names) == (True, 1, ("cancer",))
    assert (GLEASON.is_binary, GLEASON.channels, GLEASON.cancer_names) == (False, 4, ("G3", "G4", "G5"))


def test_class_set_by_pattern_highest_first() -> None:
    classes = ClassSet(names=("benign", "mid", "rest", "worst"), patterns={"rest": (1, 3), "mid": (4,), "worst": (5,)})
    assert GLEASON.by_pattern == (3, 2, 1)
    assert classes.by_pattern == (3, 1, 2)


def test_make_table_patterns_have_their_class() -> None:
    assert GLEASON.make_table(RADBOUD)[:7].tolist() == [0, 0, 0, 1, 2, 3, UNKNOWN]
    assert GLEASON.make_table(RADBOUD, ignore_unlabelled=True)[:4].tolist() == [IGNORED, 0, 0, 1]


def test_make_table_code_without_pattern_is_any_cancer() -> None:
    assert GLEASON.make_table(KAROLINSKA, ignore_unlabelled=True)[:4].tolist() == [IGNORED, 0, ANY_CANCER, UNKNOWN]


@pytest.mark.parametrize("provider", ["radboud", "karolinska", "binary"])
def test_make_table_binary_is_the_cancer_of_the_label_map(provider: str) -> None:
    label_map = find_label_map(provider)
    codes = np.array([sorted(label_map.names)], np.uint8)
    expected = tumor_bool_from_gray(codes, provider)
    assert (BINARY.make_table(label_map)[codes] == expected).all()
    merged = GLEASON.make_table(label_map)[codes]
    assert ((merged > 0) == expected).all()


def test_make_table_order_of_names_only_renumbers() -> None:
    other = ClassSet(names=("benign", "G5", "G3", "G4"), patterns=GLEASON.patterns)
    for label_map in (RADBOUD, KAROLINSKA):
        one, two = (classes.make_table(label_map, ignore_unlabelled=True) for classes in (GLEASON, other))
        for a, b in zip(one.tolist(), two.tolist(), strict=True):
            assert a == b or GLEASON.names[a] == other.names[b]


def test_make_table_merged_patterns_share_a_class() -> None:
    classes = ClassSet(names=("benign", "G3", "high"), patterns={"G3": (3,), "high": (4, 5)})
    assert classes.make_table(RADBOUD)[:6].tolist() == [0, 0, 0, 1, 2, 2]


def test_make_table_pattern_without_class_raises() -> None:
    label_map = LabelMap(names={0: "other", 7: "old"}, cancer=(7,), unlabelled=(), patterns={7: 2})
    with pytest.raises(MaskError, match="code 7 is Gleason pattern 2, which none of the classes G3, G4, G5 has: add"):
        GLEASON.make_table(label_map)


def test_class_set_survives_plain_data() -> None:
    for classes in (BINARY, GLEASON):
        assert ClassSet.model_validate(classes.model_dump(mode="json")) == classes


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("names: [benign]\npatterns: {}\n", "at least one of cancer"),
        ("names: [benign, G3]\npatterns: {}\n", "patterns lacks G3"),
        ("names: [benign, G3]\npatterns: {G3: [3], benign: [4]}\n", "benign, the first of names"),
        ("names: [benign, G3]\npatterns: {G3: [3], G4: [4]}\n", "patterns has G4, which names lacks"),
        ("names: [benign, G3, G4]\npatterns: {G3: [3, 4], G4: [4]}\n", "pattern 4 is in G3 and G4"),
        ("names: [benign, G3, g3]\npatterns: {G3: [3], g3: [4]}\n", "G3 occurs twice"),
        ("names: [benign, best]\npatterns: {best: [3]}\n", "best is the name of another figure"),
        ("names: [benign, mean_slide]\npatterns: {mean_slide: [3]}\n", "mean_slide is the name of another figure"),
        ("names: [benign, G3]\npatterns: {G3: []}\n", "patterns lacks G3"),
        ("names: [benign, G3]\npatterns: {G3: [6]}\n", "patterns.G3.0 is 6"),
        ("names: [benign, G3]\npatterns: {G3: [true]}\n", "patterns.G3.0 is True"),
        ("names: [benign, 3]\npatterns: {G3: [3]}\n", "names.1 is 3"),
        ("names: [benign, 'a/b']\npatterns: {a/b: [3]}\n", "'a/b' is no name"),
        ("names: [benign, G3]\npatterns: {G3: [3]}\ncolour: red\n", "colour is 'red', but there is no such key"),
        ("names: [benign, G3]\npatterns: {G3: [3], G3: [4]}\n", "patterns.G3 is given twice"),
        ("- 3\n", "give the keys names and patterns"),
        ("", "give the keys names and patterns"),
        ("names: [\n", "cannot be read as YAML"),
    ],
)
def test_find_classes_faulty_file_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"mine\.yaml: .*") as caught:
        find_classes(str(path))
    assert expected in str(caught.value)


def test_find_classes_all_faults_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("names: [benign, 'a/b']\npatterns: {G3: [9]}\ncolour: red\n")
    with pytest.raises(ConfigError) as caught:
        find_classes(str(path))
    assert len(caught.value.faults) == 3


def test_find_classes_missing_file_names_key_and_file() -> None:
    with pytest.raises(ConfigError, match=r"classes=a/b\.yaml: there is no file .*a/b\.yaml; give binary, gleason"):
        find_classes("a/b.yaml")
    with pytest.raises(ConfigError, match=r"task\.classes=absent\.yaml: there is no file absent\.yaml"):
        find_classes("absent.yaml")


def test_find_classes_unknown_name_lists_known() -> None:
    with pytest.raises(ConfigError, match=r"task\.classes=gleeson.*did you mean gleason\?"):
        find_classes("gleeson")


def test_class_set_without_cancer_is_refused() -> None:
    with pytest.raises(ValidationError):
        ClassSet(names=("benign",), patterns={})


def test_describe_codes_change_with_patterns_of_several_classes_only() -> None:
    swapped = RADBOUD.model_copy(update={"patterns": {3: 4, 4: 3, 5: 5}})
    assert BINARY.describe_codes(swapped) == BINARY.describe_codes(RADBOUD) == RADBOUD.codes()
    assert GLEASON.describe_codes(swapped) != GLEASON.describe_codes(RADBOUD)
    named = ClassSet(names=("benign", "cancer", "known"), patterns={"cancer": (3,), "known": (4, 5)})
    assert named.describe_codes(RADBOUD)["cancer"] == [3, 4, 5]
