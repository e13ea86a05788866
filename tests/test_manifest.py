"""The table of slides, groups and splits."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panda.data.manifest import (
    SlideRecord,
    apply_groups,
    find_one_tumor_example,
    read_groups,
    read_manifest,
)
from panda.data.splits import split_slides
from panda.errors import ManifestError
from tests.panda_folder import HEADER, make_folder, slide_name

REAL = Path(__file__).parents[1] / "../shared/data"


def table(root: Path, *rows: str, header: str = HEADER) -> Path:
    (root / "train.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")
    return root


def record(slide_id: str, provider: str, grade: int, group: str | None = None) -> SlideRecord:
    path = Path(f"{slide_id}.tiff")
    return SlideRecord(slide_id, provider, grade, "", path, path, group or slide_id)


def test_read_manifest_keeps_row_order(tmp_path: Path) -> None:
    table(tmp_path, "b,radboud,5,5+5", "", "a , karolinska,0,negative")
    first, second = read_manifest(tmp_path)
    assert first == SlideRecord(
        "b",
        "radboud",
        5,
        "5+5",
        tmp_path / "train_images/b.tiff",
        tmp_path / "train_label_masks/b_mask.tiff",
        "b",
    )
    assert (second.slide_id, second.provider, second.isup_grade) == ("a", "karolinska", 0)


def test_read_manifest_mask_suffix(tmp_path: Path) -> None:
    (found,) = read_manifest(table(tmp_path, "a,radboud,0,0+0"), mask_suffix="-labels")
    assert found.mask_path == tmp_path / "train_label_masks/a-labels.tiff"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("a/b,radboud,0,0+0", "row 3: image_id 'a/b' is not a plain file name"),
        ("a\\b,radboud,0,0+0", "not a plain file name"),
        ("..,radboud,0,0+0", "not a plain file name"),
        ("/etc/passwd,radboud,0,0+0", "not a plain file name"),
        (".hidden,radboud,0,0+0", "not a plain file name"),
        (",radboud,0,0+0", "not a plain file name"),
        ("splits,radboud,0,0+0", "rename the slide"),
        (
            "b,stanford,0,0+0",
            "row 3: data_provider 'stanford' is unknown; known are annotations, binary, ",
        ),
        ("b,radboud,6,0+0", "row 3: isup_grade '6' is not a whole number from 0 to 5; leave it empty"),
        ("b,radboud,1.5,0+0", "isup_grade '1.5'"),
        ("b,radboud,nan,0+0", "isup_grade 'nan'"),
        ("b,radboud", "row 3 has 2 fields, the header has 4; write an empty field"),
        ("b,radboud,0,3+3,5", "row 3 has 5 fields, the header has 4"),
        ("good,radboud,1,3+3", "row 3: image_id 'good' occurs already in row 2"),
    ],
)
def test_read_manifest_faulty_rows_are_named(tmp_path: Path, row: str, fault: str) -> None:
    table(tmp_path, "good,radboud,1,3+3", row)
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path)
    assert fault in str(caught.value)


def test_read_manifest_many_faults_are_counted_and_some_shown(tmp_path: Path) -> None:
    table(tmp_path, *(f"s{number},nobody,0,0+0" for number in range(9)))
    with pytest.raises(ManifestError, match=r"(?s)9 faults.*row 2.*and 4 more"):
        read_manifest(tmp_path)


def test_read_manifest_missing_folder_table_column_or_rows(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match=r"train\.csv: no such file"):
        read_manifest(tmp_path)
    table(tmp_path, "a,0", header="image_id,isup_grade")
    with pytest.raises(ManifestError, match=r"no column 'data_provider'.* 'image_id', 'isup_grade'"):
        read_manifest(tmp_path)
    table(tmp_path)
    with pytest.raises(ManifestError, match="no rows"):
        read_manifest(tmp_path)
    (tmp_path / "train.csv").write_bytes(b"image_id\xff\xfe")
    with pytest.raises(ManifestError, match="UTF-8"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("column", ["slide_id", "image_id"])
def test_read_groups_and_apply_groups(tmp_path: Path, column: str) -> None:
    path = tmp_path / "patients.csv"
    path.write_text(f"{column},patient\na,7\nb,7\nc,8\n")
    groups, kind = read_groups(path)
    assert (groups, kind) == ({"a": "7", "b": "7", "c": "8"}, "patient")
    grouped = apply_groups([record("a", "radboud", 0), record("c", "radboud", 0)], groups)
    assert [item.group for item in grouped] == ["7", "8"]
    with pytest.raises(ManifestError, match=r"(?s)1 of 2 slides are not in the table of groups.*- 'z'"):
        apply_groups([record("a", "radboud", 0), record("z", "radboud", 0)], groups)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("image_id,who\na,1\n", "no column 'patient' or 'group'"),
        ("image_id,group\na,\n", "row 2: empty"),
        ("image_id,group\na,1\na,2\n", "a slide has one group"),
    ],
)
def test_read_groups_faulty_table_raises(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(text)
    with pytest.raises(ManifestError, match=fault):
        read_groups(path)
    with pytest.raises(ManifestError, match="no such file"):
        read_groups(tmp_path / "none.csv")


def test_find_one_tumor_example_returns_slide_with_cancer(tmp_path: Path) -> None:
    make_folder(tmp_path, 4)
    assert find_one_tumor_example(tmp_path).slide_id == slide_name(0)
    assert find_one_tumor_example(tmp_path, "karolinska").slide_id == slide_name(1)
    # A mask that is missing or empty is skipped, for any grade.
    (tmp_path / "train_label_masks" / f"{slide_name(1)}_mask.tiff").unlink()
    with pytest.raises(ManifestError, match=r"none of 2 slides of provider 'karolinska'.*1 could not be read"):
        find_one_tumor_example(tmp_path, "karolinska")


def test_split_slides_is_stratified() -> None:
    records = [
        record(f"{provider}{grade}-{number}", provider, grade)
        for provider in ("radboud", "karolinska")
        for grade in range(6)
        for number in range(10)
    ]
    split = split_slides(records, seed=3, val_fraction=0.2, test_fraction=0.2)
    assert Counter(split.values()) == {"train": 72, "val": 24, "test": 24}
    strata = Counter((item.provider, item.isup_grade, split[item.slide_id]) for item in records)
    assert {strata[provider, grade, "val"] for provider, grade, _ in strata} == {2}
    assert split != split_slides(records, seed=4, val_fraction=0.2, test_fraction=0.2)


def test_split_slides_few_slides_or_no_test() -> None:
    records = [record(str(number), "radboud", number % 6) for number in range(3)]
    split = split_slides(records, seed=0, val_fraction=0.2, test_fraction=0.2)
    assert sorted(split.values()) == ["test", "train", "val"]
    assert set(split_slides(records, seed=0, val_fraction=0.2, test_fraction=0.0).values()) == {"train", "val"}
    with pytest.raises(ManifestError, match="2 slides in 2 groups cannot make train, val, test: give more"):
        split_slides(records[:2], seed=0, val_fraction=0.2, test_fraction=0.2)
    with pytest.raises(ManifestError, match="is 1: it must be below 1, as the rest is for training"):
        split_slides(records, seed=0, val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ManifestError, match="give smaller fractions"):
        split_slides(records, seed=0, val_fraction=0.9, test_fraction=0.0)


def test_split_slides_odd_fractions_are_met() -> None:
    records = [record(f"{number:04}", "radboud", 1) for number in range(300)]
    split = split_slides(records, seed=0, val_fraction=0.15, test_fraction=0.4)
    counts = Counter(split.values())
    assert abs(counts["val"] - 45) <= 5
    assert abs(counts["test"] - 120) <= 5


@st.composite
def draw_tables(draw: st.DrawFn) -> list[SlideRecord]:
    """Random tables: any providers and grades, some slides in groups."""
    slides = draw(st.integers(1, 40))
    groups = draw(st.integers(1, slides))
    return [
        record(
            f"s{number}",
            draw(st.sampled_from(["radboud", "karolinska"])),
            draw(st.integers(0, 5)),
            f"g{draw(st.integers(0, groups - 1))}",
        )
        for number in range(slides)
    ]


@settings(max_examples=80, deadline=None)
@given(draw_tables(), st.integers(0, 1000), st.floats(0.05, 0.5), st.sampled_from([0.0, 0.1, 0.2, 0.3]))
def test_split_slides_properties(records: list[SlideRecord], seed: int, val: float, test: float) -> None:
    wanted = {"train", "val"} | ({"test"} if test else set())
    try:
        split = split_slides(records, seed=seed, val_fraction=val, test_fraction=test)
    except ManifestError:
        # Only a table whose groups are few or very unequal cannot be shared out.
        groups = Counter(item.group for item in records)
        assert len(groups) < 5 or max(groups.values()) > 1 or val + test > 0.7
        return
    assert split.keys() == {item.slide_id for item in records}
    assert set(split.values()) == wanted
    sides: dict[str, set[str]] = {}
    for item in records:
        sides.setdefault(item.group, set()).add(split[item.slide_id])
    assert all(len(side) == 1 for side in sides.values())
    shuffled = random.Random(seed).sample(records, len(records))
    assert split_slides(shuffled, seed=seed, val_fraction=val, test_fraction=test) == split


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="the real slides are not beside the checkout")
def test_split_slides_real_panda_table() -> None:
    records = read_manifest(REAL / "panda")
    assert Counter(item.provider for item in records) == {"karolinska": 5456, "radboud": 5160}
    assert {item.gleason for item in records} >= {"negative", "0+0"}
    split = split_slides(records, seed=0, val_fraction=0.2, test_fraction=0.2)
    assert {name: round(count / len(records), 2) for name, count in Counter(split.values()).items()} == {
        "train": 0.6,
        "val": 0.2,
        "test": 0.2,
    }
