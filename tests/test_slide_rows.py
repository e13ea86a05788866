"""Tables of other layouts than PANDA's: which rows are read, and which are refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panda.data.manifest import SlideRecord, read_manifest
from panda.data.settings import SelectionSettings
from panda.data.slide_rows import read_rows
from panda.data.slide_selection import select_slides
from panda.errors import ManifestError
from tests.dicoms import write_dicom_series

FILES = ("a/0012.svs", "a/b 2.ndpi", "other.ome.tiff", "m/x.png", "m/y.tif")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def read(folder: Path, *lines: str, labels: str | None = None) -> list[SlideRecord]:
    (folder / "my.csv").write_bytes("\n".join(lines).encode())
    return read_manifest(folder / "my.csv", labels=labels)


def test_read_manifest_table_has_files_groups_and_columns(folder: Path) -> None:
    one, two = read(
        folder,
        "path,mask,annotation,provider,patient,grade,gleason_score,stage",
        "a/0012.svs,m/x.png,,RADBOUD,p1,3.0,4 + 3 = 7,T2",
        f"{folder}/other.ome.tiff,,,karolinska,p2,,Negative,",
    )
    assert one == SlideRecord(
        "0012",
        "radboud",
        3,
        "4+3",
        folder / "a/0012.svs",
        folder / "m/x.png",
        group="p1",
        patient="p1",
        others=(("stage", "T2"),),
    )
    assert (two.slide_id, two.isup_grade, two.gleason, two.mask_path) == ("other.ome", None, "negative", None)


def test_read_manifest_any_provider_without_slides_and_mask(folder: Path) -> None:
    (folder / "my.csv").write_text("image_id,provider,mask\na,hospital A,\nb,hospital A,m/x.png\n")
    with pytest.raises(ManifestError, match=r"(?s)1 fault;.*row 3: provider 'hospital A'"):
        read_manifest(folder / "my.csv", needs_slides=False)
    (folder / "my.csv").write_text("image_id,provider,path\na,hospital A,a/0012.svs\n")
    assert read_manifest(folder / "my.csv", needs_slides=False)[0].provider == "hospital A"
    with pytest.raises(ManifestError, match="hospital A"):
        read_manifest(folder / "my.csv")


def test_read_manifest_table_grades_come_from_scores_without_column(folder: Path) -> None:
    records = read(folder, "slide_id,path,gleason_score", "007,a/0012.svs,3+4", "x,a/b 2.ndpi,0+0", labels="binary")
    assert [(each.slide_id, each.provider, each.isup_grade) for each in records] == [
        ("007", "binary", 2),
        ("x", "binary", 0),
    ]


@settings(max_examples=40, deadline=None)
@given(
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff"]),
    blank=st.sampled_from(["", " ", "\u00a0", "  "]),
    quote=st.booleans(),
    grade=st.sampled_from(["3", "3.0", "3,00"]),
    score=st.sampled_from(["4+3", "4 + 3", "4+3=7", "4 +3 = 7"]),
    provider=st.sampled_from(["radboud", "Radboud", "RADBOUD"]),
)
def test_read_manifest_table_any_spelling_gives_same_record(
    tmp_path_factory: pytest.TempPathFactory, *, end: str, mark: str, **how: str
) -> None:
    folder = tmp_path_factory.mktemp("t")
    (folder / "0012.svs").touch()
    cells = ("0012.svs", how["provider"], how["grade"], how["score"])

    def write(values: tuple[str, ...]) -> str:
        padded = (how["blank"] + value + how["blank"] for value in values)
        return how["delimiter"].join(f'"{v}"' if how["quote"] or how["delimiter"] in v else v for v in padded)

    lines = [write(("path", "provider", "grade", "gleason_score")), write(cells)]
    (folder / "my.csv").write_bytes((mark + end.join(lines)).encode())
    (found,) = read_manifest(folder / "my.csv")
    assert (found.slide_id, found.provider, found.isup_grade, found.gleason) == ("0012", "radboud", 3, "4+3")


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (("image_id,provider", "a,radboud"), "no column 'path': give the file of each slide"),
        (("path", "a/0012.svs"), "no column 'provider', the label map of each slide: .* data.labels=NAME"),
        (("path,provider,patients", "a/0012.svs,radboud,1"), "column 'patients': write 'patient' if it is that"),
        (("path,provider,patient_id", "a/0012.svs,radboud,1"), "column 'patient_id': write 'patient'"),
        (("path,provider,Mask", "a/0012.svs,radboud,m/x.png"), "column 'Mask': write 'mask'"),
        (("path,provider,isup grade", "a/0012.svs,radboud,1"), "column 'isup grade': write 'isup_grade'"),
        (("path,provider,gleason", "a/0012.svs,radboud,1"), "column 'gleason': write 'gleason_score'"),
        (("path,provider,data_provider", "a/0012.svs,radboud,"), "'data_provider' and 'provider' mean the same"),
        (("path,provider", "a/12.svs,radboud"), r"row 2: path 'a/12.svs': there is no file .*a/12\.svs"),
        (("path,provider", "a\\0012.svs,radboud"), "there is no file .*; write / between folders"),
        (("path,provider", ",radboud"), "row 2: .*path is empty"),
        (("path,provider,mask", "a/0012.svs,radboud,m/z.png"), "row 2: mask 'm/z.png': there is no file"),
        (("path,provider,mask,annotation", "a/0012.svs,radboud,m/x.png,m/y.tif"), "'m/y.tif' are both given"),
        (("path,provider", f"{'x' * 300}.svs,radboud"), "row 2: path 'x+.svs': it cannot be read .*too long"),
        (("path,provider", "a,radboud"), "row 2: path 'a': .*a is a folder .*: give a file"),
        (("path,image_id,provider", f"a/0012.svs,{'é' * 101},radboud"), "is longer than 200 bytes"),
        (("path,provider,mask", "a/0012.svs,radboud,a/0012.svs"), "mask 'a/0012.svs' is the path of row 2 too"),
        (("path,image_id,provider", "a/0012.svs,x,radboud", "a/b 2.ndpi,x,radboud"), "'x' occurs already in row 2"),
        (("path,image_id,provider", "a/0012.svs,x,radboud", "./a/0012.svs,y,radboud"), "is the path of row 2 too"),
        (("path,provider", "a/0012.svs,stanford"), "row 2: provider 'stanford' is unknown"),
        (("path,provider", "a/0012.svs,"), "row 2: provider is empty; fill it in, or give data.labels=NAME"),
        (("path,provider,grade", "a/0012.svs,radboud,GG3"), "row 2: grade 'GG3' is not a whole number"),
        (("path,provider,grade,gleason_score", "a/0012.svs,radboud,2,4+3"), "4\\+3 is ISUP 3, isup_grade is 2"),
        (("path,provider,gleason_score", "a/0012.svs,radboud,3+4=8"), r"gleason_score '3\+4=8' is no score such as"),
        (("path,provider,patient", "a/0012.svs,radboud,", "a/b 2.ndpi,radboud,1"), "row 2: patient is empty"),
    ],
)
def test_read_manifest_table_is_refused_by_name(folder: Path, lines: tuple[str, ...], fault: str) -> None:
    with pytest.raises(ManifestError, match=f"(?s)my.csv.*{fault}"):
        read(folder, *lines)


def test_read_manifest_one_slide_under_two_names_is_refused(folder: Path) -> None:
    (folder / "link.svs").symlink_to("a/0012.svs")
    with pytest.raises(ManifestError, match=r"row 3: path 'link.svs' is the path of row 2 too"):
        read(folder, "path,provider", "a/0012.svs,radboud", "link.svs,radboud")
    pixels = np.full((256, 256, 3), 200, np.uint8)
    names = [path.name for path in write_dicom_series(folder, [pixels, pixels[::2, ::2].copy()])]
    with pytest.raises(ManifestError, match=rf"1 fault.*\n.*row 3: path '{names[1]}' is a further file of a DICOM"):
        read(folder, "path,provider", *(f"{name},radboud" for name in names))


def test_read_rows_faulty_file_is_a_fault_of_its_row(folder: Path) -> None:
    (folder / "my.csv").write_text("path,provider\na/0012.svs,radboud\ngone.svs,radboud\n")
    one, two = read_rows(folder / "my.csv")
    assert (one.has_file, one.faults) == (True, ())
    assert (two.has_file, [name for name, _ in two.faults]) == (False, ["bad_file"])


def test_select_slides_patients_and_near_duplicates_are_joined(tmp_path: Path) -> None:
    lines = ["path,provider,patient"]
    for number in range(12):
        (tmp_path / f"{number}.svs").touch()
        lines.append(f"{number}.svs,radboud,p{number // 2}")
    records = read(tmp_path, *lines)
    assert {select_slides(records, SelectionSettings()).groups_are} == {"patient"}
    # slide 1 (p0) and slide 2 (p1) look alike
    groups = tmp_path / "groups.csv"
    groups.write_text("image_id,group\n" + "".join(f"{n},{'d' if n in (1, 2) else n}\n" for n in range(12)))
    selection = select_slides(records, SelectionSettings(groups=groups))
    assert selection.groups_are == "patient"
    assert [record.group for record in selection.records] == ["p0"] * 4 + [f"p{n // 2}" for n in range(4, 12)]
    assert len({selection.split[str(n)] for n in range(4)}) == 1


def test_selection_write_keeps_other_columns(folder: Path) -> None:
    records = [
        *read(folder, "path,provider,stage", "a/0012.svs,radboud,T1", "a/b 2.ndpi,radboud,T2"),
    ]
    selection = select_slides(records, SelectionSettings(test_fraction=0.0, val_fraction=0.5))
    selection.write(folder / "splits.csv")
    header, first, _ = (folder / "splits.csv").read_text().splitlines()
    assert header.split(",")[-1] == "stage"
    assert first.startswith("0012,")
    assert first.endswith(",T1")
    again = select_slides(records, SelectionSettings(splits=folder / "splits.csv"))
    assert again.split == selection.split


def test_read_rows_panda_table_alone_names_its_folder(tmp_path: Path) -> None:
    (tmp_path / "train_images").mkdir()
    (tmp_path / "train.csv").write_text("image_id,data_provider\na,radboud\n")
    with pytest.raises(ManifestError, match=re.escape(f"data.root={tmp_path}, or labels={tmp_path} in inference")):
        read_rows(tmp_path / "train.csv")
