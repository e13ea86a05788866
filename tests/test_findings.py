"""Findings that the table of slides alone shows, and the list of all kinds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from panda.audit.near_duplicates import report_groups
from panda.audit.slide_table import check_table
from panda.data.findings import FINDINGS, Finding
from panda.data.slide_rows import SlideRow, read_rows
from panda.errors import ManifestError
from panda.wsi.gleason import isup_grade_from_score
from tests.conftest import SHARED

HEADER = "image_id,data_provider,isup_grade,gleason_score"


def _find(folder: Path, *lines: str) -> list[tuple[str, str, str]]:
    (folder / "train.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return [(found.slide_id, found.finding, found.value) for found in check_table(read_rows(folder))]


def test_check_table_sound_table_has_no_findings(tmp_path: Path) -> None:
    rows = ("a,radboud,0,negative", "b,karolinska,0,0+0", "c,radboud,2,3+4", "d,radboud,3,4+3", "e,karolinska,5,5+5")
    assert _find(tmp_path, *rows) == []


@pytest.mark.parametrize(
    ("score", "grade"),
    [
        *(("negative", 0), ("0+0", 0), ("3+3", 1), ("3+4", 2), ("4+3", 3), ("4+4", 4), ("3+5", 4), ("5+3", 4)),
        *(("4+5", 5), ("5+4", 5), ("5+5", 5)),
    ],
)
def test_check_table_contradicting_row(tmp_path: Path, score: str, grade: int) -> None:
    assert isup_grade_from_score(score) == grade
    for said in range(6):
        expected = [] if said == grade else [("a", "contradicting_row")]
        found = _find(tmp_path, f"a,radboud,{said},{score}")
        assert [(slide_id, name) for slide_id, name, _ in found] == expected
        for *_, value in found:
            assert value == f"row 2: gleason_score {score} is ISUP {grade}, isup_grade is {said}"


@pytest.mark.parametrize("score", ["3", "3+", "0+3", "6+1", "3+4+5", "Negative?"])
def test_check_table_bad_gleason(tmp_path: Path, score: str) -> None:
    [(_, name, value)] = _find(tmp_path, f"a,radboud,1,{score}")
    assert name == "bad_gleason"
    assert repr(score) in value


def test_check_table_duplicate_row(tmp_path: Path) -> None:
    found = _find(tmp_path, "a,radboud,1,3+3", "b,radboud,1,3+3", "a,radboud,1,3+3", "a,karolinska,2,3+4")
    assert found == [
        ("a", "duplicate_row", "row 4: it is in row 2 already, with the same values"),
        (
            "a",
            "duplicate_row",
            "row 5: it is in row 2 already, with another data_provider, isup_grade, gleason_score",
        ),
    ]


def test_check_table_unknown_provider(tmp_path: Path) -> None:
    [(slide_id, name, value)] = _find(tmp_path, "a,Radbout,1,3+3")
    assert (slide_id, name) == ("a", "unknown_provider")
    assert value == (
        "row 2: data_provider 'Radbout' is unknown; known are annotations, binary, binary_255, gleason, karolinska, "
        "radboud; correct it, or describe its "
        "mask codes in conf/label_maps/Radbout.yaml"
    )


@pytest.mark.parametrize("grade", ["6", "-1", "1.5", "x"])
def test_check_table_bad_grade(tmp_path: Path, grade: str) -> None:
    [(_, name, value)] = _find(tmp_path, f"a,radboud,{grade},3+3")
    assert name == "bad_grade"
    assert repr(grade) in value


def test_check_table_missing_grade_is_note(tmp_path: Path) -> None:
    [(slide_id, name, _)] = _find(tmp_path, "a,radboud,,", "b,radboud,3.0,4+3")
    assert (slide_id, name) == ("a", "missing_grade")
    assert FINDINGS[name].severity == "note"
    assert [row.isup_grade for row in read_rows(tmp_path)] == ["", "3"]


@pytest.mark.parametrize("slide_id", ["", "../a", "a/b", ".a", "store.json"])
def test_check_table_bad_id(tmp_path: Path, slide_id: str) -> None:
    [(found_id, name, _)] = _find(tmp_path, f"{slide_id},radboud,1,3+3")
    assert (found_id, name) == (slide_id, "bad_id")
    assert not read_rows(tmp_path)[0].has_file


def test_check_table_every_fault_of_row_is_named(tmp_path: Path) -> None:
    found = _find(tmp_path, "a,x,9,y", "a,x,9,y")
    assert [name for _, name, _ in found] == [
        *("unknown_provider", "bad_grade", "bad_gleason"),
        *("unknown_provider", "bad_grade", "bad_gleason", "duplicate_row"),
    ]


def test_read_table_missing_file_or_column_raises(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        read_rows(tmp_path)
    (tmp_path / "train.csv").write_text("image_id,isup_grade\na,1\n")
    with pytest.raises(ManifestError, match="no column 'data_provider'"):
        read_rows(tmp_path)


def test_report_groups_names_other_duplicates() -> None:
    groups = [["a", "b"], ["c"], ["d", "e", "f", "g", "h"]]
    found = report_groups("near_duplicate", groups)
    assert [(finding.slide_id, finding.value) for finding in found[:3]] == [
        ("a", "b"),
        ("b", "a"),
        ("d", "e, f, g and 1 more"),
    ]
    assert [finding.slide_id for finding in found] == list("abdefgh")


def test_findings_have_meaning_and_remedy() -> None:
    for name, kind in FINDINGS.items():
        assert re.fullmatch(r"[a-z_]+", name)
        assert kind.meaning.endswith(".")
        assert kind.remedy.endswith(".")
    found = Finding("a", "blur", "0.1")
    assert (found.kind.severity, found.kind.remedy) == (FINDINGS["blur"].severity, FINDINGS["blur"].remedy)


@pytest.mark.real_data
def test_check_table_real_table_has_one_contradiction() -> None:
    if not (SHARED / "panda").is_dir():
        pytest.skip(f"the real table is not there: {SHARED / 'panda'}")
    rows = read_rows(SHARED / "panda")
    assert len(rows) == 10_616
    assert all(isinstance(row, SlideRow) and row.has_file for row in rows)
    [found] = check_table(rows)
    assert found.finding == "contradicting_row"
    assert "gleason_score 4+3 is ISUP 3, isup_grade is 2" in found.value
